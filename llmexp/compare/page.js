"use strict";
// What a run wrote reaches the page as text nodes only: nothing here makes HTML from data.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const view = { x: "step", smooth: 0, logx: false, logy: false, on: new Set(data.runs.keys()), hot: null };
const AXES = { step: "steps", tokens: "tokens", seconds: "time" };
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const COLOURS = 7;
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [250, 56, 10, 8, 24];
const colour = (run) => `var(--c${run % COLOURS})`;
const dash = (run) => DASHES[Math.floor(run / COLOURS) % DASHES.length];

function element(tag, settings = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function shape(tag, settings, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(settings)) made.setAttribute(name, value);
  if (parent) parent.append(made);
  return made;
}

function key(run, value) {
  const mark = shape("svg", { width: 18, height: 10, "aria-hidden": "true" });
  shape("line", { x1: 0, y1: 5, x2: 18, y2: 5, stroke: colour(run), "stroke-width": 3, "stroke-dasharray": dash(run) }, mark);
  const parts = [mark, element("span", { textContent: data.runs[run].name })];
  if (value !== undefined) parts.push(element("b", { textContent: value }));
  return element("div", { className: "key" }, ...parts);
}

// -- numbers -------------------------------------------------------------------------------------
function short(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

// four significant digits, zeros at the end included: as a column of a table wants them
function exact(value) {
  const size = Math.abs(value ?? 0);
  return size >= 1e-3 && size < 1000 ? value.toPrecision(4) : short(value);
}

function place(value, axis) {
  if (axis === "tokens") {
    const unit = [[1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => Math.abs(value) >= size);
    return unit ? `${Number((value / unit[0]).toPrecision(3))}${unit[1]}` : String(Math.round(value));
  }
  if (axis === "seconds") {
    const [h, m, s] = [Math.floor(value / 3600), Math.floor(value / 60) % 60, Math.floor(value % 60)];
    if (value < 60) return `${Number(value.toPrecision(3))} s`;
    return h ? `${h}:${String(m).padStart(2, "0")} h` : `${m}:${String(s).padStart(2, "0")} min`;
  }
  return Math.round(value).toLocaleString("en");
}

function ticks(low, high, log, count) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    }
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 1) return inside.filter((_, at) => at % Math.ceil(inside.length / (count + 2)) === 0);
  }
  const rough = (high - low) / count || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((part) => part * size >= rough) * size;
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function smoothed(values, weight) {
  let [sum, norm] = [0, 0];
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

// -- curves --------------------------------------------------------------------------------------
function chart(metric) {
  const picture = shape("svg", { height: HEIGHT, role: "img", "aria-label": metric.title });
  const tip = element("div", { className: "tip" });
  const caption = element("figcaption", {}, element("h3", { textContent: metric.title }), element("span", { className: "unit", textContent: metric.unit }));
  $("charts").append(element("figure", { id: metric.key }, caption, picture, tip));
  const made = { metric, picture, tip, lines: [] };
  picture.addEventListener("pointermove", (event) => hover(made, event));
  picture.addEventListener("pointerleave", () => leave(made));
  return made;
}

function seriesOf(metric, run) {
  const curve = data.runs[run].curves[metric.key];
  const [x, y] = [[], []];
  curve.value.forEach((value, at) => {
    const where = curve[view.x][at];
    if (value === null || where === null) return;
    if ((view.logy && value <= 0) || (view.logx && where <= 0)) return;
    x.push(where); y.push(value);
  });
  const calm = metric.key !== "eval/loss" && view.smooth > 0 ? smoothed(y, view.smooth) : y;
  return { run, x, y: calm, raw: calm === y ? null : y };
}

function range(values, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (high - low <= 1e-9 * Math.abs(high)) { const room = Math.abs(low) * 0.05 || 1; return log ? [low / 1.1, high * 1.1] : [low - room, high + room]; }
  return [low, high];
}

function scale([low, high], from, to, log) {
  const turn = log ? Math.log : (value) => value;
  const [a, b] = [turn(low), turn(high)];
  return (value) => from + ((turn(value) - a) / (b - a)) * (to - from);
}

function draw(made) {
  const { metric, picture } = made;
  const width = picture.clientWidth || 600;
  picture.replaceChildren();
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  made.lines = [...view.on].sort((a, b) => a - b).map((run) => seriesOf(metric, run)).filter((line) => line.x.length);
  if (!made.lines.length) {
    shape("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, picture).textContent = "nothing to show";
    return;
  }
  const across = range(made.lines.flatMap((line) => line.x), view.logx);
  const up = range(made.lines.flatMap((line) => line.y), view.logy);
  made.x = scale(across, LEFT, width - RIGHT, view.logx);
  made.y = scale(up, HEIGHT - BOTTOM, TOP, view.logy);
  axes(made, across, up, width);
  const inner = shape("svg", { x: 0, y: 0, width: width, height: HEIGHT - BOTTOM + 3 }, picture);
  for (const line of made.lines) {
    if (line.raw) stroke(made, line, line.raw, "curve raw", inner);
    stroke(made, line, line.y, "curve", inner);
    if (line.x.length <= 60 && metric.key === "eval/loss") {
      line.x.forEach((x, at) => shape("circle", { cx: made.x(x), cy: made.y(line.y[at]), r: 3, fill: colour(line.run), class: away(line.run) }, inner));
    }
  }
  made.cross = shape("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM }, picture);
}

function axes(made, across, up, width) {
  for (const value of ticks(...up, view.logy, 5)) {
    const y = made.y(value);
    shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }, made.picture);
    shape("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, made.picture).textContent = short(value);
  }
  for (const value of ticks(...across, view.logx, Math.max(2, Math.floor(width / 110)))) {
    const text = shape("text", { x: made.x(value), y: HEIGHT - 6, "text-anchor": "middle" }, made.picture);
    text.textContent = place(value, view.x);
  }
}

const away = (run) => (view.hot !== null && view.hot !== run ? "away" : "");

function stroke(made, line, values, name, parent) {
  const points = values.map((value, at) => `${made.x(line.x[at]).toFixed(1)} ${made.y(value).toFixed(1)}`);
  shape("path", { class: `${name} ${away(line.run)}`, d: `M${points.join("L")}`, stroke: colour(line.run), "stroke-dasharray": dash(line.run) }, parent);
}

function nearest(values, goal) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < goal) low = middle; else high = middle;
  }
  return Math.abs(values[low] - goal) <= Math.abs(values[high] - goal) ? low : high;
}

