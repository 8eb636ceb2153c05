"use strict";
const data = JSON.parse(document.getElementById("moeplan-page").textContent);

// ---- light and dark: charts are drawn in the page's own colours, so a change of theme redraws nothing
const button = document.getElementById("theme");
button.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
document.getElementById("print").addEventListener("click", () => window.print());

// ---- charts
async function draw() {
  const narrow = window.innerWidth < 560;
  const config = structuredClone(data.config);
  if (narrow) {
    config.axis.labelLimit = 110;
    config.legend.columns = 2;
    config.legend.labelLimit = 130;
  }
  for (const [name, spec] of Object.entries(data.figures)) {
    await vegaEmbed(document.getElementById("chart-" + name), spec, {
      config, renderer: "svg", ast: true, tooltip: { theme: "custom" }, loader: { target: "_blank" },
      downloadFileName: name, actions: { export: true, source: false, compiled: false, editor: false },
    });
  }
  document.documentElement.dataset.ready = "true";
}

// ---- what if: interpolation between answers of the simulator, no formula of its own
function cellOf(nodes, x, log) {
  if (nodes.length === 1) return [0, 0];
  let i = 0;
  while (i < nodes.length - 2 && nodes[i + 1] <= x) i += 1;
  const a = nodes[i], b = nodes[i + 1];
  const weight = log ? Math.log(x / a) / Math.log(b / a) : (x - a) / (b - a);
  return [i, Math.min(Math.max(weight, 0), 1)];
}
function interpolated(response, axes, place) {
  let corners = [[0, 1]];
  for (const name of response.axes) {
    const axis = axes[name];
    const [lower, weight] = cellOf(axis.nodes, place[name], response.log);
    const next = [];
    for (const [index, share] of corners)
      for (const [side, w] of [[0, 1 - weight], [1, weight]])
        if (w > 0) next.push([index * axis.nodes.length + lower + side, share * w]);
    corners = next;
  }
  let total = 0;
  for (const [index, share] of corners) {
    const value = response.values[index];
    if (value === null || (response.log && value <= 0)) return null;
    total += share * (response.log ? Math.log(value) : value);
  }
  return response.log ? Math.exp(total) : total;
}
function boundAt(response, axes, place) {
  const sizes = axes.size.nodes;
  const [i] = cellOf(axes.work.nodes, place.work, true);
  return response.error_frac[i * sizes.length + sizes.indexOf(place.size)];
}
const digits = (x) => Math.abs(x) >= 100 ? Math.round(x).toLocaleString("en-US") : String(Number(x.toPrecision(3)));
function shown(value, unit) {
  if (value === null || value === undefined) return "no answer";
  if (unit === "USD") return "$" + (value >= 100 ? digits(value) : value.toFixed(2));
  if (unit === "") return digits(100 * value) + " %";
  if (unit === "s" && value < 1) return digits(1000 * value) + " ms";
  if (unit === "tokens" && value >= 1e9) return digits(value / 1e9) + " billion tokens";
  return digits(value) + " " + unit;
}
function whatIf() {
  const surface = data.surface;
  if (!surface) return;
  const axes = Object.fromEntries(surface.axes.map((axis) => [axis.name, axis]));
  const place = Object.fromEntries(surface.axes.map((axis) => [axis.name, axis.start]));
  const start = { ...place };
  const sliders = document.getElementById("sliders"), answers = document.getElementById("answers");
  const update = () => {
    for (const response of surface.responses) {
      const value = interpolated(response, axes, place), was = interpolated(response, axes, start);
      const box = document.getElementById("answer-" + response.name);
      box.querySelector("output").textContent = shown(value, response.unit);
      box.querySelector("output").value_exact = value;
      const change = value !== null && was ? value / was - 1 : 0;
      const bound = boundAt(response, axes, place);
      box.querySelector(".bound").textContent =
        (Math.abs(change) < 5e-4 ? "as planned" : (change > 0 ? "+" : "") + digits(100 * change) + " % from the plan") +
        "; interpolation within " + (bound < 1e-4 ? "0.01" : digits(100 * bound)) + " %";
    }
  };
  for (const axis of surface.axes) {
    const label = document.createElement("label"), text = document.createElement("span");
    const input = document.createElement("input");
    input.type = "range"; input.id = "slider-" + axis.name; input.min = 0;
    const nodes = axis.nodes, low = nodes[0], high = nodes[nodes.length - 1];
    const log = axis.name === "work" || axis.name === "price";
    input.max = axis.steps ? nodes.length - 1 : 1000;
    const say = () => {
      const value = place[axis.name];
      text.textContent = axis.label + ": " + (axis.steps ? value + " " + axis.unit : shown(value, axis.unit));
      input.setAttribute("aria-valuetext", text.textContent);
    };
    const at = (x) => log ? 1000 * Math.log(x / low) / Math.log(high / low) : 1000 * (x - low) / (high - low);
    input.value = axis.steps ? nodes.indexOf(axis.start) : Math.round(at(axis.start));
    input.addEventListener("input", () => {
      const x = Number(input.value);
      place[axis.name] = axis.steps ? nodes[x]
        : Math.abs(x - at(axis.start)) < 3 ? axis.start
        : log ? low * Math.pow(high / low, x / 1000) : low + (high - low) * x / 1000;
      say(); update();
    });
    say();
    label.append(text, input);
    sliders.append(label);
  }
  for (const response of surface.responses) {
    const box = document.createElement("div"), head = document.createElement("span");
    box.id = "answer-" + response.name;
    head.textContent = response.label;
    const bound = document.createElement("span");
    bound.className = "bound";
    box.append(head, document.createElement("output"), bound);
    answers.append(box);
  }
  update();
}
whatIf();
draw();
