// The heat map over block and module and, on the same lines, the distribution per module.
const LINE = 26, MOST_DOTS = 400;
const grid = page.grid;
let chosenColumn = columns.get(page.first) ?? [...columns.values()].find((column) => column.kind !== "text");

// Width of a text of a chart, in pixels.
const ruler = document.createElement("canvas").getContext("2d");
ruler.font = `11px ${getComputedStyle(document.body).fontFamily}`;
const widthOf = (text) => ruler.measureText(text).width;

function drawMap() {
  const column = chosenColumn, values = known(column.cells), holder = $("heat");
  $("meaning").replaceChildren(html("b", {}, column.name), ` ${column.tip.split("\n").slice(0, 2).join(" ")}`);
  if (!values.length) return holder.replaceChildren(html("p", { class: "note" }, "No matrix has this figure."));
  const width = Math.max(holder.clientWidth, 280), narrow = width < 640;
  const left = Math.min(Math.max(...grid.labels.map((text) => widthOf(ending(text)))) + 14, width * 0.36);
  const room = narrow ? width - left : Math.max((width - left) * 0.6, width - left - 460);
  const cell = Math.min(46, Math.max(3, room / grid.blocks.length));
  const kind = scaleOf(values), paint = colours(kind, values);
  const height = grid.labels.length * LINE;
  const heat = svg("g", { role: "group", "aria-label": `${column.name} by block and module` });
  grid.labels.forEach((text, line) => heat.append(named(text, left - 10, line * LINE + 17, left)));
  const cells = grid.cells.flatMap((places, line) =>
    places.map((rows, block) => rows.length && place(rows, { line, block, column, paint, x: left + block * cell, cell })));
  heat.append(...cells.filter(Boolean).flat());
  heat.append(...blockLabels(left, cell, height + 14));
  const legend = ramp(paint, left, height + 30, Math.min(200, Math.max(90, room - 20)), column);
  const gap = narrow ? 0 : left + grid.blocks.length * cell + 36;
  const spread = narrow
    ? svg("g", { transform: `translate(0 ${height + 80})` }, ...grid.labels.map((text, line) => named(text, left - 10, line * LINE + 17, left)), spreads(column, kind, left, width - 14))
    : spreads(column, kind, gap, width - 14);
  const total = narrow ? 2 * height + 110 : height + 66;
  holder.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${total}`, role: "group", "aria-label": `Map of ${column.name}` }, heat, legend, spread));
  const first = holder.querySelector(".cell");
  if (first) first.setAttribute("tabindex", "0");
  markChosen();
}

// Names are as long as they like; what tells modules apart is at their end.
const ending = (text) => (text.length > 80 ? `\u2026${text.slice(-79)}` : text);

function named(text, x, y, room) {
  let shown = ending(text);
  while (widthOf(shown) > room - 10 && shown.length > 2) shown = `\u2026${shown.slice(2)}`;
  return tipped(label(x, y, shown, { "text-anchor": "end", class: "strong" }), shown === text ? "" : text);
}

// One place: its rectangle and, where there is room, its value. Experts of one place are their median.
function place(rows, { line, block, column, paint, x, cell }) {
  const values = known(rows.map((row) => column.cells[row]));
  const value = values.length ? median(values) : null;
  const colour = value === null ? null : paint.of(value);
  const where = grid.blocks[block] === null ? "outside the blocks" : `block ${grid.blocks[block]}`;
  const many = rows.length > 1 ? `, median of ${values.length}` : "";
  const text = `${rows.length > 1 ? grid.labels[line] : names[rows[0]]}\n${where}: ${column.name} ${value === null ? "empty" : short(value)}${many}`;
  const box = svg("rect", {
    class: value === null ? "cell none" : "cell", x, y: line * LINE + 1, width: cell, height: LINE - 2, rx: cell > 12 ? 3 : 0,
    fill: colour && rgb(colour), tabindex: "-1", role: "button", "aria-label": text.replace("\n", ", "),
    "data-line": line, "data-block": block, "data-row": rows[0],
  });
  tipped(box, text);
  const said = short(value);
  if (value === null || cell < widthOf(said) + 4) return [box];
  const figure = label(x + cell / 2, line * LINE + 17, said, { "text-anchor": "middle", "pointer-events": "none", class: "figure" });
  figure.style.fill = readable(colour);
  return [box, figure];
}

function blockLabels(left, cell, y) {
  const every = Math.ceil(24 / cell), inside = grid.blocks.some((block) => block !== null);
  const texts = grid.blocks.map((block, i) => (block === null ? "\u2013" : i % every === 0 ? String(block) : ""));
  return [
    label(left - 10, y, inside ? "block" : "", { "text-anchor": "end" }),
    ...texts.map((text, i) => label(left + (i + 0.5) * cell, y, text, { "text-anchor": "middle" }))];
}

function ramp(paint, x, y, width, column) {
  const group = svg("g", { "aria-hidden": "true" }), { ends } = paint, steps = 48;
  if (ends.length > 1)
    for (let i = 0; i < steps; i++) {
      const share = i / (steps - 1);
      const log = ends[0] > 0 && Math.abs(ends[1] / Math.sqrt(ends[0] * ends[2]) - 1) < 1e-9;
      const value = log ? ends[0] * (ends[2] / ends[0]) ** share : ends[0] + share * (ends[2] - ends[0]);
      group.append(svg("rect", { x: x + (i * width) / steps, y, width: width / steps + 0.6, height: 7, fill: rgb(paint.of(value)) }));
    }
  ends.forEach((end, i) => {
    const share = ends.length === 1 ? 0 : i / (ends.length - 1);
    group.append(label(x + share * width, y + 20, short(end, column.kind === "integer" && i !== 1 ? "integer" : "number"), { "text-anchor": ["start", "middle", "end"][i] }));
  });
  return group;
}

// Per module: every value a dot, the quartiles a bar, the median a line.
function spreads(column, kind, left, right) {
  const group = svg("g", { role: "group", "aria-label": `Distribution of ${column.name} per module` });
  const values = known(column.cells), place = scale(kind === "log" ? "log" : "linear", values, left, right, 5);
  const height = grid.labels.length * LINE;
  for (const tick of place.ticks)
    group.append(
      svg("line", { class: "gridline", x1: place(tick), x2: place(tick), y1: 0, y2: height }),
      label(place(tick), height + 14, tickText(tick), { "text-anchor": "middle" }));
  for (const [mark, said] of page.marks[column.name] ?? [])
    if (place(mark) > left && place(mark) < right)
      group.append(
        svg("line", { class: "markline", x1: place(mark), x2: place(mark), y1: 0, y2: height }),
        tipped(label(place(mark) + 4, 9, tickText(mark)), said));
  grid.cells.forEach((places, line) => {
    const rows = places.flat().filter((row) => typeof column.cells[row] === "number");
    if (!rows.length) return;
    const sorted = rows.map((row) => column.cells[row]).sort((a, b) => a - b), y = line * LINE + LINE / 2;
    const [low, lower, middle, upper, high] = [0, 0.25, 0.5, 0.75, 1].map((share) => place(quantile(sorted, share)));
    group.append(svg("line", { class: "range", x1: low, x2: high, y1: y, y2: y }));
    if (rows.length > 2) group.append(svg("rect", { class: "box", x: lower, width: Math.max(upper - lower, 0.5), y: y - 4, height: 8, rx: 2 }));
    if (rows.length <= MOST_DOTS)
      for (const row of rows) {
        const dot = svg("circle", { class: "dot", cx: place(column.cells[row]), cy: y, r: 3, "data-row": row });
        group.append(tipped(dot, `${names[row]}\n${column.name} ${short(column.cells[row], column.kind)}`));
      }
    group.append(svg("line", { class: "median", x1: middle, x2: middle, y1: y - 7, y2: y + 7 }));
  });
  return group;
}

function chooseColumn(name) {
  chosenColumn = columns.get(name) ?? chosenColumn;
  $("metric").value = chosenColumn.name;
  drawMap();
}

// Arrow keys walk over the map; Enter and Space show the spectrum.
function walkMap(event) {
  const from = event.target;
  if (!from.classList?.contains("cell")) return;
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    return choose(Number(from.dataset.row));
  }
  if (!step) return;
  event.preventDefault();
  let line = Number(from.dataset.line), block = Number(from.dataset.block);
  for (;;) {
    [line, block] = [line + step[0], block + step[1]];
    if (!grid.cells[line] || !grid.cells[line][block]) return;
    const next = $("heat").querySelector(`.cell[data-line="${line}"][data-block="${block}"]`);
    if (next) {
      from.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      return next.focus();
    }
  }
}

function setUpMap() {
  const groups = new Map();
  for (const column of columns.values())
    if (column.kind !== "text" && known(column.cells).length) {
      if (!groups.has(column.group)) groups.set(column.group, html("optgroup", { label: column.group }));
      groups.get(column.group).append(html("option", { value: column.name }, column.name));
    }
  $("metric").append(...groups.values());
  $("metric").addEventListener("change", (event) => chooseColumn(event.target.value));
  $("heat").addEventListener("keydown", walkMap);
  $("heat").addEventListener("click", (event) => event.target.dataset?.row !== undefined && choose(Number(event.target.dataset.row)));
  if (chosenColumn) chooseColumn(chosenColumn.name);
}
