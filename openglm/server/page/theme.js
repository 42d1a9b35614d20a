// Before the first paint: the theme that the user chose. Not a module, so that it runs before the style applies.
(() => {
  try {
    const { theme } = JSON.parse(localStorage.getItem("openglm.settings") ?? "{}");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // the system's choice holds
  }
})();
