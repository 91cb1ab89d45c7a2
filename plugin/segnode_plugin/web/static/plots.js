// Draws the times that figures carry in `data-plot`, a line for each percentile.
"use strict";

(() => {
  const { duration } = window.segnode;
  const DAY_S = 86400;
  const HEIGHT = 150;
  const STEPS_S = [1, 2, 5, 10, 20].map((step) => step / 100).concat([0.5, 1, 2, 5, 10, 15, 30]);
  const STEPS = [...STEPS_S, ...STEPS_S.slice(6).map((step) => step * 60), ...[1, 2, 6, 12, 24, 72].map((step) => step * 3600)];

  function day(at) {
    return new Date(at * 1000).toISOString().slice(0, 10);
  }

  function colour(element) {
    return getComputedStyle(element).color;
  }

  function axis(figure, more) {
    const faint = getComputedStyle(figure).borderTopColor;
    return { stroke: colour(figure), grid: { stroke: faint, width: 1 }, ticks: { stroke: faint, width: 1 }, ...more };
  }

  function line(figure, { name }) {
    const stroke = colour(figure.querySelector(`.legend .${name}`));
    return { label: name, stroke, width: 2, points: { show: true, size: 4, fill: stroke } };
  }

  function tell(figure, lines) {
    return (plot) => {
      const place = plot.cursor.idx;
      const known = place === null || place === undefined ? [] : lines.filter(({ seconds }) => seconds[place] !== null);
      const said = known.map(({ name, seconds }) => `${name} ${duration(seconds[place])}`);
      figure.querySelector("output").textContent = said.length ? `${day(plot.data[0][place])}: ${said.join(", ")}` : "";
    };
  }

  function draw(figure) {
    const { at, lines } = JSON.parse(figure.dataset.plot);
    const place = figure.querySelector(".canvas");
    const options = {
      width: place.clientWidth,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false },
      scales: {
        x: { range: () => [at[0] - DAY_S / 2, at.at(-1) + DAY_S / 2] },
        y: { range: (plot, low, high) => [0, (high || 1) * 1.1] },
      },
      axes: [
        axis(figure, { size: 30, space: 70, incrs: [1, 2, 7, 14, 30].map((days) => days * DAY_S), values: (plot, ticks) => ticks.map((tick) => day(tick).slice(5)) }),
        axis(figure, { size: 90, space: 24, incrs: STEPS, values: (plot, ticks) => ticks.map(duration) }),
      ],
      series: [{}, ...lines.map((each) => line(figure, each))],
      hooks: { setCursor: [tell(figure, lines)] },
    };
    return new uPlot(options, [at, ...lines.map(({ seconds }) => seconds)], place);
  }

  const drawn = new Map();

  function drawAll() {
    for (const figure of document.querySelectorAll(".plot[data-plot]")) {
      figure.hidden = false;
      drawn.get(figure)?.destroy();
      drawn.set(figure, draw(figure));
    }
  }

  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => {
    for (const [figure, plot] of drawn) {
      plot.setSize({ width: figure.querySelector(".canvas").clientWidth, height: HEIGHT });
    }
  });
})();
