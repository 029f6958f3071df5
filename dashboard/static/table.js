// The table of devices: sorted, filtered, and only the rows in view are in the document.

const NUMBERS = new Set(["heard", "accepted", "updates", "refused", "behind", "score", "skew", "battery", "keeps"]);

export const COLUMNS = [
  // key, title, least width in pixels, order in which columns are left out on a narrow screen (0 never)
  { key: "name", title: "Device", width: 106, last: 0 },
  { key: "state", title: "State", width: 104, last: 0 },
  { key: "heard", title: "Last heard", width: 78, last: 1 },
  { key: "accepted", title: "Accepted", width: 82, last: 7 },
  { key: "updates", title: "Updates", width: 72, last: 6 },
  { key: "refused", title: "Refused", width: 72, last: 4 },
  { key: "behind", title: "Behind", width: 66, last: 2 },
  { key: "score", title: "Own score", width: 84, last: 3 },
  { key: "skew", title: "Clock", width: 76, last: 8 },
  { key: "battery", title: "Battery", width: 68, last: 5 },
  { key: "keeps", title: "Keeps", width: 66, last: 3.5 },
  { key: "why", title: "Reason", width: 150, last: 9 },
];

const OPTIONAL = ["accepted", "score", "skew", "battery", "keeps", "why"];
const LAST = "\uffff";
const GAP = 12, SIDES = 30, BEYOND = 6;

export class DeviceTable {
  /** `show(key, device)` gives a cell's text and class; `open(name)` is the address of a device's page. */
  constructor(host, { show, value, address, changed, fitted }) {
    Object.assign(this, { host, show, value, address, changed, fitted });
    this.devices = new Map();
    this.order = [];
    this.sorting = { key: "name", down: false };
    this.text = "";
    this.state = "";
    this.rows = new Map();
    this.ranked = false;
    this.active = "";
    this.present = new Set(["name", "state", "heard", "updates", "refused", "behind"]);
    this.head = element("div", "head");
    this.head.setAttribute("role", "row");
    this.body = element("div", "body");
    this.body.setAttribute("role", "rowgroup");
    this.empty = element("p", "empty");
    this.empty.hidden = true;
    host.append(this.head, this.body, this.empty);
    host.addEventListener("scroll", () => this.soon(), { passive: true });
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("focusin", (event) => this.activate(event.target.dataset.name));
    this.wide = matchMedia("(min-width: 761px)");
    new ResizeObserver(() => this.layout()).observe(host);
  }

  /** Take in rows as they came; which devices are shown is found later, once for all of them. */
  take(rows, columns) {
    const before = this.present.size;
    for (const row of rows) {
      let device = this.devices.get(row[0]);
      if (!device) {
        device = { order: sortable(row[0]), rank: 0 };
        this.devices.set(row[0], device);
        this.ranked = false;
      }
      columns.forEach((column, place) => { device[column] = row[place]; });
      device.words = `${device.name} ${device.state} ${device.keeps ? "keeps" : ""} ${device.why}`.toLowerCase();
      for (const key of OPTIONAL) {
        if (device[key] !== null && device[key] !== "") this.present.add(key);
      }
    }
    if (this.present.size > before) this.layout();
  }

  drop(names) { for (const name of names) this.devices.delete(name); }

  /** Give each device its place by name, once for many sortings. */
  rank() {
    [...this.devices.values()].sort((a, b) => (a.order < b.order ? -1 : 1)).forEach((device, place) => { device.rank = place; });
    this.ranked = true;
  }

  /** Filter and sort again, then draw. */
  refresh() {
    if (!this.ranked) this.rank();
    const { key, down } = this.sorting, sign = down ? -1 : 1, words = !NUMBERS.has(key) && key !== "name", found = [];
    for (const device of this.devices.values()) {
      if (this.state && device.state !== this.state) continue;
      if (this.text && !device.words.includes(this.text)) continue;
      // What is missing comes last in both directions.
      if (words) device.by = device[key] || LAST;
      else device.by = key === "name" ? sign * device.rank : sign * (this.value(key, device) ?? sign * Infinity);
      found.push(device);
    }
    const compare = (a, b) => (a.by === LAST ? 1 : b.by === LAST || (a.by < b.by) === !down ? -1 : 1);
    if (words) found.sort((a, b) => (a.by === b.by ? a.rank - b.rank : compare(a, b)));
    else found.sort((a, b) => (a.by === b.by ? a.rank - b.rank : a.by - b.by));
    this.order = found;
    this.host.setAttribute("aria-rowcount", found.length + 1);
    this.empty.hidden = found.length > 0;
    this.empty.textContent = this.devices.size ? "No device is like that." : "No device has connected yet.";
    this.changed(found.length, this.devices.size);
    this.draw();
  }

  sort(key, down) {
    const numeric = NUMBERS.has(key);
    this.sorting = { key, down: down ?? (this.sorting.key === key ? !this.sorting.down : numeric && key !== "heard") };
    this.layout();
    this.titles();
    this.refresh();
  }

