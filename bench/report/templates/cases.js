/* The table of all cases: which rows are shown, their order, and the same rows as CSV. Then anchors and paper. */
const table = document.querySelector("table.cases");
const rows = table ? [...table.tBodies[0].rows] : [];
const csv = document.getElementById("csv");
const csvLines = csv ? new TextDecoder().decode(Uint8Array.from(atob(csv.href.split(",")[1]), (c) => c.charCodeAt(0))).trimEnd().split("\n") : [];

function tables(points) {
  const keys = new Set(points.map((p) => p.op + "/" + p.impl + "/" + p.id));
  for (const row of rows) row.hidden = !keys.has(row.dataset.key);
  const shown = rows.filter((row) => !row.hidden);
  document.getElementById("count").textContent = shown.length + " of " + report.points.length + " times";
  const lines = [csvLines[0], ...csvLines.slice(1).filter((_, i) => !rows[i].hidden)];
  if (csv) csv.href = "data:text/csv;charset=utf-8," + encodeURIComponent(lines.join("\n") + "\n");
}

function sortBy(heading) {
  const column = heading.cellIndex, down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const isNumber = rows.some((row) => row.cells[column].classList.contains("number"));
  const order = isNumber ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b, "en", { numeric: true });
  const sorted = [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return down ? order(y, x) : order(x, y);
  });
  table.tBodies[0].append(...sorted);
}
if (table) for (const heading of table.tHead.rows[0].cells) {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(heading));
}

/* A link to a claim opens it and what it is folded into. */
function follow() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  target.scrollIntoView();
}
const bar = () => document.documentElement.style.setProperty("--bar", (getComputedStyle(form).position === "sticky" ? form.offsetHeight : 0) + 8 + "px");
window.addEventListener("resize", bar);
window.addEventListener("hashchange", follow);

/* All claims are open on paper; afterwards those that were closed are closed again. */
function openClaims(open) {
  for (const each of document.querySelectorAll("details.claim, details.group")) {
    if (open && !each.open) each.dataset.opened = "1";
    if (open || each.dataset.opened) each.open = open;
    if (!open) delete each.dataset.opened;
  }
}

update();
bar();
follow();
document.documentElement.dataset.ready = "1";
