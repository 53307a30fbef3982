"use strict";
/* Draws every figure from one list of points, and draws them again when a filter or the colour scheme changes. */
const report = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector("form.filters");
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "triangle-left", "star"];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const opColour = (op) => colour("c" + report.ops[op][0]);
const opSymbol = (op) => SYMBOLS[report.ops[op][1]];

const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
function si(value, unit) {
  if (value === null || value === undefined) return "not known";
  const [scale, prefix] = PREFIXES.find(([s]) => Math.abs(value) >= s) || [1, ""];
  return Number((value / scale).toPrecision(3)) + " " + prefix + unit;
}
const percent = (value) => (value === null ? "not known" : (100 * value).toFixed(0) + "%");
const escapeHtml = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

/* The words of a search. A number belongs to the word before it and must match whole: "batch 1" does not find batch 16. */
function sought(words) {
  const parts = words.toLowerCase().match(/[^\s\d]\S*(\s+\d[\d,.]*(?=\s|$))?|\S+/g) || [];
  const escaped = parts.map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return escaped.map((part) => new RegExp((/^\d/.test(part) ? "(?<!\\d)" : "") + part + (/\d$/.test(part) ? "(?!\\d)" : "")));
}

function chosen() {
  const data = new FormData(form);
  const ops = new Set(data.getAll("op"));
  const [impl, precision, flagged] = ["impl", "precision", "flagged"].map((name) => data.get(name));
  const words = sought(data.get("words") || "");
  const text = (p) => [p.op, p.id, p.name, p.impl, p.bound, ...p.flags].join(" ").toLowerCase();
  return report.points.filter((p) =>
    ops.has(p.op) && words.every((word) => word.test(text(p))) &&
    (impl === "all" || (impl === "ours" && p.ours) || (impl === "peers" && !p.ours) || impl === "=" + p.impl) &&
    (precision === "all" || precision === p.precision) &&
    (flagged === "all" || (flagged === "none") === (p.flags.length === 0)));
}

function hover(p) {
  const lines = ["<b>" + escapeHtml(p.op + " " + p.id) + "</b>", escapeHtml(p.name), escapeHtml(p.impl) + (p.ours ? " (ours)" : " (peer)"),
    "measured " + si(p.seconds, "s") + " [" + si(p.low, "s") + ", " + si(p.high, "s") + "]",
    si(p.bytes / p.seconds, "B/s") + ", " + percent(p.share) + " of the read roof"];
  if (p.expected) {
    const error = 100 * (p.seconds / p.expected - 1);
    lines.push("predicted " + si(p.expected, "s") + " (" + (error > 0 ? "+" : "") + error.toFixed(1) + "%)");
  }
  if (p.sheet) lines.push("datasheet alone " + si(p.sheet, "s"));
  if (p.bound) lines.push("bound by " + escapeHtml(p.bound));
  if (p.flags.length) lines.push("<b>flags: " + p.flags.map(escapeHtml).join(", ") + "</b>");
  return lines.join("<br>") + "<extra></extra>";
}

/* One trace per op and kind, so that ours are filled and peers hollow. */
function traces(points, place, errors) {
  const found = [];
  for (const op of Object.keys(report.ops)) for (const ours of [false, true]) {
    const mine = points.filter((p) => p.op === op && p.ours === ours);
    if (!mine.length) continue;
    const trace = {
      type: "scatter", mode: "markers", name: op, x: mine.map((p) => place(p)[0]), y: mine.map((p) => place(p)[1]),
      hovertemplate: mine.map(hover),
      marker: {
        symbol: mine.map((p) => opSymbol(op) + (ours ? "" : "-open") + (p.flags.length ? "-dot" : "")),
        size: 9, color: opColour(op), opacity: ours ? 0.9 : 0.75,
        line: { width: mine.map((p) => (p.flags.length ? 1.5 : 1)), color: mine.map((p) => p.flags.length ? colour("ink") : opColour(op)) },
      },
    };
    if (errors) trace.error_y = { ...errors(mine), type: "data", symmetric: false, color: opColour(op), thickness: 1, width: 0 };
    found.push(trace);
  }
  return found;
}

/* Ticks at powers of ten with our own units, because Plotly writes 1e9 as B. */
function decades(low, high, unit, step = 1) {
  const tickvals = [];
  for (let n = Math.floor(Math.log10(low)); n <= Math.ceil(Math.log10(high)); n++) if (n % step === 0) tickvals.push(10 ** n);
  return { tickvals, ticktext: tickvals.map((v) => (unit ? si(v, unit) : String(v))) };
}
function logAxis(title, low, high, unit, step) {
  return { type: "log", title: { text: title }, range: [Math.log10(low), Math.log10(high)], ...decades(low, high, unit, step) };
}
const narrow = () => window.innerWidth < 640;

