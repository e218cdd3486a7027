// Small multiples: one panel per module, a line per series or matrix, and the range of noise.
const PANEL = { width: 260, height: 128, left: 38, right: 8, top: 8, bottom: 20 };
const NARROWEST = 160, GAP = 18;

function seriesColour(index, count) {
  if (count <= 2) return `var(--series-${index})`;
  return rgb(blend(isDark() ? VIRIDIS.slice(2) : VIRIDIS.slice(0, 9), index / (count - 1)));
}

function drawPanels() {
  $("panels").replaceChildren(...page.panels.flatMap((chart) => {
    const column = columns.get(chart.name);
    const title = tipped(html("h3", { tabindex: "0", "data-tip": true }, chart.name), chart.tip);
    return [title, html("p", { class: "note" }, chart.meaning), panelKeys(chart, column), trellis(chart)];
  }));
}

// As many panels in a line as fit, and as many lines as leave them alike.
function trellis(chart) {
  const room = Math.max($("panels").clientWidth, NARROWEST), most = Math.max(1, Math.floor((room + GAP) / (NARROWEST + GAP)));
  const lines = Math.ceil(chart.panels.length / most), count = Math.max(Math.ceil(chart.panels.length / lines), Math.min(2, most));
  PANEL.width = Math.min(420, Math.floor((room - GAP * (count - 1)) / count));
  PANEL.height = Math.round(Math.min(170, Math.max(112, PANEL.width * 0.5)));
  const box = html("div", { class: "trellis" }, ...drawnPanels(chart));
  box.style.gridTemplateColumns = `repeat(${count}, ${PANEL.width}px)`;
  return box;
}

