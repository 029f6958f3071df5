// The live page: takes in a snapshot and then deltas, and shows them. All text of devices is put in as text, never as HTML.
import { Chart, clock } from "./charts.js";
import { COLUMNS, DeviceTable, element } from "./table.js";

const $ = (id) => document.getElementById(id);
const KEPT = 200, WORDS = "en";
let head = {}, intervals = [], columns = { device: [], interval: [] }, events = [], actions = [], offset = 0, opened = "", step = 2;
let token = sessionStorage.getItem("midge-token") ?? "";

// ------------------------------------------------------------------------------------------------ numbers and times

const now = () => Date.now() / 1000 + offset;
const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString(WORDS));

function age(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * unit) return `${Math.round(seconds / unit)} ${name}`;
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= unit) return `${(value / unit).toLocaleString(WORDS, { maximumSignificantDigits: 3 })} ${name}`;
  }
  return `${Math.round(value)} B`;
}

const isShare = () => head.metric === "accuracy";

function score(value) {
  if (value === null || value === undefined) return "–";
  return isShare() ? `${(100 * value).toFixed(1)} %` : value.toLocaleString(WORDS, { maximumSignificantDigits: 4 });
}

/** The labels of an axis: shares without decimals where they need none. */
function ticks(marks) {
  const even = isShare() && marks.every((mark) => Math.abs(100 * mark - Math.round(100 * mark)) < 1e-6);
  return marks.map((mark) => (even ? `${Math.round(100 * mark)} %` : score(mark)));
}

function skew(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const size = Math.abs(seconds);
  return size < 2 ? "ok" : `${seconds > 0 ? "+" : "−"}${age(size)}`;
}

const number = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;
const behind = (device) => (device.updates === null ? null : Math.max(0, (head.aggregator?.version ?? 0) - device.version));

// ------------------------------------------------------------------------------------------------------- the charts

const line = (label, hue, name, more = {}) => ({ label, hue, of: (row) => row[name], ...more });
const minute = (name) => (row) => (60 * row[name]) / step;
const compact = (value) => (value === null ? "–" : value.toLocaleString(WORDS, { maximumSignificantDigits: 3, notation: value >= 1e4 ? "compact" : "standard" }));
let charts = null;

function drawCharts() {
  charts ??= {
    learning: new Chart($("learning"), {
      title: "Learning", tall: 230, say: score, near: true, ticks,
      lines: [
        line("nine devices in ten", "fleet", "low", { band: true, silent: true }),
        line("devices, from worst to best tenth", "fleet", "high", { band: true, say: (value, data, at) => (value === null ? "–" : `${score(data[1][at])} to ${score(value)}`) }),
        line("median device, on its own data", "fleet", "median"),
        line("the aggregator's evaluation", "other", "evaluation"),
      ],
    }),
    updates: new Chart($("updates"), {
      title: "Updates a minute", say: compact,
      lines: [line("accepted", "fleet", "", { of: minute("accepted"), fill: true }), line("refused", "bad", "", { of: minute("refused"), dash: [5, 4] })],
    }),
    staleness: new Chart($("staleness"), {
      title: "Staleness, in steps", say: compact,
      lines: [line("half are at most", "fleet", "stale50"), line("90 % are at most", "other", "stale90", { dash: [5, 4] })],
    }),
    bytes: new Chart($("bytes"), {
      title: "Bytes a second", say: bytes,
      lines: [line("up, from devices", "fleet", "up"), line("down, published", "other", "down", { dash: [5, 4] })],
    }),
    presence: new Chart($("presence"), { title: "Devices online", say: compact, lines: [line("online", "fleet", "online", { fill: true })] }),
  };
  if (!$("overview").hidden) for (const chart of Object.values(charts)) chart.set(intervals);
}

// ------------------------------------------------------------------------------------------------------- the devices