function draw(id, data, layout) {
  const element = document.getElementById(id);
  if (!element) return;
  const printing = document.documentElement.dataset.print;
  const size = printing ? { width: element.clientWidth, height: element.clientHeight } : { autosize: true };
  if (narrow()) data = data.map(({ hovertemplate, ...trace }) => ({ ...trace, text: hovertemplate, hoverinfo: "none" }));
  const common = { gridcolor: colour("line"), linecolor: colour("pale"), zeroline: false, automargin: true };
  Plotly.react(element, data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: narrow() ? false : "zoom",
    font: { color: colour("ink"), size: narrow() ? 11 : 13, family: "system-ui, sans-serif" },
    margin: { l: 60, r: 12, t: 12, b: 46 }, hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    ...size, ...layout, xaxis: { ...common, ...layout.xaxis }, yaxis: { ...common, ...layout.yaxis },
  }, { responsive: true, displayModeBar: false });
  if (!element.dataset.heard) element.on("plotly_hover", (event) => tell(element, event.points[0].text));
  element.dataset.heard = "1";
}
/* On a phone a label would cover the plot, so what a finger touches is told below it. */
function tell(element, text) {
  const place = element.nextElementSibling;
  if (!narrow() || !text) return;
  place.hidden = false;
  place.innerHTML = text.replace("<extra></extra>", "");
}
const extent = (values, wider) => [Math.min(...values) / wider, Math.max(...values) * wider];
const line = (x, y, dash, name, tone = "ink") => ({
  type: "scatter", mode: "lines", x, y, name, hovertemplate: escapeHtml(name) + "<extra></extra>",
  line: { color: colour(tone), width: dash === "solid" ? 2 : 1.2, dash },
});
function label(x, y, text, extra) {
  return { x: Math.log10(x), y: Math.log10(y), text, showarrow: false, font: { size: narrow() ? 10 : 12, color: colour("ink") }, ...extra };
}

function roofline(points) {
  const level = document.getElementById("level")?.value;
  const bytes = (p) => (level === "l2" ? p.moved : p.bytes);
  const computing = points.filter((p) => p.flops > 0 && bytes(p) > 0);
  const everything = report.points.filter((p) => p.flops > 0 && bytes(p) > 0);
  if (!everything.length) return;
  const roofs = report.roofs;
  const [low, reach] = extent(everything.map((p) => p.flops / bytes(p)), 2);
  const high = Math.max(reach, 2000);
  const data = [], annotations = [], keys = [];
  const source = (kind) => roofs.pipes[kind === "measured" ? "measured" : "published"];
  const peak = (kind) => Math.max(0, ...Object.values(source(kind)));
  for (const { name, bandwidth, kind } of roofs.bandwidths) {
    const dash = kind === "measured" ? "solid" : "dash";
    const ridge = Math.min(high, (peak(kind) || peak("measured") || high * bandwidth) / bandwidth);
    const text = name + " " + kind + " " + si(bandwidth, "B/s");
    const tone = name === "L2" ? "c2" : kind === "measured" ? "ink" : "pale";
    data.push(line([low, ridge], [low * bandwidth, ridge * bandwidth], dash, text, tone));
    keys.push(`<span style="color:${colour(tone)}">${dash === "dash" ? "- -" : "—"} ${escapeHtml(text)}</span>`);
  }
  for (const kind of ["published", "measured"]) for (const [pipe, flops] of Object.entries(source(kind))) {
    const bandwidth = Math.max(...roofs.bandwidths.filter((b) => (b.kind === "measured") === (kind === "measured")).map((b) => b.bandwidth), 0) || flops / low;
    const text = pipe + " " + kind + " " + si(flops, "FLOP/s");
    data.push(line([Math.max(low, flops / bandwidth), high], [flops, flops], kind === "measured" ? "solid" : "dash", text, kind === "measured" ? "ink" : "pale"));
    if (narrow() || kind !== "measured") keys.push(`<span style="color:${colour(kind === "measured" ? "ink" : "pale")}">${kind === "measured" ? "—" : "- -"} ${escapeHtml(text)}</span>`);
    else annotations.push(label(high, flops, pipe + " " + si(flops, "FLOP/s"), { xanchor: "left", xshift: 4 }));
  }
  const rates = everything.map((p) => p.flops / p.seconds);
  const ceiling = Math.max(peak("measured"), peak("published"), ...rates) * 2;
  const floor = Math.min(...rates) / 2;
  const shapes = level === "l2" ? [] : roofs.ridges.map((ridge) => ({ type: "line", x0: ridge.at, x1: ridge.at, yref: "paper", y0: 0, y1: 1,
    line: { color: colour("pale"), width: 1, dash: "dot" }, layer: "below" }));
  const halo = Array(4).fill("0 0 2px " + colour("page")).join(", ");
  if (shapes.length) annotations.push(...roofs.ridges.map((ridge) => ({ x: Math.log10(ridge.at), yref: "paper", y: 0.02, yanchor: "bottom", xanchor: "right",
    textangle: -90, text: narrow() ? ridge.text.split(" = ")[1] : ridge.text, showarrow: false, font: { size: 11, color: colour("ink"), shadow: halo } })));
  const above = narrow() || document.documentElement.dataset.print;
  document.querySelector(".roofs").innerHTML = above ? keys.join("<br>") : "";
  if (!above) annotations.push({ xref: "paper", yref: "paper", x: 0.99, y: 0.02, xanchor: "right", yanchor: "bottom", align: "right",
    showarrow: false, text: keys.join("<br>"), font: { size: 12 }, bgcolor: colour("page"), opacity: 0.9 });
  draw("roofline", [...data, ...traces(computing, (p) => [p.flops / bytes(p), p.flops / p.seconds])], {
    annotations, shapes, margin: { l: 60, r: narrow() ? 12 : 160, t: 12, b: 46 }, xaxis: { ...logAxis("FLOP per byte (" + (level === "l2" ? "through the L2, as moved" : "DRAM, compulsory") + ")", low, high, "") },
    yaxis: logAxis("", floor, ceiling, "FLOP/s"),
  });
}

