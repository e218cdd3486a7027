// The order of things, the theme, and what follows the width of the window.
function redraw() {
  drawMap();
  drawPanels();
  drawSpectrum();
}

function setUpTheme() {
  const button = $("theme");
  const name = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
    redraw();
  });
  dark.addEventListener("change", () => {
    name();
    redraw();
  });
  printing.addEventListener("change", redraw);
  name();
}

let width = 0;
function follow() {
  if ($("heat").clientWidth === width) return;
  width = $("heat").clientWidth;
  redraw();
}

setUpTheme();
setUpMap();
setUpTable();
setUpSpectrum();
setUpPanels();
new ResizeObserver(follow).observe($("heat"));
document.documentElement.dataset.ready = "true";
