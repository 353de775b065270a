// Runs inside a page that is tested: uses its charts or lets axe-core look at it, and sends the outcome to the window around it.
"use strict";
const failures = [];
addEventListener("error", (event) => failures.push(event.message));
addEventListener("unhandledrejection", (event) => failures.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => failures.push(`refused: ${event.blockedURI}`));
for (const level of ["error", "warn"]) console[level] = (...texts) => failures.push(texts.join(" "));

const pause = () => new Promise((done) => setTimeout(done, 20));

/** Presses a button or entry, and waits until the chart is drawn again. */
async function press(button, options = {}) {
  button.dispatchEvent(new MouseEvent("click", { bubbles: true, ...options }));
  await pause();
}

/** What the canvas of a chart shows. */
function pixels(chart) {
  const canvas = chart.querySelector("canvas");
  return new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
}

const differ = (one, other) => one.reduce((count, pixel, i) => count + (pixel !== other[i]), 0);

/** The texts at the places of a grid. */
async function hover(chart) {
  const over = chart.querySelector(".u-over");
  const { left, top, width, height } = over.getBoundingClientRect();
  const texts = new Set();
  for (let y = 2; y < height; y += 8)
    for (let x = 2; x < width; x += 4) {
      over.dispatchEvent(new MouseEvent("mousemove", { bubbles: true, clientX: left + x, clientY: top + y }));
      await null;
      const tip = chart.querySelector(".tip");
      if (!tip.hidden) texts.add(tip.textContent);
    }
  return [...texts];
}

/** Drags the mouse through a chart, from a fifth to two fifths of its width and height. */
async function drag(chart, options = {}) {
  const over = chart.querySelector(".u-over");
  const { left, top, width, height } = over.getBoundingClientRect();
  const send = (type, share) => {
    const place = { clientX: left + share * width, clientY: top + share * height, movementX: 1 };
    over.dispatchEvent(new MouseEvent(type, { bubbles: true, ...place, ...options }));
  };
  for (const [type, share] of [
    ["mousemove", 0.2],
    ["mousedown", 0.2],
    ["mousemove", 0.4],
    ["mouseup", 0.4],
  ])
    send(type, share);
  await pause();
}

/** Uses all controls of a chart, each of which changes its picture, and goes back. */
async function use(chart) {
  const all = pixels(chart);
  const entries = [...chart.querySelectorAll(".legend button")];
  for (const entry of entries) await press(entry);
  const none = pixels(chart);
  for (const entry of entries) await press(entry);
  const again = pixels(chart);
  await press(entries[0], { shiftKey: true });
  const alone = entries
    .filter((entry) => entry.getAttribute("aria-pressed") === "true")
    .map((entry) => entry.textContent);
  await press(entries[0], { shiftKey: true });
  const tools = chart.querySelector(".tools");
  const changes = {};
  for (const button of tools.querySelectorAll("button:not([data-do=all])")) {
    await press(button);
    changes[button.dataset.do] = differ(all, pixels(chart));
    await press(tools.querySelector("[data-do=all]"));
  }
  for (const key of ["+", "-", "ArrowLeft", "ArrowRight"]) {
    tools.dispatchEvent(new KeyboardEvent("keydown", { key }));
    await pause();
    changes[key] = differ(all, pixels(chart));
    tools.dispatchEvent(new KeyboardEvent("keydown", { key: "0" }));
    await pause();
  }
  for (const options of [{}, { shiftKey: true }]) {
    await drag(chart, options);
    changes[JSON.stringify(options)] = differ(all, pixels(chart));
    chart.querySelector(".u-over").dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
    await pause();
  }
  return {
    marks: differ(all, none), // the pixels of all marks
    left: differ(all, again) + differ(all, pixels(chart)),
    changes,
    alone,
  };
}

/** The rows of the sums below a chart. */
const summed = (chart) =>
  [...chart.querySelectorAll(".sums tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));

/** Selects marks by key, click and search. */
async function pick(chart) {
  const [picked, tools] = [chart.querySelector(".picked"), chart.querySelector(".tools")];
  const over = chart.querySelector(".u-over");
  const all = pixels(chart);
  const outcome = { sums: summed(chart) };
  tools.dispatchEvent(new KeyboardEvent("keydown", { key: "n" }));
  await pause();
  Object.assign(outcome, { next: picked.textContent, arrow: differ(all, pixels(chart)) });
  await press(tools.querySelector("[data-do=all]"));
  outcome.cleared = picked.textContent;
  const { left, top, width, height } = over.getBoundingClientRect();
  for (let x = 0.3; x < 0.9 && !picked.textContent; x += 0.01)
    for (let y = 0.1; y < 0.99 && !picked.textContent; y += 0.05) {
      const place = { bubbles: true, clientX: left + x * width, clientY: top + y * height };
      for (const type of ["mousemove", "mousedown", "mouseup", "click"]) over.dispatchEvent(new MouseEvent(type, place));
      await null;
    }
  outcome.clicked = picked.textContent;
  await press(tools.querySelector("[data-do=all]"));
  await press(tools.querySelector("[data-do=in]"));
  outcome.zoomed = summed(chart);
  await press(tools.querySelector("[data-do=all]"));
  const field = tools.querySelector("input");
  if (field) {
    field.value = "addmm";
    field.dispatchEvent(new Event("input", { bubbles: true }));
    await pause();
    outcome.searched = summed(chart);
  }
  return outcome;
}

/** The texts that a chart draws in its canvas: those of its axes, and those inside marks. */
async function labels(chart) {
  const texts = [];
  const draw = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
    texts.push(text);
    draw.call(this, text, ...place);
  };
  await press(chart.querySelector("[data-do=all]"));
  CanvasRenderingContext2D.prototype.fillText = draw;
  return texts;
}

/** What the cursor and the table say about a chart. */
async function read(chart) {
  const rows = [...chart.querySelectorAll("details.marks tbody tr")];
  return { texts: await hover(chart), rows: rows.map((row) => [...row.cells].map((cell) => cell.textContent)) };
}

/** The first column of each table that can be sorted, after each of two clicks on every heading. */
async function sorted() {
  const outcome = [];
  for (const table of document.querySelectorAll("table.sortable")) {
    const columns = {};
    for (const head of table.tHead.rows[0].cells)
      for (const click of [1, 2]) {
        await press(head.querySelector("button"));
        const names = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
        columns[`${head.textContent} ${head.getAttribute("aria-sort")}`] = names;
      }
    outcome.push(columns);
  }
  return outcome;
}

addEventListener("load", async () => {
  await pause();
  document.querySelectorAll("details").forEach((item) => (item.open = true));
  await pause();
  const charts = {};
  const task = { use, read, pick, labels }[TASK];
  if (task) for (const chart of document.querySelectorAll(".chart")) charts[chart.id] = await task(chart);
  // The rows of a long table are alike, and axe takes minutes for thousands.
  if (TASK === "axe") document.querySelectorAll("tbody tr:nth-child(n+30)").forEach((row) => row.remove());
  const problems = TASK === "axe" ? (await axe.run()).violations : [];
  const outcome = {
    failures,
    charts,
    sorted: TASK === "sort" ? await sorted() : [],
    parts: PARTS.map((part) => document.querySelectorAll(part).length),
    back: getComputedStyle(document.body).backgroundColor,
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    problems: problems.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`)),
  };
  parent.postMessage(JSON.stringify(outcome), "*");
});