function prediction(points) {
  const predicted = points.filter((p) => p.expected);
  const all = report.points.filter((p) => p.expected);
  if (!all.length) return;
  const [left, right] = extent(all.map((p) => p.expected), 1.5);
  const ratios = all.map((p) => p.seconds / p.expected);
  const data = [line([left, right], [1, 1], "solid", "as predicted"),
    ...traces(predicted, (p) => [p.expected, p.seconds / p.expected], (mine) => ({
      array: mine.map((p) => (p.high - p.seconds) / p.expected), arrayminus: mine.map((p) => (p.seconds - p.low) / p.expected),
    }))];
  const ticks = [0.1, 0.2, 0.33, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100, 200];
  draw("prediction", data, {
    shapes: [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: 1 - report.within, y1: 1 + report.within, fillcolor: colour("band"), line: { width: 0 }, layer: "below" }],
    xaxis: logAxis("predicted time", left, right, "s"),
    yaxis: { type: "log", title: { text: "measured / predicted" }, tickvals: ticks, ticktext: ticks.map((t) => t + "×"),
      range: [Math.log10(Math.min(0.75, Math.min(...ratios) / 1.1)), Math.log10(Math.max(1.35, Math.max(...ratios) * 1.1))] },
  });
}

function efficiency(points) {
  const all = report.points.filter((p) => p.share !== null && p.bytes > 0);
  if (!all.length) return;
  const [left, right] = extent(all.map((p) => p.bytes), 2);
  const curve = report.roofs.read;
  const data = [line([left, right], [1, 1], "solid", "measured read roof"),
    line(curve.map((c) => c[0]), curve.map((c) => c[1]), "dot", "a plain read of this size", "pale"),
    ...traces(points.filter((p) => p.share !== null && p.bytes > 0), (p) => [p.bytes, p.share], (mine) => ({
      array: mine.map((p) => p.share * (p.seconds / p.low - 1)), arrayminus: mine.map((p) => p.share * (1 - p.seconds / p.high)),
    }))];
  draw("efficiency", data, {
    xaxis: logAxis("compulsory bytes", left, right, "B", narrow() ? 2 : 1),
    yaxis: { title: { text: "of the read roof" }, tickformat: ".0%", range: [-0.03, Math.max(1.1, ...all.map((p) => 1.05 * p.share))] },
  });
}