  /** Choose the columns that have room, and draw the head. */
  layout() {
    const room = this.host.clientWidth;
    if (!room) return;
    let shown = COLUMNS.filter((column) => this.present.has(column.key));
    const needed = () => shown.reduce((sum, column) => sum + column.width + GAP, SIDES - GAP);
    const rank = (column) => (column.key === this.sorting.key ? 0 : column.last);
    while (needed() > room && shown.some(rank)) {
      const least = shown.reduce((a, b) => (rank(a) > rank(b) ? a : b));
      shown = shown.filter((column) => column !== least);
    }
    const keys = shown.map((column) => column.key).join();
    this.height = this.wide.matches ? 38 : 46;
    if (keys !== this.keys) {
      this.keys = keys;
      this.fitted(shown.length === this.present.size);
      this.columns = shown;
      this.template = shown
        .map(({ key, width }) => (key === "name" || key === "why" ? `minmax(${width}px, ${key === "why" ? 3 : 1.4}fr)` : `minmax(${width}px, .6fr)`))
        .join(" ");
      this.titles();
      for (const row of this.rows.values()) row.remove();
      this.rows.clear();
    }
    this.draw();
  }

  titles() {
    if (!this.columns) return;
    const focused = this.head.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.head.style.gridTemplateColumns = this.template;
    this.head.replaceChildren(...this.columns.map(({ key, title }) => {
      const cell = element("div", NUMBERS.has(key) ? "number" : ""), button = element("button", "", title);
      cell.setAttribute("role", "columnheader");
      if (this.sorting.key === key) cell.setAttribute("aria-sort", this.sorting.down ? "descending" : "ascending");
      button.type = "button";
      button.dataset.key = key;
      button.addEventListener("click", () => this.sort(key));
      cell.append(button);
      return cell;
    }));
    if (focused) this.head.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  soon() {
    this.due ??= requestAnimationFrame(() => { this.due = null; this.draw(); });
  }

  /** Put the rows in view, and the one with the focus, into the document. */
  draw() {
    if (!this.columns || !this.host.clientHeight) return;
    const { order, height } = this;
    const extent = `${order.length * height}px`;
    if (this.body.style.height !== extent) this.body.style.height = extent;
    const first = Math.max(0, Math.floor(this.host.scrollTop / height) - BEYOND);
    const last = Math.min(order.length, first + Math.ceil(this.host.clientHeight / height) + 2 * BEYOND);
    const wanted = new Map();
    for (let place = first; place < last; place += 1) wanted.set(order[place].name, place);
    const focused = this.rows.has(document.activeElement?.dataset?.name) ? document.activeElement.dataset.name : "";
    if (focused && !wanted.has(focused)) {
      const place = order.findIndex((device) => device.name === focused);
      if (place >= 0) wanted.set(focused, place);
    }
    const free = [];
    for (const [name, row] of this.rows) {
      if (!wanted.has(name)) {
        this.rows.delete(name);
        free.push(row);
      }
    }
    if (!wanted.has(this.active)) this.active = order[first]?.name ?? "";
    for (const [name, place] of wanted) {
      let row = this.rows.get(name);
      if (!row) {
        row = free.pop() ?? this.make();
        this.rows.set(name, row);
      }
      this.fill(row, this.devices.get(name), place);
    }
    for (const row of free) row.remove();
  }

  make() {
    const row = element("div", "row");
    row.setAttribute("role", "row");
    row.style.gridTemplateColumns = this.template;
    for (const { key } of this.columns) {
      const cell = element(key === "name" ? "a" : "span");
      if (key === "name") {
        const holder = element("span");
        holder.setAttribute("role", "rowheader");
        holder.append(cell);
        row.append(holder);
      } else {
        cell.setAttribute("role", "cell");
        row.append(cell);
      }
      row[key] = cell;
    }
    this.body.append(row);
    return row;
  }

  fill(row, device, place) {
    if (row.place !== place || row.tall !== this.height) {
      row.style.transform = `translateY(${place * this.height}px)`;
      row.setAttribute("aria-rowindex", place + 2);
      row.place = place;
      row.tall = this.height;
    }
    for (const { key } of this.columns) {
      const cell = row[key];
      if (key === "name") {
        if (cell.dataset.name !== device.name) {
          cell.textContent = cell.dataset.name = cell.title = device.name;
          cell.href = this.address(device.name);
        }
        const stop = device.name === this.active ? 0 : -1;
        if (cell.tabIndex !== stop) cell.tabIndex = stop;
        continue;
      }
      const [text, kind = "", title = ""] = this.show(key, device);
      if (cell.said !== text) cell.textContent = cell.said = text;
      if (cell.kind !== kind) {
        cell.kind = kind;
        cell.className = `${NUMBERS.has(key) ? "number " : ""}${kind}`;
      }
      if (title !== (cell.told ?? "")) cell.title = cell.told = title;
      if (key === "state" && cell.dataset.state !== device.state) cell.dataset.state = device.state;
    }
  }

  activate(name) {
    if (!name || name === this.active) return;
    this.active = name;
    this.draw();
  }

  /** Arrow keys go from row to row; Tab leaves the table. */
  key(event) {
    const page = Math.max(1, Math.floor(this.host.clientHeight / this.height) - 2), end = this.order.length - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -end, End: end };
    const by = event.altKey || event.ctrlKey || event.metaKey ? 0 : steps[event.key];
    const at = this.order.findIndex((device) => device.name === event.target.dataset.name);
    if (!by || at < 0) return;
    event.preventDefault();
    const to = Math.min(end, Math.max(0, at + by)), top = to * this.height, head = this.head.offsetHeight;
    const view = this.host.clientHeight - head;
    if (top < this.host.scrollTop) this.host.scrollTop = top;
    else if (top + this.height > this.host.scrollTop + view) this.host.scrollTop = top + this.height - view;
    this.active = this.order[to].name;
    this.draw();
    this.rows.get(this.active)?.name.focus({ preventScroll: true });
  }
}

/** A name whose numbers sort as numbers. */
export function sortable(name) {
  return name.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, "0"));
}

export function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== "") made.textContent = text;
  return made;
}