function drawnPanels(chart) {
  const { width, height, left, right, top, bottom } = PANEL;
  const drawn = chart.panels.flatMap((panel) => [
    ...panel.lines.flatMap((line) => line.y), ...(panel.noise ? [...panel.noise.low, ...panel.noise.high] : [])]);
  const xs = chart.panels.flatMap((panel) => panel.lines.flatMap((line) => line.x));
  const y = scale(chart.scale === "log" ? "log" : "linear", known(drawn), height - bottom, top, 4);
  const x = scale("linear", xs, left, width - right, 5);
  return chart.panels.map((panel) => {
    const inside = svg("g");
    for (const tick of y.ticks)
      inside.append(
        svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        label(left - 6, y(tick) + 4, tickText(tick), { "text-anchor": "end" }));
    for (const tick of x.ticks.filter(Number.isInteger)) inside.append(label(x(tick), height - 4, tickText(tick), { "text-anchor": "middle" }));
    if (panel.noise) inside.append(...noise(panel.noise, x, y));
    for (const [mark] of chart.marks)
      if (y(mark) > top && y(mark) < height - bottom)
        inside.append(svg("line", { class: "markline", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
    panel.lines.forEach((line, index) => inside.append(...drawLine(line, index, { panel, chart, x, y })));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(chart, panel) }, inside);
    return html("figure", {}, html("figcaption", {}, panel.label), picture);
  });
}

function spoken(chart, panel) {
  const values = known(panel.lines.flatMap((line) => line.y));
  const range = values.length ? `from ${short(Math.min(...values))} to ${short(Math.max(...values))}` : "empty";
  return `${chart.name} of ${panel.label} over ${chart.axis}, ${range}`;
}

function noise({ x: blocks, low, high }, x, y) {
  const kept = blocks.map((block, i) => [x(block), low[i], high[i]]).filter(([, a, b]) => a !== null && b !== null);
  if (!kept.length) return [];
  if (kept.length === 1) kept.push([kept[0][0] + 4, ...kept[0].slice(1)]), (kept[0] = [kept[1][0] - 8, ...kept[0].slice(1)]);
  const upper = kept.map(([at, , b]) => `${at} ${y(b)}`), lower = kept.map(([at, a]) => `${at} ${y(a)}`);
  if (kept.every(([, a, b]) => a === b)) return [svg("path", { class: "noise-line", d: `M${upper.join("L")}` })];
  return [svg("path", { class: "noise", d: `M${upper.join("L")}L${lower.reverse().join("L")}Z` })];
}

function drawLine(line, index, { panel, chart, x, y }) {
  const count = panel.lines.length, colour = seriesColour(index, count), marks = [];
  let path = "";
  line.x.forEach((at, i) => {
    const value = line.y[i];
    if (value === null) return;
    path += `${i > 0 && line.y[i - 1] !== null ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    const beside = panel.noise && panel.noise.low[i] !== null ? noiseText(panel.noise, i) : "";
    const knot = svg("circle", { class: "knot", cx: x(at), cy: y(value), r: count > 8 || line.x.length > 24 ? 1.7 : 2.6, stroke: colour, fill: index % 2 && count === 2 ? "var(--paper)" : colour });
    const row = rowOf(panel, line, at);
    if (row !== undefined) knot.dataset.row = row;
    marks.push(tipped(knot, `${count > 1 ? `${line.label}\n` : ""}${chart.axis} ${at}: ${chart.name} ${short(value)}${beside}`));
  });
  return [svg("path", { class: "line", d: path, stroke: colour }), ...marks];
}

function noiseText({ low, high }, i) {
  return low[i] === high[i] ? `\nnoise of this shape ${short(low[i])}` : `\nnoise of this shape ${short(low[i])} to ${short(high[i])}`;
}

function rowOf(panel, line, at) {
  const named = names.indexOf(line.label);
  if (named >= 0) return named;
  return grid.cells[grid.modules.indexOf(panel.module)]?.[grid.blocks.indexOf(at)]?.[0];
}

function swatch(kind, colour) {
  const lines = {
    line: [svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2, stroke: colour }), svg("circle", { cx: 13, cy: 5, r: 3, fill: colour })],
    hollow: [svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2, stroke: colour }), svg("circle", { cx: 13, cy: 5, r: 3, fill: "var(--paper)", stroke: colour, "stroke-width": 1.5 })],
    noise: [svg("rect", { class: "noise", width: 26, height: 10 })],
    plain: [svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2, stroke: "var(--soft)" })],
    typical: [svg("line", { class: "noise-line", x1: 0, x2: 26, y1: 5, y2: 5 })],
    mark: [svg("line", { class: "markline", x1: 0, x2: 26, y1: 5, y2: 5 })],
    bars: [svg("rect", { class: "bars", width: 26, height: 10 })],
  };
  return svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, ...(lines[kind] ?? [svg("line", { class: `law ${kind}`, x1: 0, x2: 26, y1: 5, y2: 5 })]));
}

function panelKeys(chart) {
  const keys = html("div", { class: "keys" }), key = (kind, text, colour) => keys.append(html("span", {}, swatch(kind, colour), text));
  const lines = chart.panels[0].lines, noises = chart.panels.map((panel) => panel.noise).filter(Boolean);
  if (chart.axis === "block" && lines.length > 1)
    lines.forEach((line, i) => key(i === 1 && lines.length === 2 ? "hollow" : "line", line.label, seriesColour(i, lines.length)));
  if (chart.axis === "step") keys.append(html("span", {}, "one line per matrix, the first blocks darkest"));
  if (noises.some(({ low, high }) => low.some((value, i) => value !== high[i]))) key("noise", "95 % of Gaussian noise of the same shape");
  else if (noises.length) key("typical", "Gaussian noise of the same shape, typically");
  const values = known([...chart.panels.flatMap((panel) => panel.lines.flatMap((line) => line.y)), ...noises.flatMap(({ low, high }) => [...low, ...high])]);
  const reached = (mark) => mark >= Math.min(...values) && mark <= Math.max(...values);
  for (const [mark, text] of chart.marks.filter(([mark]) => reached(mark))) key("mark", `${text}${mark === 0 ? "" : ` ${tickText(mark)}`}`);
  return keys;
}

function setUpPanels() {
  $("panels").addEventListener("click", (event) => event.target.dataset?.row !== undefined && choose(Number(event.target.dataset.row)));
  drawPanels();
}
