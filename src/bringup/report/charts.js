// Draws the charts of a page. uPlot provides axes, zoom and cursor; marks.js draws; the legend, hover texts and tables are here.
"use strict";

const MOST_ROWS = 1000; // of a table
const FONT = "12px system-ui, sans-serif";
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
    series[key].forEach((value, i) => {
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
 * The ticks of a logarithmic axis: powers of ten, with others between them if there are few.
 * @type {(low: number, high: number, most: number) => number[]}
 */
function powers(low, high, most) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const stride = Math.ceil((last - first) / Math.max(most, 1));
  const between = last - first > 3 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = first; power <= last; power += stride) ticks.push(...between.map((digit) => digit * 10 ** power));
  return ticks.filter((tick) => low <= tick && tick <= high);
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

/** How buttons move the ends of an axis, in shares of its length. @type {Record<string, Pair>} */
const MOVES = { in: [0.25, -0.25], out: [-0.5, 0.5], back: [-0.25, -0.25], on: [0.25, 0.25] };
/** @type {Record<string, string>} */
const KEYS = {
  ...{ "+": "in", "=": "in", "-": "out", 0: "all" },
  ...{ ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" },
};

/** One chart, on an element that chart.html has written. */
class Chart {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {Figure} */
    this.figure = JSON.parse(this.part("script").textContent ?? "");
    this.names = [...new Set(this.figure.series.map((series) => series.name))];
    /** @type {Set<string>} */
    this.hidden = new Set();
    this.ends = { x: extent(this.figure, "x"), y: extent(this.figure, "y") };
    this.plot = this.axes(this.part(".plot"));
    this.tip = element("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.plot.over.append(this.tip);
    this.legend(this.part(".legend"));
    this.tools(this.part(".tools"));
    const details = this.part("details");
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
    const style = getComputedStyle(this.root);
    /** @type {(axis: Axis) => uPlot.Axis} */
    const described = (axis) => ({
      label: axis.title || undefined,
      labelFont: FONT,
      labelSize: 20,
      font: FONT,
      stroke: style.getPropertyValue("--ink"),
      grid: { stroke: style.getPropertyValue("--line"), width: 1 },
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
        hooks: { draw: [(plot) => this.draw(plot)], setCursor: [() => this.hover()] },
      },
      [this.ends.x, this.ends.y],
      place,
    );
    new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height })).observe(place);
    return plot;
  }

  /** @param {uPlot} plot */
  draw(plot) {
    const { ctx: context, bbox } = plot;
    /** @type {Place} */
    const at = (x, y) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
    for (const series of this.shown()) {
      context.save();
      context.beginPath();
      context.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      context.clip();
      context.fillStyle = context.strokeStyle = series.colour;
      context.lineWidth = 1.5 * uPlot.pxRatio;
      SHAPES[series.shape].draw(context, series, at, uPlot.pxRatio);
      context.restore();
    }
  }

  /** Shows the text of the mark at the cursor. */
  hover() {
    const { plot, tip } = this;
    const { left = -1, top = -1 } = plot.cursor;
    /** @type {Place} */
    const at = (x, y) => [plot.valToPos(x, "x"), plot.valToPos(y, "y")];
    let [nearest, text] = [REACH, ""];
    for (const series of left < 0 ? [] : this.shown())
      for (let i = 0; i < series.x.length; i++) {
        const distance = SHAPES[series.shape].distance(series, i, at, left, top);
        if (distance <= nearest) [nearest, text] = [distance, describe(series, i)]; // what is drawn last is on top
      }
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
      swatch.style.background = first?.colour ?? "";
      const button = element("button", swatch, name);
      button.addEventListener("click", (event) => {
        if (event.detail > 1 || event.shiftKey) this.alone(name);
        else if (!this.hidden.delete(name)) this.hidden.add(name);
        press();
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
    };
    for (const button of place.querySelectorAll("button"))
      button.addEventListener("click", actions[button.dataset.do ?? ""]);
    place.addEventListener("keydown", (event) => {
      const action = actions[KEYS[event.key]];
      if (action === undefined) return;
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
