// The widgets' bundle finds its fonts relative to its module ids; require.js reads this when it loads.
(function () {
  const folder = new URL("vendor/widgets/", document.currentScript.src).href;
  const paths = { "@jupyter-widgets/html-manager/dist": folder.slice(0, -1) };
  for (const name of ["base", "controls", "base7", "controls7", "html-manager"])
    paths["@jupyter-widgets/" + name] = folder + name;
  window.require = { paths };
})();
