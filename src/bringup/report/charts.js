// Draws the charts of a page. uPlot provides axes, zoom and cursor; marks.js draws; the legend, hover texts and tables are here.
"use strict";

const MOST_ROWS = 1000; // of a table
const FONT = "12px system-ui, sans-serif";
const MOST_SUMS = 8; // rows of a table of sums
const DARK = matchMedia("screen and (prefers-color-scheme: dark)");
const REACH = 6; // pixels between the cursor and a mark that it still shows

/** @type {(value: number) => string} */
const format = (value) =>
  value !== 0 && Math.abs(value) < 1e-4
    ? value.toExponential()
    : value.toLocaleString("en", { maximumSignificantDigits: 6 });

/** @type {(tag: string, ...children: (Node | string)[]) => HTMLElement} */
const element = (tag, ...children) => {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
};

/**
 * Puts the figure's texts in place of their numbers, the first stack's x in the others, and adds the heights of stacks.
 * @type {(figure: Figure) => Figure}
 */
function complete(figure) {
  const texts = (/** @type {any[]} */ numbers) => numbers.map((number) => figure.texts[number]);
  figure.series.forEach((series, i) => {
    series.width ??= [];
    series.hover ??= "";
    series.text = texts(series.text ?? []);
    for (const name of Object.keys(series.labels ?? {})) series.labels[name] = texts(series.labels[name]);
    if (series.parts?.text) series.parts.text = texts(series.parts.text);
    if (!series.x.length && i > 0) series.x = figure.series[i - 1].x;
  });
  stack(figure.series);
  return figure;
}

/** Puts stacks on top of one another. @param {Series[]} shown */
function stack(shown) {
  /** @type {number[]} */
  let below = [];
  for (const series of shown.filter(({ shape }) => shape === "stack")) {
    series.base = series.y.map((_, i) => below[i] ?? 0);
    series.top = below = series.y.map((height, i) => height + series.base[i]);
  }
}

/** Sums of numbers by text, the largest first. @type {(pairs: Iterable<[string, number]>) => [string, number][]} */
function sums(pairs) {
  /** @type {Map<string, number>} */
  const totals = new Map();
  for (const [name, value] of pairs) totals.set(name, (totals.get(name) ?? 0) + value);
  return [...totals].sort((one, other) => other[1] - one[1]);
}

/**
 * The ends of an axis that show all marks.
 * @param {Figure} figure
 * @param {"x"|"y"} key
 * @returns {Pair}
 */
function extent(figure, key) {
  const { lanes, log } = figure[key];
  if (lanes.length) return [-0.5, lanes.length - 0.5];
  let [low, high] = [Infinity, -Infinity];
  for (const series of figure.series)
    (key === "y" ? (series.top ?? series.y) : series.x).forEach((value, i) => {
      low = Math.min(low, value);
      high = Math.max(high, value + (key === "x" && series.shape === "bars" ? series.width[i] : 0));
    });
  if (log) {
    const margin = Math.max((high / low) ** 0.03, 1.1);
    return [low / margin, high * margin];
  }
  if (key === "y") [low, high] = [Math.min(low, 0), high * 1.05];
  return low < high ? [low, high] : [low, low + 1];
}

/**
 * The ticks of a logarithmic axis: powers of ten, with others between them if there are few, or equal steps in a short range.
 * @type {(low: number, high: number, most: number) => number[]}
 */
function powers(low, high, most) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const stride = Math.ceil((last - first) / Math.max(most, 1));
  const between = last - first > 3 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = first; power <= last; power += stride) ticks.push(...between.map((digit) => digit * 10 ** power));
  const shown = ticks.filter((tick) => low <= tick && tick <= high);
  return shown.length > 1 ? shown : steps(low, high);
}

