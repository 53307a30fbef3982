"use strict";
/* Computes the floor of a decode step by the formulas of bench/predict/step_model.py, and draws what follows from it. */
const given = JSON.parse(document.getElementById("data").textContent);
const NARROW = ["mma_fp8", "mma_int8", "mma_fp4"];

function amount(coefficients, terms) {
  return coefficients.reduce((sum, each, i) => sum + each * terms[i], 0);
}

/* Seconds of a step, how many requests fit, and the roof under which most time is spent. All amounts are SI. */
function predict({ model, part, weights, kv, devices, batch, context }) {
  const shape = given.models[model], spec = given.parts[part];
  const setting = shape.settings[`${weights} ${kv} ${devices}`];
  const hit = shape.experts ? shape.experts * (1 - (1 - shape.chosen / shape.experts) ** batch) : 0;
  const terms = [1, batch, batch * context, hit, ...shape.limits.map((limit) => batch * Math.min(context, limit))];
  const spent = {}, missing = new Set();
  let seconds = 0;
  for (const op of setting.ops.map((number) => shape.ops[number])) {
    const needs = { memory: [amount(op.bytes, terms), spec.bandwidth] };
    for (const [pipe, flops] of Object.entries(op.flops)) {
      const used = NARROW.includes(pipe) && !(pipe in spec.peaks) && "mma_bf16" in spec.peaks ? "mma_bf16" : pipe;
      needs[used] = [(needs[used]?.[0] ?? 0) + amount(flops, terms), spec.peaks[used]];
    }
    const link = amount(op.link, terms), switched = spec.switch ? amount(op.switched, terms) : 0;
    needs.link = [Math.min(link, switched || link), spec.link];
    let longest = 0, bound = "unknown";
    for (const [roof, [needed, peak]] of Object.entries(needs)) {
      if (needed && !peak) missing.add(roof);
      if (needed && peak && needed / peak > longest) [longest, bound] = [needed / peak, roof];
    }
    spent[bound] = (spent[bound] ?? 0) + longest;
    seconds += longest;
  }
  const capacity = spec.capacity === null ? null : spec.capacity * devices;
  const one = [1, 1, context, 0, ...shape.limits.map((limit) => Math.min(context, limit))];
  const free = capacity - Math.round(given.reserve * capacity) - setting.weight_bytes;
  const most = capacity === null ? null : Math.max(0, Math.floor(free / (amount(setting.held, one) || 1)));
  const bound = Object.keys(spent).reduce((a, b) => (spent[b] > spent[a] ? b : a));
  return { seconds, most, bound, missing: [...missing], weight_bytes: setting.weight_bytes };
}
const dollars = (found, chosen) => (chosen.price * chosen.devices) / 3600 * 1e6 * found.seconds / chosen.batch;

const form = document.querySelector("form.calculator");
const field = (name) => form.elements[name];
function options(name, values, preferred) {
  const kept = [preferred, field(name).value].find((value) => values.map(String).includes(String(value))) ?? values[0];
  field(name).replaceChildren(...values.map((value) => new Option(given.parts[value]?.name ?? value, value)));
  field(name).value = kept;
}
const splits = (model) => [...new Set(Object.keys(given.models[model].settings).map((key) => Number(key.split(" ").pop())))].sort((a, b) => a - b);

function chosen() {
  const value = Object.fromEntries(["model", "part", "weights", "kv"].map((name) => [name, field(name).value]));
  const { max_context } = given.models[value.model];
  return { ...value, devices: Number(field("devices").value), batch: Math.round(2 ** field("batch").value),
    context: Math.max(1, Math.min(max_context, Math.round(2 ** field("context").value))), price: Number(field("price").value) };
}
const three = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 });

/* Values for the marks of a logarithmic axis: 1, 2 and 5 times the powers of ten, those powers alone if they are many, or both ends. */
function marks(low, high) {
  const found = [];
  for (let n = Math.floor(Math.log10(low)); n <= Math.log10(high); n++) for (const m of [1, 2, 5]) found.push(Number((m * 10 ** n).toPrecision(1)));
  const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001), powers = inside.filter((v) => Number.isInteger(Math.log10(v)));
  return inside.length < 2 ? [low, high] : inside.length > 7 && powers.length > 1 ? powers : inside;
}

