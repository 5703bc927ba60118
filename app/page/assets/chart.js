// A small chart of a few curves over steps.
import {el} from "./core.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM] = [360, 150, 44, 20];
const COLOURS = ["var(--act)", "var(--soft)", "var(--good)", "var(--strong)"];
const DASHES = ["", "5 3", "2 3", "8 3 2 3"];

function svg(tag, told, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(told)) made.setAttribute(name, String(value));
  made.append(...inside);
  return made;
}

export function chart(title, curves) {
  const there = Object.entries(curves).filter(([, points]) => points.length);
  const all = there.flatMap(([, points]) => points);
  const [xs, ys] = [0, 1].map((i) => all.map((point) => point[i]));
  const range = (values) => [Math.min(...values), Math.max(...values)];
  const [[x0, x1], [y0, y1]] = [range(xs), range(ys)];
  const at = ([x, y]) => [LEFT + ((x - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - 8), 8 + (1 - (y - y0) / (y1 - y0 || 1)) * (HEIGHT - BOTTOM - 12)];
  const lines = there.map(([, points], i) => svg("polyline", {points: points.map((one) => at(one).map((v) => v.toFixed(1)).join(",")).join(" "),
    fill: "none", stroke: COLOURS[i % 4], "stroke-width": 2, "stroke-dasharray": DASHES[i % 4]}));
  const dots = there.flatMap(([, points], i) => (points.length > 12 ? [] : points.map((one) => {
    const [cx, cy] = at(one);
    return svg("circle", {cx, cy, r: 2.6, fill: COLOURS[i % 4]});
  })));
  const label = (x, y, text, anchor) => svg("text", {x, y, "text-anchor": anchor, "font-size": 11, fill: "currentColor"}, text);
  const told = there.map(([name, points]) => `${name} ${points.at(-1)[1].toPrecision(3)}`).join(", ");
  return el("figure", {class: "ldm-chart"}, el("b", {}, title), svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: now ${told}`},
    svg("path", {d: `M${LEFT} 8V${HEIGHT - BOTTOM}H${WIDTH - 8}`, fill: "none", stroke: "var(--line)"}), ...lines, ...dots,
    label(LEFT - 6, 16, y1.toPrecision(2), "end"), label(LEFT - 6, HEIGHT - BOTTOM, y0.toPrecision(2), "end"),
    label(LEFT, HEIGHT - 5, String(x0), "start"), label(WIDTH - 8, HEIGHT - 5, `step ${x1}`, "end")),
    el("figcaption", {}, ...there.map(([name], i) => el("span", {}, el("i", {style: `background: ${COLOURS[i % 4]}`}), name))));
}