const table = new DeviceTable($("table"), {
  address: (name) => `#device/${encodeURIComponent(name)}`,
  value(key, device) {
    if (key === "behind") return behind(device);
    if (key === "heard" || key === "accepted") return device[key] === null ? null : -device[key];
    return key === "skew" && device.skew !== null ? Math.abs(device.skew) : device[key];
  },
  show(key, device) {
    switch (key) {
      case "state": return [device.state, "state"];
      case "heard": case "accepted": return device[key] === null ? ["–", "faint"] : [`${age(now() - device[key])} ago`];
      case "updates": return [whole(device.updates)];
      case "refused": return device.refused ? [whole(device.refused), "warn"] : [whole(device.refused), "faint"];
      case "behind": return [whole(behind(device))];
      case "score": return [score(device.score)];
      case "skew": return [skew(device.skew), Math.abs(device.skew ?? 0) > 300 ? "warn" : "faint"];
      case "battery": return device.battery === null ? ["–", "faint"] : [`${Math.round(100 * device.battery)} %`, device.battery < 0.2 ? "warn" : ""];
      case "keeps": return device.keeps === null ? ["–", "faint"] : [whole(device.keeps), "warn"];
      default: return [device.why, "faint", device.why];
    }
  },
  fitted(all) { $("sort-label").hidden = all; },
  changed(shown, all) {
    put($("shown"), shown === all ? number(all, "device") : `${whole(shown)} of ${number(all, "device")}`);
  },
});

$("find").addEventListener("input", () => { table.text = $("find").value.trim().toLowerCase(); table.host.scrollTop = 0; table.refresh(); });
for (const column of COLUMNS) {
  const option = element("option", "", column.title);
  option.value = column.key;
  $("sort").append(option);
}
$("sort").addEventListener("change", () => { table.sorting.key = ""; table.sort($("sort").value); });

/** Buttons that show one state; each stays the same element, so that no click on one is lost. */
function drawChips() {
  const states = { "": Object.values(head.states).reduce((a, b) => a + b, 0), ...head.states };
  if (!(table.state in states)) states[table.state] = 0;
  const chips = $("chips"), known = new Map([...chips.children].map((chip) => [chip.value, chip]));
  for (const [state, count] of Object.entries(states)) {
    let chip = known.get(state);
    known.delete(state);
    if (!chip) {
      chip = element("button", "", state || "all");
      chip.type = "button";
      chip.value = state;
      chip.append(element("b"));
      chip.addEventListener("click", () => { table.state = state; table.host.scrollTop = 0; drawChips(); table.refresh(); });
      chips.append(chip);
    }
    put(chip.lastElementChild, whole(count));
    chip.setAttribute("aria-pressed", String(table.state === state));
  }
  for (const chip of known.values()) chip.remove();
}

