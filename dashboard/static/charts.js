// Curves over time, drawn by uPlot in the page's own colours, with a legend that shows the values under the cursor.
/* global uPlot */
import { element } from "./table.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif';

const pad = (number) => String(number).padStart(2, "0");

export function clock(seconds, fine) {
  const at = new Date(seconds * 1000);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}${fine ? `:${pad(at.getSeconds())}` : ""}`;
}

export class Chart {
  /** `lines` are {label, hue, of(row), dash, fill, band}: what a line takes from an interval; `say` spells a value; `near`
   *  allows an axis that does not begin at 0. */
  constructor(host, { title, lines, say, near = false, tall = 170, ticks = (marks) => marks.map(say) }) {
    Object.assign(this, { host, title, lines, say, near, tall, ticks });
    this.caption = element("figcaption");
    this.keys = element("ul", "keys");
    this.heading = element("h2", "", title);
    this.caption.append(this.heading, this.keys);
    this.plot = element("div", "plot");
    this.plot.setAttribute("role", "img");
    host.replaceChildren(this.caption, this.plot);
    this.values = lines.map((line) => {
      const key = element("li"), mark = element("i", line.band ? "band" : line.dash ? "dash" : ""), value = element("b");
      mark.style.color = mark.style.borderColor = `var(--${line.hue})`;
      key.append(mark, `${line.label} `, value);
      if (!line.silent) this.keys.append(key);
      return value;
    });
    this.data = [[], ...lines.map(() => [])];
    this.make();
    new ResizeObserver(() => this.fit()).observe(this.plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.make());
  }

  make() {
    this.chart?.destroy();
    const axis = { stroke: colour("soft"), font: FONT, grid: { stroke: colour("hair"), width: 1 }, ticks: { show: false } };
    const band = this.lines.findIndex((line) => line.band);
    this.chart = new uPlot({
      width: this.plot.clientWidth || 400,
      height: this.tall,
      padding: [8, 22, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
      scales: { x: { time: true }, y: { range: (_, low, high) => reach(low, high, this.near) } },
      series: [{}, ...this.lines.map((line) => ({
        label: line.label,
        stroke: line.band ? "transparent" : colour(line.hue),
        width: line.band ? 0 : line.width ?? 2,
        dash: line.dash,
        fill: line.fill ? colour(`${line.hue}-band`) : undefined,
        spanGaps: true,
        points: { show: line.band ? false : (_, __, first, last) => last - first < 2, size: 5 },
      }))],
      bands: band < 0 ? [] : [{ series: [band + 2, band + 1], fill: colour("fleet-band") }],
      axes: [
        { ...axis, size: 30, space: 74, values: (_, marks) => marks.map((mark) => clock(mark, (marks[1] ?? mark) - marks[0] < 60)) },
        { ...axis, size: 54, space: 34, values: (_, marks) => this.ticks(marks) },
      ],
      hooks: { setCursor: [() => this.legend()] },
    }, this.data, this.plot);
    this.legend();
  }

  fit() {
    const width = this.plot.clientWidth;
    if (width && width !== this.chart.width) this.chart.setSize({ width, height: this.tall });
  }

  set(rows) {
    this.data = [rows.map((row) => row.time), ...this.lines.map((line) => rows.map(line.of))];
    this.chart.setData(this.data);
    this.legend();
    const last = this.lines.flatMap((line, place) => (line.silent || this.values[place].parentNode.hidden ? [] : [`${line.label} ${this.values[place].textContent}`]));
    this.plot.setAttribute("aria-label", `${this.heading.textContent} over time; now ${last.join(", ")}`);
  }

  /** The values under the cursor, else the last ones. */
  legend() {
    const at = this.chart?.cursor.idx;
    this.lines.forEach((line, place) => {
      const values = this.data[place + 1];
      let shown = at ?? values.length - 1;
      while (shown > 0 && (values[shown] === null || values[shown] === undefined)) shown -= 1;
      const text = (line.say ?? this.say)(values[shown] ?? null, this.data, shown);
      if (this.values[place].textContent !== text) this.values[place].textContent = text;
      const none = values.length > 0 && values.every((value) => value === null);
      if (this.values[place].parentNode.hidden !== none) this.values[place].parentNode.hidden = none;
    });
  }
}

/** A range with some room above: from 0, or near the values if these are far from it. */
function reach(low, high, near) {
  if (low === null || low === undefined) return [0, 1];
  const room = high - low || Math.abs(high) || 1, least = near && low > 0.4 * high ? Math.max(0, low - 0.12 * room) : Math.min(0, low);
  return [least, high + 0.1 * (high - least || 1)];
}
