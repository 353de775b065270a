// Sections fold, tables are sorted. Details are open in print, and where a link leads.
"use strict";
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => (item.open = true)));

const sections = [...document.querySelectorAll("main > h2[id]:not(#findings, #advice)")].map((heading) => {
  const [section, summary] = [document.createElement("details"), document.createElement("summary")];
  section.className = "section";
  section.open = true;
  heading.before(section);
  summary.append(heading);
  section.append(summary);
  while (section.nextSibling && section.nextSibling.nodeName !== "H2") section.append(section.nextSibling);
  return section;
});
const links = document.querySelector("nav");
if (links && sections.length) {
  const fold = document.createElement("button");
  fold.textContent = "fold all";
  fold.addEventListener("click", () => {
    const open = !sections.some((section) => section.open);
    for (const section of sections) section.open = open;
    fold.textContent = open ? "fold all" : "unfold all";
  });
  links.append(fold);
  links.addEventListener("click", ({ target }) => {
    const section = target instanceof HTMLAnchorElement && document.querySelector(target.hash)?.closest("details");
    if (section) section.open = true;
  });
}

/** What a cell is sorted by; a number in `data-value` counts, and nothing if that is empty. */
/** @type {(row: HTMLTableRowElement, column: number) => string|number|undefined} */
function key(row, column) {
  const cell = row.cells[column];
  const { value } = cell.dataset;
  return value === undefined ? cell.textContent ?? "" : value === "" ? undefined : Number(value);
}

/** Sorts the rows of a table; those without a value stay last. @type {(table: HTMLTableElement, column: number, sign: number) => void} */
function sort(table, column, sign) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => /** @type {const} */ ([key(row, column), row]));
  rows.sort(([one], [other]) => {
    if (one === undefined || other === undefined) return Number(one === undefined) - Number(other === undefined);
    return sign * (one < other ? -1 : one > other ? 1 : 0);
  });
  body.append(...rows.map(([, row]) => row));
}

for (const table of /** @type {NodeListOf<HTMLTableElement>} */ (document.querySelectorAll("table.sortable"))) {
  const heads = [...(table.tHead?.rows[0].cells ?? [])];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      sort(table, column, direction === "ascending" ? 1 : -1);
    });
  });
}
