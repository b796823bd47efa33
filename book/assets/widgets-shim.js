// Loaded before everything else, on every page. What widgets need on a page that has no kernel:
// 1. the theme's Font Awesome must not replace the icons of buttons that widgets create later (it breaks Play)
window.FontAwesomeConfig = Object.assign({ observeMutations: false }, window.FontAwesomeConfig);
// 2. ipywidgets 8 calls MathJax 2 by name; on a page with MathJax 3 every label would fail
document.addEventListener("DOMContentLoaded", function () {
  const mathjax = window.MathJax;
  if (mathjax && !mathjax.Hub) mathjax.Hub = { Queue: (call) => mathjax.typesetPromise && mathjax.typesetPromise([call[2]]) };
});
// 3. a slider's handle does not say to screen readers what it is called and where it stands
document.addEventListener("DOMContentLoaded", function () {
  function name(slider) {
    const text = (part) => (slider.querySelector(part) || {}).textContent || "";
    for (const handle of slider.querySelectorAll(".noUi-handle")) {
      const label = text(".widget-label"), value = text(".widget-readout");
      if (handle.getAttribute("aria-label") !== label) handle.setAttribute("aria-label", label);
      if (handle.getAttribute("aria-valuetext") !== value) handle.setAttribute("aria-valuetext", value);
    }
  }
  const everywhere = () => document.querySelectorAll(".widget-slider").forEach(name);
  new MutationObserver(everywhere).observe(document.body, { childList: true, subtree: true, characterData: true });
});