function hover(made, event) {
  if (!made.lines.length) return;
  const box = made.picture.getBoundingClientRect();
  const at = event.clientX - box.left;
  let best = null;
  for (const line of made.lines) {
    for (const x of line.x) {
      const far = Math.abs(made.x(x) - at);
      if (best === null || far < best.far) best = { far, x };
    }
  }
  const found = made.lines.map((line) => ({ run: line.run, place: nearest(line.x, best.x), line }));
  found.sort((a, b) => a.line.y[a.place] - b.line.y[b.place]);
  const title = element("div", { className: "soft", textContent: `${AXES[view.x]}: ${place(best.x, view.x)}` });
  made.tip.replaceChildren(title, ...found.map((one) => key(one.run, exact(one.line.y[one.place]))));
  const x = made.x(best.x);
  made.cross.setAttribute("x1", x);
  made.cross.setAttribute("x2", x);
  made.cross.style.visibility = made.tip.style.visibility = "visible";
  const left = x + 24 + made.tip.offsetWidth > box.width ? x - made.tip.offsetWidth + 4 : x + 28;
  made.tip.style.left = `${Math.max(4, left)}px`;
  made.tip.style.top = "44px";
}

function leave(made) {
  made.tip.style.visibility = "hidden";
  if (made.cross) made.cross.style.visibility = "hidden";
}

// -- controls ------------------------------------------------------------------------------------
const charts = data.metrics.map(chart);
const redraw = () => { charts.forEach(draw); samples(); };

function controls() {
  data.runs.forEach((run, at) => {
    const button = element("button", { type: "button", ariaPressed: "true", title: run.folder }, ...key(at).childNodes);
    button.addEventListener("click", () => {
      if (!view.on.delete(at)) view.on.add(at);
      button.ariaPressed = String(view.on.has(at));
      redraw();
    });
    button.addEventListener("pointerenter", () => { view.hot = view.on.has(at) ? at : null; charts.forEach(draw); });
    button.addEventListener("pointerleave", () => { view.hot = null; charts.forEach(draw); });
    $("runs").append(button);
  });
  for (const [axis, title] of Object.entries(AXES)) {
    const button = element("button", { type: "button", textContent: title, value: axis, ariaPressed: String(axis === view.x) });
    button.addEventListener("click", () => {
      view.x = axis;
      for (const other of $("axis").children) other.ariaPressed = String(other.value === axis);
      redraw();
    });
    $("axis").append(button);
  }
  $("smooth").addEventListener("input", (event) => {
    view.smooth = Number(event.target.value);
    $("smoothness").textContent = view.smooth;
    redraw();
  });
  for (const id of ["logx", "logy"]) $(id).addEventListener("change", (event) => { view[id] = event.target.checked; redraw(); });
  const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; name(); });
  name();
}

