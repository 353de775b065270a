// Buttons and arrow keys for the time axes; details open for print.
"use strict";
for (const tools of document.querySelectorAll(".tools")) {
  const plot = document.getElementById(tools.dataset.plot);
  const move = (change) => {
    const [a, b] = plot.layout.xaxis.range.map(Number);
    const [low, high] = change(a, b);
    Plotly.relayout(plot, { "xaxis.range": [low, high], "xaxis.autorange": false });
  };
  const actions = {
    in: () => move((a, b) => [a + (b - a) / 4, b - (b - a) / 4]),
    out: () => move((a, b) => [a - (b - a) / 2, b + (b - a) / 2]),
    left: () => move((a, b) => [a - (b - a) / 4, b - (b - a) / 4]),
    right: () => move((a, b) => [a + (b - a) / 4, b + (b - a) / 4]),
    all: () => Plotly.relayout(plot, { "xaxis.autorange": true }),
  };
  for (const button of tools.querySelectorAll("button")) button.addEventListener("click", actions[button.dataset.do]);
  const keys = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", "0": "all" };
  tools.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    actions[keys[event.key]]();
    event.preventDefault();
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => (item.open = true)));