function batch(points) {
  const element = document.getElementById("shape");
  if (!element) return;
  const mine = points.filter((p) => p.series && p.shape === element.value);
  const names = [...new Set(report.points.filter((p) => p.series).map((p) => p.precision))];
  const data = [], groups = new Map();
  for (const p of mine) groups.set(p.series, [...(groups.get(p.series) || []), p]);
  for (const [series, members] of groups) {
    members.sort((a, b) => a.batch - b.batch);
    const tone = "c" + (names.indexOf(members[0].precision) % 9), ours = members[0].ours;
    data.push({
      type: "scatter", mode: "lines+markers", name: series, x: members.map((p) => p.batch), y: members.map((p) => p.seconds),
      hovertemplate: members.map(hover), line: { color: colour(tone), width: ours ? 2.5 : 1.2, dash: ours ? "solid" : "dot" },
      marker: { color: colour(tone), size: ours ? 8 : 6, symbol: ours ? "circle" : "circle-open" },
    });
    if (ours && members.every((p) => p.expected))
      data.push({ ...line(members.map((p) => p.batch), members.map((p) => p.expected), "dash", series + ": predicted", tone), showlegend: false });
  }
  if (!data.length) return draw("batch", [], {});
  const batches = [...new Set(mine.map((p) => p.batch))].sort((a, b) => a - b);
  const [low, high] = extent(mine.map((p) => p.seconds), 1.6);
  const { tickvals } = decades(low, high, "s");
  const fine = tickvals.flatMap((v) => [v, 2 * v, 5 * v]);
  draw("batch", data, {
    showlegend: true, legend: { orientation: "h", y: -0.2 },
    xaxis: { type: "log", title: { text: "batch" }, tickvals: batches.filter((b) => !narrow() || Math.log2(b) % 3 === 0) },
    yaxis: { type: "log", tickvals: fine, ticktext: fine.map((v) => si(v, "s")), range: [Math.log10(low), Math.log10(high)] },
  });
}

function peers(points) {
  const wanted = new Set(points.map((p) => p.op + "/" + p.id));
  const precise = new Set(points.filter((p) => !p.ours).map((p) => p.op + "/" + p.impl + "/" + p.id));
  const impl = new FormData(form).get("impl");
  const found = report.peers.filter((p) => wanted.has(p.op + "/" + p.id) && (impl === "ours" || precise.has(p.op + "/" + p.peer + "/" + p.id)));
  const data = Object.keys(report.ops).map((op) => {
    const mine = found.filter((p) => p.op === op);
    return {
      type: "scatter", mode: "markers", name: op, x: mine.map((p) => p.ratio), y: mine.map((p) => p.op + "<br>" + p.peer),
      error_x: { type: "data", symmetric: false, array: mine.map((p) => p.high - p.ratio), arrayminus: mine.map((p) => p.ratio - p.low), thickness: 1, width: 0 },
      hovertemplate: mine.map((p) => "<b>" + escapeHtml(p.op + " " + p.id) + "</b><br>" + escapeHtml(p.peer) + " takes " + p.ratio.toFixed(2) +
        " [" + p.low.toFixed(2) + ", " + p.high.toFixed(2) + "] times as long as " + escapeHtml(p.ours) +
        (p.flags.length ? "<br><b>flags: " + p.flags.map(escapeHtml).join(", ") + "</b>" : "") + "<extra></extra>"),
      marker: { color: opColour(op), symbol: opSymbol(op), size: 8, opacity: 0.8 },
    };
  }).filter((trace) => trace.x.length);
  const all = report.peers.map((p) => p.ratio);
  if (!all.length) return;
  const close = narrow() || document.documentElement.dataset.print ? [] : [0.8, 1.25, 1.5];
  const ticks = [0.05, 0.1, 0.2, 0.5, ...close, 1, 2, 3, 5, 10, 20, 50, 100];
  draw("peers", data, {
    shapes: [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: colour("ink"), width: 1.5 } }],
    xaxis: { type: "log", title: { text: "peer's time / ours (right of 1: ours is faster)" }, tickvals: ticks, ticktext: ticks.map((t) => t + "×"),
      range: [Math.log10(Math.min(0.8, Math.min(...all) / 1.1)), Math.log10(Math.max(1.25, Math.max(...all) * 1.1))] },
    yaxis: { type: "category", range: [new Set(data.flatMap((trace) => trace.y)).size - 0.4, -0.6] },
  });
}

function update() {
  const points = chosen();
  for (const figure of [roofline, prediction, efficiency, batch, peers, tables]) figure(points);
}
form.addEventListener("change", update);
form.addEventListener("input", (event) => event.target.name === "words" && update());
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("submit", (event) => event.preventDefault());
for (const id of ["level", "shape"]) document.getElementById(id)?.addEventListener("change", update);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
window.addEventListener("beforeprint", () => { document.documentElement.dataset.print = "1"; openClaims(true); update(); });
window.addEventListener("afterprint", () => { delete document.documentElement.dataset.print; openClaims(false); update(); });

