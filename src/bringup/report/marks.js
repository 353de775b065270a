// The marks of a chart: how each shape is drawn, and which mark is under the cursor.
"use strict";

/**
 * The data of chart.py, with what `complete` adds: texts in place of numbers, and the heights of stacks.
 * @typedef {{title: string, log: boolean, lanes: string[]}} Axis
 * @typedef {{x: number[], width: number[], y: number[], text: string[]}} Parts
 * @typedef {{name: string, shape: "bars"|"points"|"line"|"steps"|"stack", colour: string, dark: string, x: number[], y: number[],
 *   width: number[], size: number[], text: string[], hover: string, dashed: boolean, row: number[], column: string,
 *   labels: Record<string, string[]>, inside: boolean, parts: Parts, base: number[], top: number[]}} Series
 * @typedef {{x: Axis, y: Axis, series: Series[], height: number, texts: string[]}} Figure
 * @typedef {[number, number]} Pair
 */

const LANE = 0.76; // share of a lane that bars fill

/** Writes what fits between two places, white or black on the colour of the mark. */
/** @type {(context: CanvasRenderingContext2D, text: string, left: number, right: number, y: number, ratio: number) => void} */
function write(context, text, left, right, y, ratio) {
  const colour = String(context.fillStyle);
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const from = Math.max(left, 0) + 4 * ratio;
  context.save();
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "left";
  context.beginPath();
  context.rect(from, y - 20 * ratio, right - from - 3 * ratio, 40 * ratio);
  context.clip();
  context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000000" : "#ffffff";
  context.fillText(text, from, y);
  context.restore();
}

/** The rectangles of the texts beside points: left, right and middle. @type {[number, number, number][]} */
const written = [];

/** Writes a text beside a point, at the side where it fits, unless it would cover another one. */
/** @type {(context: CanvasRenderingContext2D, text: string, x: number, y: number, away: number, ratio: number) => void} */
function beside(context, text, x, y, away, ratio) {
  context.save();
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "left";
  const width = context.measureText(text).width;
  const left = x + away + width < context.canvas.width - 40 * ratio ? x + away : x - away - width;
  const covers = written.some(([from, to, at]) => left < to && from < left + width && Math.abs(at - y) < 11 * ratio);
  if (!covers) {
    written.push([left, left + width, y]);
    context.globalAlpha = 1;
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.fillText(text, left, y);
  }
  context.restore();
}

/**
 * How each shape is drawn on the canvas, and the distance of a mark from a place in the plot, in pixels.
 * `at(x, y)` is a mark's place, on the canvas or in the plot.
 * @typedef {(x: number, y: number) => Pair} Place
 * @type {Record<string, {draw: (context: CanvasRenderingContext2D, series: Series, at: Place, ratio: number) => void,
 *   distance: (series: Series, i: number, at: Place, left: number, top: number) => number}>}
 */
const SHAPES = {
  bars: {
    draw(context, series, at, ratio) {
      series.x.forEach((x, i) => {
        const [left, top] = at(x, series.y[i] + LANE / 2);
        const [right, bottom] = at(x + series.width[i], series.y[i] - LANE / 2);
        context.fillRect(left, top, Math.max(right - left, ratio), bottom - top);
        if (series.inside && right - left > 30 * ratio) write(context, series.text[i].split("\n")[0], left, right, (top + bottom) / 2, ratio);
      });
    },
    distance(series, i, at, left, top) {
      const [low, high] = at(series.x[i], series.y[i] + LANE / 2);
      const [end, bottom] = at(series.x[i] + series.width[i], series.y[i] - LANE / 2);
      return top < high || top > bottom ? Infinity : Math.max(low - left, left - end, 0);
    },
  },
  points: {
    draw(context, series, at, ratio) {
      context.globalAlpha = 0.7;
      series.x.forEach((x, i) => {
        const [left, top] = at(x, series.y[i]);
        context.beginPath();
        context.arc(left, top, (series.size[i] / 2) * ratio, 0, 2 * Math.PI);
        context.fill();
        if (series.inside) beside(context, series.text[i], left, top, (series.size[i] / 2 + 3) * ratio, ratio);
      });
    },
    distance(series, i, at, left, top) {
      const [x, y] = at(series.x[i], series.y[i]);
      return Math.max(Math.hypot(x - left, y - top) - series.size[i] / 2, 0);
    },
  },
  line: {
    draw(context, series, at, ratio) {
      context.setLineDash(series.dashed ? [3 * ratio, 3 * ratio] : []);
      context.beginPath();
      series.x.forEach((x, i) => context.lineTo(...at(x, series.y[i])));
      context.stroke();
    },
    distance(series, i, at, left, top) {
      const [x, y] = at(series.x[i], series.y[i]);
      const [nextX, nextY] = at(series.x[i + 1] ?? series.x[i], series.y[i + 1] ?? series.y[i]);
      const [dx, dy] = [nextX - x, nextY - y];
      const share = ((left - x) * dx + (top - y) * dy) / (dx * dx + dy * dy || 1); // of the way to the nearest place
      const along = Math.min(Math.max(share, 0), 1);
      return 1 + Math.hypot(x + along * dx - left, y + along * dy - top); // bars and points come first
    },
  },
  steps: {
    draw(context, series, at) {
      const last = series.x.length - 1;
      context.beginPath();
      series.x.forEach((x, i) => {
        context.lineTo(...at(x, series.y[Math.max(i - 1, 0)]));
        context.lineTo(...at(x, series.y[i]));
      });
      context.stroke();
      context.lineTo(...at(series.x[last], 0));
      context.lineTo(...at(series.x[0], 0));
      context.globalAlpha = 0.25;
      context.fill();
    },
    distance(series, i, at, left) {
      const [start] = at(series.x[i], series.y[i]);
      const [end] = i + 1 < series.x.length ? at(series.x[i + 1], series.y[i]) : [Infinity];
      return start <= left && left < end ? 5 : Infinity; // marks at the cursor come first
    },
  },
  stack: {
    draw(context, { x, base, top }, at, ratio) {
      const last = x.length - 1;
      context.beginPath();
      for (let i = 0; i <= last; i++) {
        context.lineTo(...at(x[i], top[Math.max(i - 1, 0)]));
        context.lineTo(...at(x[i], top[i]));
      }
      for (let i = last; i >= 0; i--) {
        context.lineTo(...at(x[Math.min(i + 1, last)], base[i]));
        context.lineTo(...at(x[i], base[i]));
      }
      context.globalAlpha *= 0.8;
      context.fill();
      context.lineWidth = 0.5 * ratio;
      context.stroke();
    },
    distance({ x, base, top }, i, at, left, cursor) {
      const [start, low] = at(x[i], base[i]);
      const [end] = i + 1 < x.length ? at(x[i + 1], base[i]) : [Infinity];
      const [, high] = at(x[i], top[i]);
      return start <= left && left < end && high <= cursor && cursor < low ? 1 : Infinity;
    },
  },
};