/** Put a text in where it is another one: what is live is read aloud at each change. */
function put(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function replace(place, key, make) {
  const text = JSON.stringify(key);
  if (place.shown === text) return;
  place.shown = text;
  place.replaceChildren(...make());
}

// ----------------------------------------------------------------------------------------------- what is about all

function fact(name, value, note = "", kind = "") {
  const box = element("div");
  box.append(element("dt", "", name), element("dd", kind, value));
  if (note) box.append(element("dd", "", note));
  return box;
}

function drawHead() {
  const { aggregator, health } = head, gone = !aggregator || !["ready", "paused"].includes(aggregator.state);
  const state = gone ? "lost" : health?.state ?? aggregator.state;
  $("root").textContent = head.root;
  $("federation").textContent = head.federation;
  $("health").dataset.state = state;
  $("health-word").textContent = gone ? (aggregator ? `aggregator ${aggregator.state}` : "no aggregator") : state;
  document.title = `${head.alarms.length ? "⚠ " : ""}${head.federation}: ${$("health-word").textContent}`;
  const why = head.alarms.length || !health ? "" : health.why;
  $("why").hidden = !why;
  $("why").textContent = why;
  replace($("alarms"), head.alarms, () => head.alarms.map(({ text, since }) => {
    const box = element("div", "alarm"), words = element("p");
    words.append(element("b", "", "Alarm"), text);
    box.append(words, element("time", "", `since ${clock(since, true)}`));
    return box;
  }));
  const notices = [head.ended, ...head.notices].filter(Boolean);
  if (head.left_out) notices.push(`${number(head.left_out, "device")} did not fit into the aggregator's answer.`);
  replace($("notices"), notices, () => notices.map((text) => element("p", "notice", text)));
  const verdicts = Object.entries(health?.verdicts ?? {}).sort((a, b) => b[1] - a[1]), most = Math.max(1, ...verdicts.map((each) => each[1]));
  $("verdicts").replaceChildren(...verdicts.map(([verdict, count]) => {
    const item = element("li", verdict), bar = element("span", "bar");
    bar.style.width = `${(100 * count) / most}%`;
    const holder = element("span");
    holder.append(bar);
    bar.style.display = "block";
    item.append(element("span", "", verdict.replaceAll("_", " ")), holder, element("span", "", `${whole(count)} of ${number(health.devices[verdict] ?? 0, "device")}`));
    return item;
  }));
  if (!verdicts.length) {
    const none = element("li", "none");
    none.append(element("span", "none", "No update was judged."));
    $("verdicts").replaceChildren(none);
  }
  drawChips();
  drawActions();
}

function drawFacts() {
  const { aggregator, health } = head, all = Object.values(head.states).reduce((a, b) => a + b, 0);
  const online = (head.states.ready ?? 0) + (head.states.training ?? 0);
  const last = (name) => intervals.findLast((row) => row[name] !== null)?.[name] ?? null;
  const recent = intervals.slice(-Math.max(1, Math.round(60 / step))), seconds = Math.max(1, recent.length * step);
  const sum = (name) => (60 * recent.reduce((total, row) => total + row[name], 0)) / seconds;
  const others = Object.entries(head.evaluation).filter(([name]) => name !== head.metric).slice(0, 2);
  const median = last("median");
  $("facts").replaceChildren(...[
    fact(head.metric ? `${head.metric[0].toUpperCase()}${head.metric.slice(1)}` : "Score", score(head.evaluation[head.metric] ?? median),
      [median === null ? "" : `${score(last("low"))} to ${score(last("high"))} on devices' data`, ...others.map(([name, value]) => `${name} ${value.toLocaleString(WORDS, { maximumSignificantDigits: 4 })}`)].filter(Boolean).join(", "), "lead"),
    fact("Version", whole(aggregator?.version), aggregator ? `step ${whole(aggregator.step)}${aggregator.generation ? `, generation ${aggregator.generation}` : ""}` : ""),
    fact("Devices online", whole(online), `of ${whole(all)}`),
    fact("Updates a minute", whole(sum("accepted")), sum("refused") ? `${compact(sum("refused"))} refused` : health?.accepted ? `the last ${age(now() - health.accepted)} ago` : "none accepted yet"),
    fact("Staleness, median", last("stale50") === null ? "–" : number(last("stale50"), "step"), last("stale90") === null ? "" : `90 % at most ${whole(last("stale90"))}`),
    fact("Bytes moved", `${bytes(head.bytes[0])} up`, `${bytes(head.bytes[1])} down`),
  ]);
}

function drawEvents() {
  const list = $("events"), old = Number(list.firstElementChild?.dataset.n ?? 0);
  for (const event of events.filter((each) => each.n > old)) {
    const item = element("li", event.kind === "alarm" ? "alarm-event" : event.kind), words = element("p");
    item.dataset.n = event.n;
    if (event.device) {
      const link = element("a", "", event.device);
      link.href = table.address(event.device);
      words.append(link, " ");
    }
    words.append(event.kind === "alarm" ? `Alarm: ${event.text}` : event.kind === "health" ? `Health: ${event.text}` : event.text);
    item.append(element("time", "", clock(event.t, true)), words);
    list.prepend(item);
  }
  while (list.children.length > KEPT) list.lastElementChild.remove();
}

// ------------------------------------------------------------------------------------------------------ one device

function listing(names, rows) {
  const holder = element("div", "scroll"), made = element("table", "list"), top = element("tr");
  for (const name of names) top.append(element("th", "", name));
  const header = element("thead"), body = element("tbody");
  header.append(top);
  for (const row of rows) {
    const line = element("tr");
    for (const cell of row) {
      const box = element("td");
      box.append(cell);
      line.append(box);
    }
    body.append(line);
  }
  if (names.length) made.append(header);
  made.append(body);
  holder.append(made);
  return holder;
}

function part(name, ...content) {
  const section = element("section");
  section.append(element("h2", "", name), ...content);
  return section;
}

// A device's page is drawn again each second: not while a button is held down on it, or text is selected.
let held = false;
addEventListener("pointerdown", () => { held = true; });
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(() => { held = false; }));

