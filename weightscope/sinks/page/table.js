// The table: sorted by a column, filtered by words and comparisons, drawn a screenful at a time.
const AT_ONCE = 500;
const order = { column: null, rising: true };
let limit = AT_ONCE;

function wantedColumns() {
  const main = page.main.map((name) => columns.get(name)).filter(Boolean);
  return $("all").checked ? [...new Set([...main, ...columns.values()])] : main;
}

const COMPARISON = /^([A-Za-z_][\w]*)(<=|>=|!=|<|>|=)(.+)$/;
const HOLDS = {
  "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
  "=": (a, b) => a === b, "!=": (a, b) => a !== b,
};
// A row is kept where it holds every word and fits every comparison; an empty cell fits none.
function matcher(text) {
  const tests = text.trim().split(/\s+/).filter(Boolean).map((term) => {
    const found = COMPARISON.exec(term), column = found && columns.get(found[1]);
    if (column) {
      const wanted = column.kind === "text" ? found[3] : Number(found[3]);
      return (row) => column.cells[row] !== null && HOLDS[found[2]](column.cells[row], wanted);
    }
    const word = term.toLowerCase();
    return (row) => textOf(row).includes(word);
  });
  return (row) => tests.every((test) => test(row));
}
const texts = [];
function textOf(row) {
  texts[row] ??= [...columns.values()].filter((column) => column.kind === "text" && column.name !== "advice")
    .map((column) => column.cells[row] ?? "").join(" ").toLowerCase();
  return texts[row];
}

function sortedRows() {
  const rows = names.map((_, row) => row).filter(matcher($("filter").value));
  if (!order.column) return rows;
  const { cells } = order.column, sign = order.rising ? 1 : -1;
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  return rows.sort((a, b) => {
    if (cells[a] === null || cells[b] === null) return (cells[a] === null) - (cells[b] === null) || a - b;
    return sign * compare(cells[a], cells[b]) || a - b;
  });
}

function drawTable() {
  const shownColumns = wantedColumns(), rows = sortedRows(), drawn = rows.slice(0, limit);
  const head = html("thead", {}, html("tr", {}, ...shownColumns.map(heading)));
  const body = html("tbody", {}, ...drawn.map((row) => html("tr", { "data-row": row, "aria-current": row === chosenRow && "true" }, ...shownColumns.map((column, i) => cell(column, row, i)))));
  $("rows").replaceChildren(head, body);
  $("counted").textContent = rows.length === names.length ? `${rows.length} rows` : `${rows.length} of ${names.length} rows`;
  $("more").hidden = drawn.length === rows.length;
  $("more").textContent = `Show ${Math.min(AT_ONCE, rows.length - drawn.length)} more of ${rows.length} rows`;
}

function heading(column) {
  const sorted = order.column?.name === column.name && (order.rising ? "ascending" : "descending");
  const button = html("button", { type: "button", "data-column": column.name, "data-tip": true }, column.name);
  tips.set(button, column.tip);
  return html("th", { scope: "col", "aria-sort": sorted, class: column.kind === "text" ? null : "number" }, button);
}

const STYLES = { "very-heavy-tailed": "extreme", "heavy-tailed": "good", "weakly-heavy-tailed": "warn", "random-like": "warn", LRC: "strong" };
function cell(column, row, index) {
  const value = column.cells[row], text = short(value, column.kind);
  if (index === 0) return html("th", { scope: "row" }, html("button", { type: "button", "data-row": row, title: text }, text));
  if (column.kind !== "text") return html("td", { class: "number" }, text);
  return html("td", { class: STYLES[value] ?? (column.name === "status" && value !== "ok" ? "bad" : null), title: text.length > 40 ? text : null }, text);
}

function markRow() {
  for (const row of $("rows").querySelectorAll("tr[data-row]"))
    if (Number(row.dataset.row) === chosenRow) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
}

function sortBy(name) {
  const column = columns.get(name);
  // figures are sought from the largest down, words from the first up
  if (order.column?.name === name) order.rising = !order.rising;
  else Object.assign(order, { column, rising: column.kind === "text" });
  drawTable();
  $("rows").querySelector(`button[data-column="${name}"]`)?.focus();
}

function setUpTable() {
  $("rows").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.column) sortBy(button.dataset.column);
    if (button?.dataset.row) choose(Number(button.dataset.row));
  });
  $("filter").addEventListener("input", () => {
    limit = AT_ONCE;
    drawTable();
  });
  $("all").addEventListener("change", drawTable);
  $("more").addEventListener("click", () => {
    limit += AT_ONCE;
    drawTable();
  });
  drawTable();
}
