// The curve of misses over false alarms, on the page and in the report: all thresholds moved together, in log-odds.
const LEAST = 0.1, MOST = 300; // false alarms per hour at the ends of the axis, which is logarithmic
const WIDTH = 480, HEIGHT = 240, LEFT = 46, RIGHT = 12, TOP = 8, BOTTOM = 42;
const COLOURS = ["#3778bf", "#c8641b", "#2f8f55"];

const within = (alarms) => Math.min(Math.max(alarms, LEAST), MOST);
const x = (alarms) => LEFT + (WIDTH - LEFT - RIGHT) * Math.log(within(alarms) / LEAST) / Math.log(MOST / LEAST);
const y = (missed) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * missed;

function add(parent, name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

// Draws curves [{name, points: [[offset of the thresholds, false alarms per hour, miss rate], …]}, …] into an SVG, and
// returns a function that marks the points nearest to an offset, and describes them in a sentence.
export function drawCurves(svg, curves) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const label = { fill: "currentColor", "font-size": 12 };
  const line = { stroke: "currentColor", "stroke-opacity": 0.2 };
  for (const missed of [0, 0.25, 0.5, 0.75, 1]) {
    add(svg, "line", { ...line, x1: LEFT, x2: WIDTH - RIGHT, y1: y(missed), y2: y(missed) });
    add(svg, "text", { ...label, x: LEFT - 6, y: y(missed) + 4, "text-anchor": "end" }, `${100 * missed} %`);
  }
  for (const alarms of [LEAST, 1, 10, 100]) {
    add(svg, "line", { ...line, x1: x(alarms), x2: x(alarms), y1: y(0), y2: y(1) });
    add(svg, "text", { ...label, x: x(alarms), y: y(0) + 16, "text-anchor": "middle" }, alarms);
  }
  add(svg, "text", { ...label, x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
    "false alarms per hour (0.1: that or fewer)");
  const dots = curves.map(({ name, points }, index) => {
    const colour = COLOURS[index % COLOURS.length];
    const path = points.map(([, alarms, missed]) => `${x(alarms).toFixed(1)},${y(missed).toFixed(1)}`).join(" ");
    add(svg, "polyline", { points: path, fill: "none", stroke: colour, "stroke-width": 2 });
    add(svg, "text", { ...label, fill: colour, x: WIDTH - RIGHT - 4, y: TOP + 14 + 16 * index, "text-anchor": "end" }, name);
    return add(svg, "circle", { r: 5, fill: colour });
  });
  return (offset) => curves.map(({ name, points }, index) => {
    const [, alarms, missed] = points.reduce((best, one) => Math.abs(one[0] - offset) < Math.abs(best[0] - offset) ? one : best);
    dots[index].setAttribute("cx", x(alarms));
    dots[index].setAttribute("cy", y(missed));
    return `${name}: ${(100 * missed).toFixed(1)} % missed, ${alarms.toFixed(alarms < 1 ? 2 : 1)} false alarms per hour`;
  }).join("; ");
}

// Moves a threshold by an offset in log-odds; one above 1 stays: the word is never reported.
export function moved(threshold, offset) {
  if (threshold > 1 || !offset) return threshold;
  const odds = Math.min(threshold, 0.9999) / (1 - Math.min(threshold, 0.9999));
  return 1 / (1 + Math.exp(-offset) / odds);
}