async function drawDevice(name, focus = false) {
  const place = $("device"), answer = await fetch(`devices/${encodeURIComponent(name)}`);
  if (opened !== name) return;
  if (!answer.ok) {
    const back = element("a", "back", "← All devices");
    back.href = "#";
    place.replaceChildren(back, element("p", "empty", `There is no device ${name} in this federation, or none any more.`));
    return;
  }
  const found = await answer.json(), device = { ...table.devices.get(name), ...found, why: found.why || found.waits || "" };
  if (opened !== name || (place.firstChild && (held || getSelection().type === "Range"))) return;
  const key = document.activeElement && place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const back = element("a", "back", "← All devices"), bar = element("div", "title"), heading = element("h1", "", name);
  back.href = "#";
  back.dataset.key = "back";
  heading.id = "device-name";
  heading.tabIndex = -1;
  const state = element("span", "state", device.state), buttons = element("span", "buttons");
  state.dataset.state = device.state;
  for (const action of actions.filter((each) => each.scope === "device")) buttons.append(button(action, { device: name }));
  bar.append(heading, state, buttons);
  const facts = element("dl", "facts");
  facts.append(
    fact("Last heard", device.heard === null ? "–" : `${age(now() - device.heard)} ago`, device.state === "sleeping" && device.wakes ? `wakes at ${clock(device.wakes)}, by its clock` : ""),
    fact("Version", whole(device.version), device.updates === null || device.updates === undefined ? "as it said" : `${number(behind(device), "version")} behind`),
    fact("Updates accepted", whole(device.updates), device.accepted ? `the last ${age(now() - device.accepted)} ago` : ""),
    fact("Refused in a row", whole(device.refused), device.refused ? device.verdict.replaceAll("_", " ") : ""),
    fact("Holds", device.holds === undefined ? "–" : number(device.holds, "update"), "not settled yet"),
    fact("Clock", skew(device.skew), device.skew === null ? "not known" : "when it connected last"),
  );
  const battery = device.capabilities?.battery;
  if (typeof battery === "number") facts.append(fact("Battery", `${Math.round(100 * battery)} %`));
  if (found.keeps) facts.append(fact("Keeps", `version ${found.keeps}`, "a newer one is worse on its own rows"));
  const explain = actions.find((each) => each.scope === "update");
  const receipts = found.receipts.toReversed().map(([t, seq, verdict, stale, weight, why]) => {
    const words = element("span", verdict === "accepted" ? "" : "warn", verdict.replaceAll("_", " "));
    const more = verdict === "accepted" ? `${number(stale, "step")} stale, weight ${compact(weight)}` : why;
    return [clock(t, true), `${seq}`, words, more, ...(explain && token ? [button(explain, { device: name, seq })] : [])];
  });
  const own = Object.entries(found.metrics ?? {}).map(([metric, value]) => [metric, value.toLocaleString(WORDS, { maximumSignificantDigits: 5 })]);
  const capabilities = Object.entries(found.capabilities ?? {}).filter(([what]) => what !== "clock" && what !== "battery").map(([what, value]) => [what.replaceAll("_", " "), String(value)]);
  const left = element("div"), right = element("div"), both = element("div", "columns");
  left.append(part("Receipts", found.receipts.length
    ? listing(["time", "update", "verdict", "", ...(explain && token ? [""] : [])], receipts)
    : element("p", "under", "None since this page's server began.")));
  right.append(part("Life", listing(["time", "state", ""], found.life.toReversed().map(([t, word, why]) => {
    const shown = element("span", "state", word);
    shown.dataset.state = word;
    return [clock(t, true), shown, why];
  }))));
  if (own.length) right.append(part(`Scores on its own data, version ${found.metrics_version}`, listing([], own)));
  if (capabilities.length) right.append(part("What it says it is", listing([], capabilities)));
  both.append(left, right);
  const content = [back, bar];
  if (device.why) content.push(element("p", device.refused ? "alarm" : "why", device.why));
  place.replaceChildren(...content, facts, both);
  if (focus) heading.focus();
  else if (key) [...place.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus();
}

function route(focus = true) {
  const before = opened;
  opened = location.hash.startsWith("#device/") ? decodeURIComponent(location.hash.slice(8)) : "";
  $("device").hidden = !opened;
  $("overview").hidden = Boolean(opened);
  if (opened) {
    if (before !== opened) $("device").replaceChildren();
    scrollTo(0, 0);
    drawDevice(opened, focus);
  } else if (before) {
    drawCharts();
    table.layout();
    table.rows.get(before)?.name.focus();
  }
}
addEventListener("hashchange", () => route());

// ---------------------------------------------------------------------------------------------------------- actions

/** A button for an action; without the token it asks for it first. */
function button(action, about = {}) {
  const made = element("button", action.grave ? "grave" : "", action.label);
  made.type = "button";
  made.dataset.key = `${action.name}-${about.seq ?? ""}`;
  made.addEventListener("click", () => act(action, about));
  return made;
}

function drawActions() {
  const operate = $("operate");
  operate.hidden = !actions.length;
  put(operate, token ? "Forget the token" : "Operate …");
  const paused = head.aggregator?.state === "paused" && head.health?.state === "paused";
  const shown = token ? actions.filter((each) => each.scope === "federation" && each.name !== (paused ? "pause" : "resume")) : [];
  replace($("federation-actions"), shown.map((each) => each.name), () => shown.map((action) => button(action)));
}

function toast(text) {
  const place = $("toast");
  place.textContent = text;
  clearTimeout(place.timer);
  place.timer = setTimeout(() => { place.textContent = ""; }, 8000);
}

function post(where, body) {
  return fetch(where, { method: "POST", headers: { authorization: `Bearer ${token}`, "content-type": "application/json" }, body: JSON.stringify(body ?? {}) });
}

async function act(action, about) {
  if (!token && !(await login())) return;
  let text = "";
  if (action.confirm || action.asks) {
    const answer = await ask(action, about.device);
    if (answer === null) return;
    text = answer;
  }
  const answer = await post(`actions/${action.name}`, { ...about, text }).catch(() => null);
  const said = answer ? await answer.json().catch(() => ({})) : { error: "The page's server does not answer." };
  if (answer?.status === 401) forget();
  if (answer?.ok && action.scope === "update") tell(`Update ${about.device}/${about.seq}`, said.said);
  else toast(said.said ?? said.error ?? "That did not work.");
  if (opened) drawDevice(opened);
}

function forget() {
  token = "";
  sessionStorage.removeItem("midge-token");
  drawActions();
  if (opened) drawDevice(opened);
}

/** Show a dialog; resolves with true where it was submitted. `check` may refuse that. */
function dialog(place, check = async () => true) {
  return new Promise((resolve) => {
    const form = place.querySelector("form"), cancel = form.querySelector('[value="cancel"]');
    let done = false;
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (await check()) { done = true; place.close(); }
    };
    if (cancel) cancel.onclick = () => place.close();
    place.onclose = () => resolve(done);
    place.showModal();
  });
}

