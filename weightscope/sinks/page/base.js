// Elements, numbers and scales. Text reaches the page through textContent alone, never as markup.
const page = JSON.parse(document.getElementById("data").textContent);
const columns = new Map(page.columns.map((column, index) => [column.name, { ...column, cells: page.cells[index] }]));
const names = page.cells[0];
const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const label = (x, y, text, more = {}) => svg("text", { x, y, ...more }, text);

// Three significant digits, as the command line prints them.
function short(value, kind = "number") {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  const exponential = () => value.toExponential(2).replace("+", "");
  if (kind === "integer" || (Number.isInteger(value) && size < 1e4)) return size < 1e7 ? String(value) : exponential();
  if (size >= 1e5 || size < 1e-3) return exponential();
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
}

// The same for ticks, whose last zeros say nothing.
const tickText = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? short(value) : String(Number(value.toPrecision(6))));

const known = (values) => values.filter((value) => typeof value === "number");
function scaleOf(values) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low < 0 && high > 0) return "diverging";
  return low > 0 && high > 10 * low ? "log" : "linear";
}
function quantile(sorted, share) {
  const place = share * (sorted.length - 1), below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}
const median = (values) => quantile([...values].sort((a, b) => a - b), 0.5);

// A map from values to pixels, with its ticks.
function scale(kind, values, from, to, wanted = 5) {
  let low = Math.min(...values), high = Math.max(...values);
  const warp = kind === "log" ? Math.log10 : (value) => value;
  const unwarp = kind === "log" ? (value) => 10 ** value : (value) => value;
  let start = warp(low), end = warp(high);
  const pad = (end - start) * 0.04 || Math.abs(start) * 0.05 || 0.5;
  start -= pad;
  end += pad;
  const place = (value) => from + ((warp(value) - start) / (end - start)) * (to - from);
  place.ticks = (kind === "log" ? logTicks : linearTicks)(unwarp(start), unwarp(end), wanted);
  return place;
}
function linearTicks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}
function logTicks(low, high, wanted) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const between = (factors, every) => {
    const ticks = [];
    for (let power = first; power <= last; power += every)
      for (const factor of factors) {
        const tick = Number((factor * 10 ** power).toPrecision(6));
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    return ticks;
  };
  const fine = between([1, 2, 5], 1);
  if (fine.length <= wanted + 1) return fine.length >= 2 ? fine : linearTicks(low, high, wanted);
  return between([1], Math.max(1, Math.ceil((last - first) / wanted)));
}

// Viridis, and blue to orange through the paper: both are told apart without red and green.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const DIVERGING = {
  light: ["#0b4f8a", "#4d8fc4", "#a9cbe3", "#f3f4f5", "#f2c493", "#dd8a3c", "#a04f00"],
  dark: ["#8cc4ef", "#4d8fc4", "#2d5578", "#2a2f35", "#7a4d20", "#dd8a3c", "#ffc382"],
};
function blend(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(place), stops.length - 2);
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const a = parts(stops[i]), b = parts(stops[i + 1]);
  return a.map((channel, k) => Math.round(channel + (place - i) * (b[k] - channel)));
}
const rgb = (channels) => `rgb(${channels.join(",")})`;
const readable = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff");
function colours(kind, values) {
  const low = Math.min(...values), high = Math.max(...values);
  if (kind === "diverging") {
    const reach = Math.max(-low, high) || 1;
    return { of: (value) => blend(DIVERGING[isDark() ? "dark" : "light"], 0.5 + value / reach / 2), ends: [-reach, 0, reach] };
  }
  const warp = kind === "log" ? Math.log : (value) => value;
  const a = warp(low), span = warp(high) - a || 1;
  const middle = kind === "log" ? Math.sqrt(low * high) : (low + high) / 2;
  return { of: (value) => blend(VIRIDIS, (warp(value) - a) / span), ends: low === high ? [low] : [low, middle, high] };
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const printing = window.matchMedia("print");
function isDark() {
  return !printing.matches && (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
}

// What is told of a point, a cell or a column while it is pointed at or has the focus.
const tips = new WeakMap();
function tipped(node, text) {
  tips.set(node, text);
  return node;
}
function showTip(event) {
  const node = event.target instanceof Element ? event.target.closest("[data-tip]") ?? event.target : null;
  const text = node && tips.get(node);
  if (!text) return;
  const tip = $("tip"), box = node.getBoundingClientRect();
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + tip.offsetHeight + 12 < window.innerHeight;
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + window.scrollY}px`;
  if (event.type === "focusin") node.setAttribute("aria-describedby", "tip");
}
function hideTip() {
  $("tip").hidden = true;
}
for (const type of ["pointerover", "focusin"]) document.addEventListener(type, showTip);
for (const type of ["pointerout", "focusout"]) document.addEventListener(type, hideTip);
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