/* Solid through the batches that fit, dashed through all. */
function curve(id, title, points, fitting, now) {
  const xs = [...points, now].map((p) => Math.log(p[0])), ys = [...points, now].map((p) => Math.log(p[1]));
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const at = ([x, y]) => [60 + 400 * (Math.log(x) - x0) / (x1 - x0 || 1), 210 - 190 * (Math.log(y) - y0) / (y1 - y0 || 1)];
  const path = (some) => some.map((p) => at(p).map((c) => c.toFixed(1)).join(",")).join(" "), [cx, cy] = at(now);
  const size = 12 * Math.max(1, 480 / (document.getElementById(id).clientWidth || 480));
  const text = (x, y, said, anchor) => `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="${size}" fill="var(--pale)">${said}</text>`;
  const grid = (a, b, c, d) => `<line x1="${a}" y1="${b}" x2="${c}" y2="${d}" stroke="var(--line)"/>`;
  const columns = marks(Math.exp(x0), Math.exp(x1)).map((v) => [at([v, 1])[0], v]).map(([x, v]) => grid(x, 20, x, 210) + text(x, 214 + size, three(v), "middle"));
  const lines = marks(Math.exp(y0), Math.exp(y1)).map((v) => [at([1, v])[1], v]).map(([y, v]) => grid(60, y, 460, y) + text(54, y + 4, three(v), "end"));
  document.getElementById(id).innerHTML = columns.join("") + lines.join("") + `<polyline points="${path(points)}" fill="none" stroke="var(--pale)" stroke-dasharray="4"/>` +
    `<polyline points="${path(fitting)}" fill="none" stroke="var(--c0)" stroke-width="2.5"/>` +
    `<circle cx="${cx}" cy="${cy}" r="6" fill="var(--c1)"/>` +
    text(60, 12, title, "start") + text(460, 218 + 2 * size, "ms a token", "end");
}

function update() {
  const model = field("model").value;
  options("weights", given.models[model].weights);
  options("devices", splits(model));
  field("context").max = Math.log2(given.models[model].max_context);
  const now = chosen(), found = predict(now), cost = dollars(found, now), fits = found.most === null ? null : now.batch <= found.most;
  const say = (id, said) => { document.getElementById(id).textContent = said; };
  say("batch-said", now.batch.toLocaleString("en"));
  say("context-said", now.context.toLocaleString("en") + " tokens");
  say("price-said", "$" + now.price.toFixed(2) + " an hour and part");
  say("latency", three(1e3 * found.seconds) + " ms");
  say("latency-why", `${three(1 / found.seconds)} token/s for each user; most time goes to ${found.bound}` +
    (found.missing.length ? `; not published: ${found.missing.join(", ")}` : ""));
  say("rate", three(now.batch / found.seconds) + " token/s");
  say("rate-why", `${three(now.batch / found.seconds / now.devices)} token/s and part`);
  say("cost", fits === false ? "does not fit" : "$" + three(cost));
  say("cost-why", (fits === false ? "" : "a million output tokens; ") + (found.most === null ? "the memory is not published" : `${found.most.toLocaleString("en")} requests fit beside ${three(found.weight_bytes / 1e9)} GB of weights`));
  document.getElementById("cost").parentElement.className = "tile " + (fits === false ? "bad" : "good");
  const each = [];
  for (let step = 0; step <= 48; step++) {
    const setting = { ...now, batch: Math.round(2 ** (step / 4)) };
    each.push([setting, predict(setting)]);
  }
  const draw = (id, title, value) => {
    const place = ([setting, p]) => [1e3 * p.seconds, value(setting, p)];
    const fitting = each.filter(([setting]) => found.most === null || setting.batch <= found.most);
    curve(id, title, each.map(place), fitting.map(place), place([now, found]));
  };
  draw("throughput", "token/s and part", (setting, p) => setting.batch / p.seconds / setting.devices);
  draw("money", "$ a million output tokens", (setting, p) => dollars(p, setting));
}
options("model", given.order, given.chosen.model);
options("part", Object.keys(given.parts), given.chosen.part ?? "h100-sxm");
options("kv", given.kv, given.chosen.kv);
options("weights", given.models[field("model").value].weights, given.chosen.weights);
options("devices", splits(field("model").value), given.chosen.devices);
if (given.chosen.price) field("price").value = given.chosen.price;
if (given.chosen.batch) field("batch").value = Math.log2(given.chosen.batch);
field("context").max = Math.log2(given.models[field("model").value].max_context);
field("context").value = Math.log2(given.chosen.context ?? 4096);
form.addEventListener("input", update);
window.addEventListener("resize", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
document.documentElement.dataset.ready = "1";