async function login() {
  const field = $("token-text"), wrong = $("token-wrong");
  field.value = wrong.textContent = "";
  return dialog($("token"), async () => {
    token = field.value.trim();
    const answer = await post("token").catch(() => null);
    if (answer?.ok) {
      sessionStorage.setItem("midge-token", token);
      field.value = "";
      drawActions();
      if (opened) drawDevice(opened);
      return true;
    }
    token = "";
    wrong.textContent = answer ? "That is not the token." : "The page's server does not answer.";
    return false;
  });
}

async function ask(action, device) {
  const place = $("ask"), main = place.querySelector(".main"), label = $("ask-label");
  $("ask-title").textContent = device ? `${action.label} ${device}` : action.label;
  $("ask-text").textContent = action.confirm;
  label.hidden = !action.asks;
  label.firstElementChild.textContent = action.asks;
  $("ask-more").value = "";
  main.textContent = action.label;
  main.className = action.grave ? "main grave" : "main";
  return (await dialog(place)) ? $("ask-more").value.trim() : null;
}

function tell(name, text) {
  $("told-title").textContent = name;
  $("told-text").textContent = text;
  return dialog($("told"));
}

$("operate").addEventListener("click", () => (token ? forget() : login()));

// ----------------------------------------------------------------------------------------------------- what comes in