// -- tables and texts ----------------------------------------------------------------------------
function row(cells) { return element("tr", {}, ...cells); }

function results() {
  const names = Object.keys(data.runs[0].numbers).filter((name) => data.runs.some((run) => run.numbers[name] !== null));
  const head = ["run", ...names, "state"].map((name, at) => element("th", { scope: "col", textContent: name, className: at && name !== "state" ? "number" : "" }));
  const lowest = Object.fromEntries(names.map((name) => [name, Math.min(...data.runs.map((run) => run.numbers[name] ?? Infinity))]));
  const rows = data.runs.map((run, at) => row([
    element("th", { scope: "row" }, key(at)),
    ...names.map((name) => {
      const top = name === "best loss" && run.numbers[name] === lowest[name];
      const whole = ["at step", "steps", "tokens/s"].includes(name) && run.numbers[name] !== null;
      const text = whole ? place(run.numbers[name], "step") : exact(run.numbers[name]);
      return element("td", { className: top ? "number top" : "number", textContent: text });
    }),
    element("td", { textContent: run.state }),
  ]));
  $("results").append(element("thead", {}, row(head)), element("tbody", {}, ...rows));
}

function settings() {
  if (!data.settings.length) {
    $("settings").append(row([element("td", { textContent: "None: the runs were asked for the same thing." })]));
    return;
  }
  const head = [element("th", { scope: "col", textContent: "setting" }), ...data.runs.map((_, at) => element("th", { scope: "col" }, key(at)))];
  const rows = data.settings.map((setting) => row([
    element("th", { scope: "row" }, element("code", { textContent: setting.key })),
    ...setting.values.map((value, at) => element("td", { className: at && value === setting.values[0] ? "value same" : "value", textContent: value })),
  ]));
  $("settings").append(element("thead", {}, row(head)), element("tbody", {}, ...rows));
}

const steps = [...new Set(data.runs.flatMap((run) => run.samples.map((one) => one.step)))].sort((a, b) => a - b);

function samples() {
  const [prompt, limit] = [$("prompt").value, steps[Number($("step").value)]];
  $("at").textContent = limit === undefined ? "" : limit.toLocaleString("en");
  $("samples").replaceChildren(...[...view.on].sort((a, b) => a - b).map((at) => {
    const found = data.runs[at].samples.filter((one) => one.prompt === prompt && one.step <= limit).pop();
    const said = found ? [element("b", { textContent: found.prompt }), found.text] : ["no text yet"];
    const where = element("p", { className: "soft", textContent: found ? `step ${found.step.toLocaleString("en")}` : "" });
    return element("article", {}, key(at), where, element("blockquote", {}, ...said));
  }));
}

function diagnosis() {
  data.runs.forEach((run, at) => {
    const found = run.findings.flatMap((one) => [
      element("p", {}, element("b", { textContent: `${one.name}: ` }), one.says),
      element("pre", { textContent: one.tries.join("\n") }),
    ]);
    const words = element("ul", {}, ...run.lines.map((line) => element("li", { textContent: line })));
    const more = element("details", {}, element("summary", { textContent: "each validation in words" }), words);
    $("diagnosis").append(element("article", {}, key(at), element("p", { textContent: run.summary }), ...found, more));
  });
}

function start() {
  const known = data.runs.filter((run) => run.numbers["best loss"] !== null);
  const first = known.length ? `; the best: ${known[0].name}, ${exact(known[0].numbers["best loss"])} nats per token` : "";
  $("headline").textContent = `${data.runs.length} run${data.runs.length > 1 ? "s" : ""}${first}`;
  for (const one of data.verdicts) $("verdicts").append(element("p", { className: one.decided ? "decided" : "", textContent: one.says }));
  for (const note of data.notes) $("verdicts").append(element("p", { className: "note", textContent: note }));
  for (const line of data.wandb) $("wandb").append(element("li", { textContent: line }));
  for (const prompt of new Set(data.runs.flatMap((run) => run.samples.map((one) => one.prompt)))) {
    $("prompt").append(element("option", { value: prompt, textContent: prompt }));
  }
  $("step").max = Math.max(0, steps.length - 1);
  $("step").value = $("step").max;
  for (const id of ["prompt", "step"]) $(id).addEventListener("input", samples);
  controls();
  results();
  settings();
  diagnosis();
  redraw();
  new ResizeObserver(() => charts.forEach(draw)).observe($("charts"));
}

start();
