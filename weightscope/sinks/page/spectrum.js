// The eigenvalues of one matrix on logarithmic axes: density and survival function, and their laws.
const PLOT = { width: 460, height: 330, left: 46, right: 12, top: 44, bottom: 38 };
const LAWS = [
  ["tail", "power-law fit"], ["xmin", "xmin, where it starts"], ["erg", "ERG cut"],
  ["bulk", "Marchenko-Pastur bulk"], ["shuffled", "entries shuffled"],
];
const shown = new Map(LAWS.map(([law]) => [law, page.series.length === 1 || law === "tail" || law === "xmin"]));
let chosenRow = 0;

const SUPERSCRIPT = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
const power = (exponent) => `10${exponent < 0 ? "\u207b" : ""}${[...String(Math.abs(exponent))].map((digit) => SUPERSCRIPT[digit]).join("")}`;

function choose(row, { scroll = true } = {}) {
  chosenRow = row;
  $("matrix").value = String(row);
  drawSpectrum();
  markChosen();
  markRow();
  if (scroll) {
    $("spectrum").scrollIntoView({ block: "start" });
    $("spectrum-title").focus({ preventScroll: true });
  }
}

function markChosen() {
  for (const cell of $("heat").querySelectorAll(".cell")) {
    const here = grid.cells[cell.dataset.line][cell.dataset.block].includes(chosenRow);
    cell.classList.toggle("chosen", here);
    if (here) cell.parentNode.append(...[cell, cell.nextElementSibling?.classList.contains("figure") ? cell.nextElementSibling : null].filter(Boolean));
  }
}

function drawSpectrum() {
  const spectra = page.spectra[chosenRow] ?? [];
  drawFacts();
  const advice = columns.get("advice")?.cells[chosenRow] ?? "";
  $("advice").replaceChildren(html("b", {}, names[chosenRow]), ` ${advice ?? ""}`);
  if (!spectra.length) {
    $("density").replaceChildren(html("p", { class: "note" }, `No spectrum to draw. ${whyNone()}`));
    for (const id of ["survival", "keys", "remark"]) $(id).replaceChildren();
    return;
  }
  PLOT.width = Math.max(260, $("density").clientWidth);
  PLOT.height = Math.round(Math.min(380, PLOT.width * 0.62) + 60);
  $("density").replaceChildren(plot(spectra, "density"));
  $("survival").replaceChildren(plot(spectra, "survival"));
  $("keys").replaceChildren(...keys(spectra));
  $("remark").replaceChildren(...remark(spectra).map((text) => html("span", {}, text)));
}

// A page holds the spectra of so many matrices and no more.
function whyNone() {
  if (columns.get("spectral_norm")?.cells[chosenRow] > 0 && page.spectra.some((spectra) => spectra.length))
    return "It is left out to keep this file small: weightscope plot draws it.";
  return columns.get("reason")?.cells[chosenRow] ?? "";
}

function remark(spectra) {
  return spectra.map(({ hidden, n, caption, series }) => {
    const left = hidden ? `; ${hidden} at or below what rounding resolves are not drawn` : "";
    const who = page.series.length > 1 ? `${page.series[series]}: ` : "";
    return `${who}${n} eigenvalues${left}${caption ? `; ${caption}` : ""}.`;
  });
}

// Points of a curve, which is stored in thousandths of a decade.
const points = ([xs, ys], x, y) => xs.map((at, i) => `${x(at / 1000).toFixed(1)} ${y(ys[i] / 1000).toFixed(1)}`);