const rowOf = (packed) => Object.fromEntries(columns.interval.map((name, place) => [name, packed[place]]));

function take(found, whole = false) {
  offset = found.now - Date.now() / 1000;
  if (whole) {
    ({ columns, actions } = found);
    events = [];
    table.devices.clear();
    table.ranked = false;
    $("events").replaceChildren();
  }
  if (found.head) head = found.head;
  if (found.step) ({ step } = found);
  if (found.intervals) intervals = found.intervals.map(rowOf);
  for (const packed of found.later ?? []) {
    const row = rowOf(packed);
    if (!intervals.length || row.time > intervals.at(-1).time) intervals.push(row);
  }
  if (intervals.length > 420) intervals = intervals.slice(-420);
  if (found.events) events = [...events, ...found.events].slice(-KEPT);
  if (found.gone) table.drop(found.gone);
  if (found.rows) table.take(found.rows, columns.device);
  if (found.head) drawHead();
  if (found.events) drawEvents();
  if (whole) route(false);
  if (!opened) {
    drawFacts();
    if (found.rows || found.gone) table.refresh();
    if (whole || found.intervals || found.later) drawCharts();
  } else if (!whole && (found.rows?.some((row) => row[0] === opened) || found.gone)) drawDevice(opened);
}

function link(text) { put($("link"), text); }

let source = null, last = 0;

function connect() {
  source?.close();
  source = new EventSource("events");
  source.addEventListener("snapshot", (event) => { last = Date.now(); link(""); take(JSON.parse(event.data), true); });
  source.addEventListener("delta", (event) => { last = Date.now(); link(""); take(JSON.parse(event.data)); });
  source.addEventListener("error", () => {
    link("The page's server does not answer: trying again.");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  });
}

// Ages grow although nothing comes; a connection that is silently gone is made again.
setInterval(() => {
  if (!head.federation) return;
  if (!opened && !document.hidden) { drawFacts(); table.draw(); }
  if (last && Date.now() - last > 40000) { link("The page's server is silent: trying again."); last = Date.now(); connect(); }
}, 5000);

$("about").textContent = "Midge: asynchronous federated learning over MQTT";
$("sort").value = table.sorting.key;
connect();
