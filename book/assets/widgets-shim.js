// Loaded before everything else, on every page. What widgets need on a page that has no kernel:
// 1. the theme's Font Awesome must not replace the icons of buttons that widgets create later (it breaks Play)
window.FontAwesomeConfig = Object.assign({ observeMutations: false }, window.FontAwesomeConfig);
// 2. ipywidgets 8 calls MathJax 2 by name; on a page with MathJax 3 every label would fail
document.addEventListener("DOMContentLoaded", function () {
  const mathjax = window.MathJax;
  if (mathjax && !mathjax.Hub) mathjax.Hub = { Queue: (call) => mathjax.typesetPromise && mathjax.typesetPromise([call[2]]) };
});
// 3. controls must say what they are called and where they stand; a slider's number is no field to type into, and
//    a slider that was tapped must not ignore the next tap for 0.3 seconds
document.addEventListener("DOMContentLoaded", function () {
  function set(element, attribute, value) {
    if (element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
  }
  function name(slider) {
    const text = (part) => (slider.querySelector(part) || {}).textContent || "";
    for (const handle of slider.querySelectorAll(".noUi-handle")) {
      set(handle, "aria-label", text(".widget-label"));
      set(handle, "aria-valuetext", text(".widget-readout"));
    }
    for (const readout of slider.querySelectorAll("[contenteditable]")) readout.removeAttribute("contenteditable");
  }
  const icons = { "fa-play": "play", "fa-pause": "pause", "fa-stop": "stop" };
  function begin(player) { // it plays once by itself, but not to readers who want no motion
    player.dataset.begun = true;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!still) setTimeout(() => player.querySelector("button").click(), 1500); // when all widgets stand
  }
  function mend() {
    document.querySelectorAll(".widget-play:not([data-begun]):has(button)").forEach(begin);
    document.querySelectorAll(".widget-slider").forEach(name);
    document.querySelectorAll(".noUi-state-tap").forEach((slider) => slider.classList.remove("noUi-state-tap"));
    for (const icon of document.querySelectorAll(".widget-play i"))
      for (const kind in icons) if (icon.classList.contains(kind)) set(icon.parentElement, "aria-label", icons[kind]);
    document.querySelectorAll('.widget-label[title="null"]').forEach((label) => label.removeAttribute("title"));
  }
  const all = { childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ["class"] };
  new MutationObserver(mend).observe(document.body, all);
});
// 4. the theme lets the keyboard scroll what is wide; what comes to sight with a tab has to be measured again
document.addEventListener("change", function (event) {
  if (event.target.matches(".sd-tab-set > input")) window.dispatchEvent(new Event("resize"));
});
// 5. the entries of a bibliography stand in lists, but do not say that they are its items
document.addEventListener("DOMContentLoaded", function () {
  document.querySelectorAll('[role="list"] > [role="doc-biblioentry"]').forEach((entry) => entry.setAttribute("role", "listitem"));
});