function plot(spectra, kind) {
  const { width, height, left, right, top, bottom } = PLOT;
  const [lowX, highX] = extent(spectra.flatMap((one) => [one.edges[0] / 1000, (one.edges[0] + one.edges[1] * one.density.length) / 1000]), 0.03);
  const heights = spectra.flatMap((one) => (kind === "density" ? known(one.density) : one.survival[1]).map((value) => value / 1000));
  const [lowY, highY] = extent(kind === "density" ? heights : [...heights, 0], 0.05);
  const x = (value) => left + ((value - lowX) / (highX - lowX)) * (width - left - right);
  const y = (value) => height - bottom - ((value - lowY) / (highY - lowY)) * (height - bottom - top);
  const frame = svg("g", {}, ...decades(lowX, highX, 8).flatMap((tick) => [
    svg("line", { class: "gridline", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }),
    label(x(tick), height - bottom + 15, power(tick), { "text-anchor": "middle" })]),
  ...decades(lowY, highY, 7).flatMap((tick) => [
    svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
    label(left - 6, y(tick) + 4, power(tick), { "text-anchor": "end" })]),
  label(left + (width - left - right) / 2, height - 6, "eigenvalue of W\u1d40W", { "text-anchor": "middle" }),
  label(left, 12, kind === "density" ? "density" : "share of eigenvalues at or above", { class: "strong" }));
  const clip = svg("clipPath", { id: `clip-${kind}` }, svg("rect", { x: left, y: top, width: width - left - right, height: height - top - bottom }));
  const inside = svg("g", { "clip-path": `url(#clip-${kind})` });
  spectra.forEach((one) => inside.append(...sample(one, kind, x, y, spectra.length)));
  spectra.forEach((one) => inside.append(...laws(one, kind, x, y, spectra.length)));
  const axis = svg("path", { class: "axis", fill: "none", d: `M${left} ${top}V${height - bottom}H${width - right}` });
  const what = kind === "density" ? "Spectral density" : "Share of eigenvalues at or above";
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${what} of ${names[chosenRow]}, logarithmic axes. ${remark(spectra).join(" ")}` },
    clip, frame, inside, axis, ...cuts(spectra, x, top, spectra.length));
}

function extent(values, share) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low) * share || 0.1;
  return [low - pad, high + pad];
}
function decades(low, high, most) {
  const every = Math.max(1, Math.ceil((high - low) / most)), ticks = [];
  for (let tick = Math.ceil(low / every) * every; tick <= high; tick += every) ticks.push(tick);
  return ticks;
}

// The eigenvalues themselves: filled for one spectrum, outlined where several are overlaid.
function sample(one, kind, x, y, count) {
  const colour = count > 1 ? seriesColour(one.series, page.series.length) : null;
  if (kind === "survival") {
    const dots = points(one.survival, x, y).map((point) => point.split(" "));
    return dots.map(([cx, cy]) => svg("circle", { class: colour ? null : "points", cx, cy, r: 2, fill: colour }));
  }
  const [start, step] = one.edges, floor = PLOT.height;
  let path = "", open = false;
  one.density.forEach((value, i) => {
    const [a, b] = [x((start + i * step) / 1000).toFixed(1), x((start + (i + 1) * step) / 1000).toFixed(1)];
    const top = value === null ? floor : y(value / 1000).toFixed(1);
    path += open ? `V${top}H${b}` : `M${a} ${floor}V${top}H${b}`;
    open = true;
  });
  path += `V${floor}`;
  return [svg("path", colour ? { class: "outline", d: path, stroke: colour } : { class: "bars", d: `${path}Z` })];
}

function laws(one, kind, x, y, count) {
  return ["bulk", "shuffled", "tail"].filter((law) => one[law] && shown.get(law)).map((law) => {
    const path = svg("path", { class: `law ${law}`, d: `M${points(one[law][kind], x, y).join("L")}` });
    if (count > 1) path.style.stroke = seriesColour(one.series, page.series.length);
    return path;
  });
}

// Vertical lines with their names above the frame, one row each so that they never collide.
function cuts(spectra, x, top, count) {
  const found = spectra.flatMap((one) => [["xmin", "xmin", one.xmin, 26], ["erg", "ERG cut", one.erg, 38]].map((cut) => [...cut, one.series]));
  return found.filter(([law, , at]) => at !== null && shown.get(law)).flatMap(([law, name, at, row, series]) => {
    const line = svg("line", { class: `law ${law}`, x1: x(at / 1000), x2: x(at / 1000), y1: top - 2, y2: PLOT.height - PLOT.bottom });
    if (count > 1) line.style.stroke = seriesColour(series, page.series.length);
    const near = x(at / 1000) > PLOT.width - 60;
    return count > 1 ? [line] : [line, label(x(at / 1000) + (near ? -4 : 4), row, name, { "text-anchor": near ? "end" : "start" })];
  });
}

function keys(spectra) {
  const several = spectra.length > 1;
  const samples = several
    ? spectra.map(({ series }) => html("span", {}, swatch("line", seriesColour(series, page.series.length)), page.series[series]))
    : [html("span", {}, swatch("bars"), "eigenvalues")];
  const there = LAWS.filter(([law]) => spectra.some((one) => one[law] !== null && one[law] !== undefined));
  return samples.concat(there.map(([law, text]) => {
    const box = html("input", { type: "checkbox", "data-law": law });
    box.checked = shown.get(law);
    return html("label", {}, box, swatch(several && law === "tail" ? "plain" : several && law === "xmin" ? "mark" : law), text);
  }));
}

function drawFacts() {
  const facts = page.facts.map((name) => columns.get(name)).filter((column) => column && column.cells[chosenRow] !== null);
  $("facts").replaceChildren(...facts.flatMap((column) => [
    tipped(html("dt", { "data-tip": true }, column.name), column.tip), html("dd", {}, short(column.cells[chosenRow], column.kind))]));
}

function setUpSpectrum() {
  const options = names.map((name, row) => html("option", { value: row }, name));
  $("matrix").append(...options);
  $("matrix").addEventListener("change", (event) => choose(Number(event.target.value), { scroll: false }));
  const step = (by) => () => choose((chosenRow + by + names.length) % names.length, { scroll: false });
  $("previous").addEventListener("click", step(-1));
  $("next").addEventListener("click", step(1));
  $("keys").addEventListener("change", (event) => {
    const { law } = event.target.dataset;
    shown.set(law, event.target.checked);
    drawSpectrum();
    $("keys").querySelector(`[data-law="${law}"]`)?.focus();
  });
  // the first that is part of a block says more than an embedding
  const placed = [...grid.cells.flat(2), ...names.keys()];
  if (names.length) choose(placed.find((row) => page.spectra[row].length) ?? 0, { scroll: false });
}
