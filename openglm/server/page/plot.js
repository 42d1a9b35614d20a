// Small plots in SVG: lines over the last minutes, and bars.

import { h, svg } from "./dom.js";
import { niceTop, KEPT_S } from "./series.js";

const WIDTH = 320;
const HEIGHT = 96;

/** A card with a title, the present value, and one or two lines. `lines`: [{ name, label, value(point) }]; `format` writes values. */
export function linePlot(title, { lines, format, top = null, unit = "" }) {
  const value = h("span.plot-value", {}, "–");
  const scale = h("span.plot-scale");
  const area = svg("path", { class: "plot-area" });
  const paths = lines.map((_, i) => svg("path", { class: `plot-line line-${i}` }));
  const grid = [0.25, 0.5, 0.75].map((share) => svg("path", { class: "plot-grid", d: `M0 ${HEIGHT * share}H${WIDTH}` }));
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title }, ...grid, area, ...paths);
  const legend = lines.length > 1 ? h("p.legend", {}, ...lines.map((line, i) => h("span", {}, h(`span.swatch.line-${i}`), line.label))) : null;
  const node = h("section.plot", {}, h("h3", {}, title), h("p.plot-head", {}, value, h("span.plot-unit", {}, unit), scale), h("div.plot-frame", {}, picture), legend);
  const update = (points) => {
    const highest = top ?? niceTop(Math.max(0, ...points.flatMap((point) => lines.map((line) => line.value(point) ?? 0))));
    const latest = lines.map((line) => points.map(line.value).findLast(Number.isFinite));
    const now = latest.map((each) => (each === undefined ? "–" : format(each)));
    value.textContent = now.join(" / ");
    scale.textContent = format(highest);
    lines.forEach((line, i) => {
      const d = lineThrough(points, line.value, highest);
      paths[i].setAttribute("d", d.line);
      if (i === 0) area.setAttribute("d", d.area);
    });
  };
  return { node, update };
}

/** Path data through the points, broken where a value is missing. */
function lineThrough(points, value, top) {
  const end = points.at(-1)?.time ?? 0;
  const runs = [[]];
  for (const point of points) {
    const y = value(point);
    if (!Number.isFinite(y)) {
      if (runs.at(-1).length) runs.push([]);
      continue;
    }
    const x = WIDTH * (1 - (end - point.time) / KEPT_S);
    runs.at(-1).push(`${x.toFixed(1)} ${(HEIGHT - 1 - (HEIGHT - 3) * Math.min(1, y / top)).toFixed(1)}`);
  }
  const drawn = runs.filter((run) => run.length > 1);
  const line = drawn.map((run) => `M${run.join("L")}`).join("");
  const area = drawn.map((run) => `M${run[0].split(" ")[0]} ${HEIGHT}L${run.join("L")}L${run.at(-1).split(" ")[0]} ${HEIGHT}Z`).join("");
  return { line, area };
}

/** A card with one bar a row: `update([{ label, share, note }])`. */
export function barPlot(title, { none, format }) {
  const rows = h("div.bars");
  const node = h("section.plot", {}, h("h3", {}, title), rows);
  const update = (bars) => {
    if (!bars.length) {
      rows.replaceChildren(h("p.none", {}, none));
      return;
    }
    rows.replaceChildren(
      ...bars.map(({ label, share, note }) => {
        const bar = h("span.bar");
        bar.style.setProperty("width", `${(100 * share).toFixed(1)}%`);
        return h("div.bar-row", { title: note }, h("span", {}, label), h("span.track", {}, bar), h("span.share", {}, format(share)));
      }),
    );
  };
  return { node, update };
}