/** Round numbers in a short range, at equal distances. @type {(low: number, high: number) => number[]} */
function steps(low, high) {
  const unit = 10 ** Math.floor(Math.log10((high - low) / 2));
  const step = unit * ([5, 2, 1].find((digit) => digit * unit * 2 <= high - low) ?? 1);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

/** The label of a tick; `step` is the distance to the next one. @type {(axis: Axis, value: number, step: number) => string} */
function label(axis, value, step) {
  if (axis.lanes.length) return axis.lanes[value];
  if (axis.log) return value < 1e6 ? format(value) : value.toLocaleString("en", { notation: "compact" });
  const digits = Math.min(Math.max(1 - Math.floor(Math.log10(step)), 0), 20);
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** The text of a mark. @type {(series: Series, i: number) => string} */
function describe(series, i) {
  const numbers = series.hover.replace("{x}", format(series.x[i])).replace("{y}", format(series.y[i]));
  return [series.text[i], numbers].filter(Boolean).join("\n") || series.name;
}

/** A cell with a number, or an empty one. @param {number} [value] */
function number(value) {
  const cell = element("td", value === undefined ? "" : value.toLocaleString("en", { maximumSignificantDigits: 4 }));
  cell.className = "n";
  return cell;
}

/** A heading and a table of names with numbers. @type {(heading: string, unit: string, rows: [string, number][]) => HTMLElement[]} */
function listed(heading, unit, rows) {
  const head = element("tr", element("th", "line"), element("th", unit));
  const body = rows.map(([name, value]) => element("tr", element("td", name), number(value)));
  return [element("p", element("b", heading)), element("table", element("thead", head), element("tbody", ...body))];
}

/** How buttons move the ends of an axis, in shares of its length. @type {Record<string, Pair>} */
const MOVES = { in: [0.25, -0.25], out: [-0.5, 0.5], back: [-0.25, -0.25], on: [0.25, 0.25] };
/** @type {Record<string, string>} */
const KEYS = {
  ...{ "+": "in", "=": "in", "-": "out", 0: "all" },
  ...{ ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" },
  ...{ n: "next", p: "previous" },
};

/** One chart, on an element that chart.html has written. */
class Chart {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {Figure} */
    this.figure = complete(JSON.parse(this.part("script").textContent ?? ""));
    this.names = [...new Set(this.figure.series.map((series) => series.name))];
    /** @type {Set<string>} */
    this.hidden = new Set();
    this.search = "";
    /** The row whose marks are selected. @type {number|undefined} */
    this.row = undefined;
    this.rows = [...new Set(this.figure.series.flatMap((series) => series.row ?? []))].sort((one, other) => one - other);
    this.ends = { x: extent(this.figure, "x"), y: extent(this.figure, "y") };
    this.plot = this.axes(this.part(".plot"));
    this.picked = this.part(".picked");
    this.sums = this.part(".sums");
    this.sums.hidden = !this.figure.series.some((series) => series.column);
    this.add();
    this.tip = element("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.plot.over.append(this.tip);
    this.legend(this.part(".legend"));
    this.tools(this.part(".tools"));
    const details = this.part("details.marks");
    details.addEventListener("toggle", () => details.querySelector(".table")?.append(this.table()), { once: true });
  }

  /** @type {(selector: string) => HTMLElement} */
  part(selector) {
    return /** @type {HTMLElement} */ (this.root.querySelector(selector));
  }

  shown() {
    return this.figure.series.filter((series) => !this.hidden.has(series.name));
  }

  /** @param {HTMLElement} place */
  axes(place) {
    const { x, y, height } = this.figure;
    const ink = (/** @type {string} */ name) => () => getComputedStyle(this.root).getPropertyValue(name);
    /** @type {(axis: Axis) => uPlot.Axis} */
    const described = (axis) => ({
      label: axis.title || undefined,
      labelFont: FONT,
      labelSize: 20,
      font: FONT,
      stroke: ink("--ink"),
      grid: { stroke: ink("--line"), width: 1 },
      ticks: { show: false },
      splits: ticks(axis),
      filter: (_plot, splits) => splits,
      values: (_plot, splits, _axis, _space, step) => splits.map((value) => label(axis, value, step)),
    });
    /** @type {(axis: Axis) => uPlot.Axis.Splits|undefined} */
    const ticks = ({ lanes, log }) => {
      if (lanes.length) return lanes.map((_, lane) => lane);
      if (!log) return undefined;
      return ({ bbox }, number, low, high) =>
        powers(low, high, (number === 0 ? bbox.width / 60 : bbox.height / 24) / uPlot.pxRatio);
    };
    /** The pixels that the longest label takes. @type {uPlot.Axis.Size} */
    const size = (plot, labels) => {
      plot.ctx.font = FONT;
      return Math.ceil(Math.max(20, ...(labels ?? []).map((text) => plot.ctx.measureText(text).width))) + 12;
    };
    const plot = new uPlot(
      {
        width: place.clientWidth,
        height,
        legend: { show: false },
        scales: {
          x: { time: false, distr: x.log ? 3 : 1, range: (_plot, low, high) => [low, high] },
          y: { distr: y.log ? 3 : 1, range: this.ends.y },
        },
        axes: [
          { ...described(x), size: 30 },
          { ...described(y), size },
        ],
        series: [{}, { paths: () => null, points: { show: false } }], // `draw` draws all marks
        cursor: {
          points: { show: false },
          drag: { x: true, y: !y.lanes.length, uni: 20 },
          bind: {
            dblclick: () => () => this.all(),
            mousedown: (_plot, _target, zoom) => (event) => (event.shiftKey ? this.pan(event) : zoom(event)),
          },
        },
        hooks: {
          draw: [(plot) => this.draw(plot)],
          setCursor: [() => this.hover()],
          setScale: [(_plot, key) => key === "x" && this.add()],
        },
      },
      [this.ends.x, this.ends.y],
      place,
    );
    DARK.addEventListener("change", () => plot.redraw(false, true));
    /** @type {Pair} */
    let pressed = [0, 0];
    plot.over.addEventListener("mousedown", ({ clientX, clientY }) => (pressed = [clientX, clientY]));
    plot.over.addEventListener("click", ({ clientX, clientY, shiftKey }) => {
      if (!shiftKey && Math.hypot(clientX - pressed[0], clientY - pressed[1]) < REACH) this.pick();
    });
    new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height })).observe(place);
    return plot;
  }

  /** @param {uPlot} plot */
  draw(plot) {
    const { ctx: context, bbox } = plot;
    /** @type {Place} */
    const at = (x, y) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
    context.save();
    context.beginPath();
    context.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    context.clip();
    written.length = 0;
    for (const series of this.shown()) {
      const matched = this.matched(series);
      for (const [part, alpha] of matched === series ? [[series, 1]] : [[series, 0.15], [matched, 1]]) {
        context.save();
        context.globalAlpha = alpha;
        context.fillStyle = context.strokeStyle = DARK.matches ? series.dark : series.colour;
        context.lineWidth = 1.5 * uPlot.pxRatio;
        SHAPES[series.shape].draw(context, part, at, uPlot.pxRatio);
        context.restore();
      }
    }
    this.outline(context, at);
    context.restore();
  }

  /** The series with the marks alone whose text has the searched one. @type {(series: Series) => Series} */
  matched(series) {
    if (!this.search || series.shape !== "bars") return series;
    const places = series.x.map((_, i) => i).filter((i) => describe(series, i).toLowerCase().includes(this.search));
    const only = (/** @type {any[]} */ values) => places.map((i) => values[i]);
    return { ...series, x: only(series.x), y: only(series.y), width: only(series.width), text: only(series.text) };
  }

  /** The marks of the selected row, the host's first. @returns {[Series, number][]} */
  selected() {
    const { row } = this;
    if (row === undefined) return [];
    const marks = this.shown().flatMap((series) =>
      (series.row ?? []).flatMap((number, i) => (number === row ? [/** @type {[Series, number]} */ ([series, i])] : [])),
    );
    return marks.sort(([one, i], [other, j]) => one.x[i] - other.x[j] || one.width[i] - other.width[j]);
  }

  /** Outlines the selected marks, and draws an arrow from the host's call to what it launched. */
  /** @type {(context: CanvasRenderingContext2D, at: Place) => void} */
  outline(context, at) {
    const marks = this.selected();
    context.lineWidth = 2 * uPlot.pxRatio;
    context.strokeStyle = context.fillStyle = getComputedStyle(this.root).getPropertyValue("--ink");
    for (const [series, i] of marks) {
      const [left, top] = at(series.x[i], series.y[i] + LANE / 2);
      const [right, bottom] = at(series.x[i] + series.width[i], series.y[i] - LANE / 2);
      context.strokeRect(left, top, Math.max(right - left, uPlot.pxRatio), bottom - top);
    }
    const call = marks.find(([series]) => series.column === "host");
    const work = marks.find(([series]) => series.column !== "host" && series.column !== "measured");
    if (!call || !work) return;
    const [x, y] = at(call[0].x[call[1]] + call[0].width[call[1]], call[0].y[call[1]] - LANE / 2);
    const [toX, toY] = at(work[0].x[work[1]], work[0].y[work[1]] + LANE / 2);
    const [angle, size] = [Math.atan2(toY - y, toX - x), 8 * uPlot.pxRatio];
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(toX, toY);
    context.stroke();
    context.beginPath();
    context.moveTo(toX, toY);
    for (const turn of [0.4, -0.4]) context.lineTo(toX - size * Math.cos(angle + turn), toY - size * Math.sin(angle + turn));
    context.fill();
  }

  /** Selects the row, or none, and says what its marks are. @param {number} [row] */
  select(row) {
    this.row = row;
    const marks = this.selected();
    this.picked.replaceChildren(
      ...marks.map(([series, i]) => {
        const lane = this.figure.y.lanes[series.y[i]];
        const from = format(series.x[i]);
        return element("p", element("b", `${lane}, from ${from} ms: `), describe(series, i).replaceAll("\n", ", "));
      }),
    );
    this.plot.redraw(false);
  }

  /** Selects the mark at the cursor; of a stack, lists what it consists of. */
  pick() {
    const mark = this.nearest();
    if (mark?.[0].row) return this.select(mark[0].row[mark[1]]);
    this.select();
    if (mark?.[0].parts) this.parts(...mark);
  }

  /** Lists what a stack consists of at the start of a mark. @type {(series: Series, i: number) => void} */
  parts({ name, x, y, parts }, i) {
    /** @type {[string, number][]} */
    const here = [];
    parts.x?.forEach((start, j) => {
      if (start <= x[i] && x[i] < start + parts.width[j]) here.push([parts.text[j], parts.y[j]]);
    });
    const lines = sums(here);
    const rest = y[i] - lines.reduce((sum, [, value]) => sum + value, 0);
    const rows = lines.slice(0, MOST_SUMS);
    const others = lines.slice(MOST_SUMS).reduce((sum, [, value]) => sum + value, Math.max(rest, 0));
    if (others > 5e-4) rows.push(["others", others]);
    const [at, total] = [format(x[i]), format(y[i])];
    this.picked.replaceChildren(...listed(`${name} at ${at} ms: ${total} MiB`, "MiB", rows));
  }

  /** Selects the next launch, or the one before. @param {number} by */
  next(by) {
    const place = this.row === undefined ? -1 : this.rows.indexOf(this.row);
    const next = place + by;
    if (this.rows.length) this.select(this.rows[Math.min(Math.max(next, 0), this.rows.length - 1)]);
  }

  /** Adds up the bars in view: by series, and by each label. */
  add() {
    if (!this.sums || this.sums.hidden) return; // uPlot sets scales before the chart is complete
    const [min, max] = [this.plot.scales.x.min ?? this.ends.x[0], this.plot.scales.x.max ?? this.ends.x[1]];
    /** @type {Record<string, [string, string, number][]>} */
    const groups = {};
    for (const series of this.figure.series) {
      if (!series.column || this.hidden.has(series.name)) continue;
      const pattern = this.matched(series) === series ? "" : this.search;
      series.x.forEach((x, i) => {
        const inside = Math.min(x + series.width[i], max) - Math.max(x, min);
        if (inside <= 0 || (pattern && !describe(series, i).toLowerCase().includes(pattern))) return;
        (groups.family ??= []).push([series.name, series.column, inside]);
        for (const [label, names] of Object.entries(series.labels)) (groups[label] ??= []).push([names[i], series.column, inside]);
      });
    }
    const heading = `Sums of what the chart shows, ${format(min)} to ${format(max)} ms`;
    const tables = Object.entries(groups).map(([label, entries]) => {
      const columns = [...new Set(entries.map(([, column]) => column))].sort();
      const head = element("tr", ...[`by ${label}`, ...columns.map((column) => `${column}, ms`)].map((text) => element("th", text)));
      const totals = sums(entries.map(([name, , value]) => [name, value]));
      const cells = new Map(sums(entries.map(([name, column, value]) => [`${column} ${name}`, value])));
      const rows = totals.slice(0, MOST_SUMS).map(([name]) => {
        const values = columns.map((column) => cells.get(`${column} ${name}`));
        return element("tr", element("td", name), ...values.map((value) => number(value)));
      });
      if (totals.length > MOST_SUMS) rows.push(element("tr", element("td", `and ${totals.length - MOST_SUMS} more`)));
      return element("table", element("thead", head), element("tbody", ...rows));
    });
    const [summary, place] = [this.sums.querySelector("summary"), this.sums.querySelector("div")];
    if (summary) summary.textContent = heading;
    place?.replaceChildren(...tables);
  }

  /** The mark at the cursor. @returns {[Series, number]|undefined} */
  nearest() {
    const { plot } = this;
    const { left = -1, top = -1 } = plot.cursor;
    /** @type {Place} */
    const at = (x, y) => [plot.valToPos(x, "x"), plot.valToPos(y, "y")];
    let nearest = REACH;
    /** @type {[Series, number]|undefined} */
    let mark;
    for (const series of left < 0 ? [] : this.shown())
      for (let i = 0; i < series.x.length; i++) {
        const distance = SHAPES[series.shape].distance(series, i, at, left, top);
        if (distance <= nearest) [nearest, mark] = [distance, [series, i]]; // what is drawn last is on top
      }
    return mark;
  }

  /** Shows the text of the mark at the cursor. */
  hover() {
    const { plot, tip } = this;
    const { left = -1, top = -1 } = plot.cursor;
    const mark = this.nearest();
    const text = mark ? describe(...mark) : "";
    const { clientWidth: width, clientHeight: height } = plot.over;
    tip.hidden = !text;
    tip.textContent = text;
    tip.style.left = left < width / 2 ? `${left + 12}px` : "";
    tip.style.right = left < width / 2 ? "" : `${width - left + 12}px`;
    tip.style.top = top < height / 2 ? `${top + 12}px` : "";
    tip.style.bottom = top < height / 2 ? "" : `${height - top + 12}px`;
    tip.style.maxWidth = `${Math.max(left, width - left) - 12}px`;
  }

  /** Moves the ends of an axis by shares of its length. @type {(key: "x"|"y", shares: Pair) => void} */
  move(key, [first, second]) {
    const { lanes, log } = this.figure[key];
    if (lanes.length) return;
    const { min = 0, max = 1 } = this.plot.scales[key];
    const [low, high] = log ? [Math.log10(min), Math.log10(max)] : [min, max];
    const ends = [low + first * (high - low), high + second * (high - low)].map((end) => (log ? 10 ** end : end));
    this.plot.setScale(key, { min: ends[0], max: ends[1] });
  }

  /** Shows everything again. */
  all() {
    this.plot.batch(() => {
      this.plot.setScale("x", { min: this.ends.x[0], max: this.ends.x[1] });
      this.plot.setScale("y", { min: this.ends.y[0], max: this.ends.y[1] });
    });
    if (this.row !== undefined) this.select();
    return null;
  }

  /** Moves the plot with the mouse until its button is released. @param {MouseEvent} event */
  pan({ clientX, clientY }) {
    const { clientWidth, clientHeight } = this.plot.over;
    const drag = (/** @type {MouseEvent} */ now) => {
      const [right, down] = [(clientX - now.clientX) / clientWidth, (now.clientY - clientY) / clientHeight];
      this.move("x", [right, right]);
      this.move("y", [down, down]);
      [clientX, clientY] = [now.clientX, now.clientY];
    };
    addEventListener("mousemove", drag);
    addEventListener("mouseup", () => removeEventListener("mousemove", drag), { once: true });
    return null;
  }

  /** Buttons that hide series. @param {HTMLElement} place */
  legend(place) {
    const buttons = this.names.map((name) => {
      const swatch = element("i");
      const first = this.figure.series.find((series) => series.name === name);
      swatch.className = first?.shape ?? "";
      swatch.style.setProperty("--light", first?.colour ?? "");
      swatch.style.setProperty("--dark", first?.dark ?? "");
      const button = element("button", swatch, name);
      button.addEventListener("click", (event) => {
        if (event.detail > 1 || event.shiftKey) this.alone(name);
        else if (!this.hidden.delete(name)) this.hidden.add(name);
        press();
        stack(this.shown());
        this.add();
        this.plot.redraw(false);
      });
      return button;
    });
    const press = () =>
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(!this.hidden.has(this.names[i]))));
    press();
    place.append(...buttons);
  }

  /** Shows one series alone, or all again. @param {string} name */
  alone(name) {
    const others = this.names.filter((other) => other !== name);
    const already = others.every((other) => this.hidden.has(other));
    this.hidden = new Set(already ? [] : others);
  }

  /** @param {HTMLElement} place */
  tools(place) {
    const axes = place.dataset.axes === "xy" ? /** @type {const} */ (["x", "y"]) : /** @type {const} */ (["x"]);
    /** @type {Record<string, () => void>} */
    const actions = {
      in: () => axes.forEach((key) => this.move(key, MOVES.in)),
      out: () => axes.forEach((key) => this.move(key, MOVES.out)),
      left: () => this.move("x", MOVES.back),
      right: () => this.move("x", MOVES.on),
      up: () => this.move("y", MOVES.on),
      down: () => this.move("y", MOVES.back),
      all: () => this.all(),
      next: () => this.next(1),
      previous: () => this.next(-1),
    };
    const field = place.querySelector("input");
    field?.addEventListener("input", () => {
      this.search = field.value.toLowerCase();
      this.add();
      this.plot.redraw(false);
    });
    for (const button of place.querySelectorAll("button"))
      button.addEventListener("click", actions[button.dataset.do ?? ""]);
    place.addEventListener("keydown", (event) => {
      const action = actions[KEYS[event.key]];
      if (action === undefined || event.target === field) return;
      action();
      event.preventDefault();
    });
  }

  /** The marks as rows. */
  table() {
    const { x, y, series } = this.figure;
    const heads = ["series", x.title, y.title || "lane", "text"].map((text) => element("th", text));
    heads.forEach((head) => head.setAttribute("scope", "col"));
    const rows = series.flatMap((one) =>
      one.x.map((value, i) => {
        const cells = [one.name, format(value), y.lanes[one.y[i]] ?? format(one.y[i]), describe(one, i)];
        return element("tr", ...cells.map((text) => element("td", text.replaceAll("\n", ", "))));
      }),
    );
    const whole = element("table", element("thead", element("tr", ...heads)));
    whole.append(element("tbody", ...rows.slice(0, MOST_ROWS)));
    if (rows.length > MOST_ROWS) {
      const more = (rows.length - MOST_ROWS).toLocaleString("en");
      whole.prepend(
        element("caption", `The first ${MOST_ROWS.toLocaleString("en")} marks; ${more} more are left out.`),
      );
    }
    return whole;
  }
}

for (const root of document.querySelectorAll(".chart")) new Chart(/** @type {HTMLElement} */ (root));
