"""Write measurements of simulated sensors into docs/sensors.md and its pictures: python docs/sensors.py [--measure].

With --measure, fleets without a stored result are simulated first: half an hour on one core.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from marks import put

from midge import simulate
from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.models import FleetModel, model_for
from midge.sensor_fleet.report.scales import linear
from midge.sensor_fleet.report.svg import Drawing, Label, Plot
from midge.sensor_fleet.sensors import KINDS, Drift, Stream, bearing, energy, spectra
from midge.sensor_fleet.sensors.sites import Sites
from midge.wire.clocks import DAY
from midge.wire.messages import Plan

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sensors.json"
PAGE = ROOT / "docs" / "sensors.md"
PICTURES = ROOT / "docs" / "pictures"
SEEDS = (0, 1, 2)
STEPS = 10_000
Entry = dict[str, Any]

FLEETS: dict[str, Entry] = {
    "vibration": {"devices": 200, "days": 16, "drift": 10, "metric": "accuracy", "target": 0.75, "own": {}},
    "energy": {"devices": 200, "days": 21, "drift": 8, "metric": "rmse", "target": 0.03, "own": {"window": 168}},
}
"""The simulated fleets. A meter keeps one week, so that rows from before a drift are gone a week after it."""


# ------------------------------------------------------------------------ measuring


def measure() -> None:
    """Run the simulations that have no stored result yet, and store their results."""
    found: Entry = {"steps": STEPS, "pooled": [], "fleets": []}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for seed in SEEDS:
        for kind, fleet in FLEETS.items():
            if not _of(found["pooled"], kind=kind, seed=seed):
                found["pooled"] += pooled(kind, fleet, seed)
            for drift in (None, fleet["drift"]):
                if not _of(found["fleets"], kind=kind, seed=seed, drift=drift):
                    found["fleets"].append(run(kind, fleet, seed, drift))
                RESULTS.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _of(entries: Iterable[Entry], **wanted: object) -> list[Entry]:
    """Return the entries with these values."""
    return [entry for entry in entries if all(entry[name] == value for name, value in wanted.items())]


def pooled(kind: str, fleet: Entry, seed: int) -> list[Entry]:
    """Train the linear model and the perceptron on all devices' rows before the drift."""
    stream = KINDS[kind](fleet["devices"], seed=seed, drift=Drift(fleet["drift"] * DAY, 0.0), **fleet["own"])
    before, after = stream.at(fleet["drift"] * DAY - 1), stream.at(fleet["drift"] * DAY)
    standing = replace(before, devices=dict(before.devices))
    entries = []
    for name in ("linear", "mlp"):
        model = model_for(standing, name, seed=seed)  # type: ignore[arg-type]
        parameters = central(model, standing)
        values = [model.evaluate(parameters, each.test)[fleet["metric"]] for each in (before, after)]
        entries.append({"kind": kind, "seed": seed, "model": name, "before": values[0], "after": values[1]})
        sys.stderr.write(f"{entries[-1]}\n")
    return entries


def central(model: FleetModel, data: FleetData) -> dict[str, Any]:
    """Train on all rows pooled."""
    rows = data.pooled()
    start = {**model.initial, **model.freeze(model.moments(rows))}
    return dict(model.trainer(rows)(start, Plan(local_steps=STEPS)).parameters)


def run(kind: str, fleet: Entry, seed: int, drift: float | None) -> Entry:
    """Simulate one federation."""
    stream: Stream = KINDS[kind](
        fleet["devices"], seed=seed, drift=None if drift is None else Drift(drift * DAY), **fleet["own"]
    )
    model = model_for(stream, seed=seed)
    found = simulate(
        model, data=stream, profile="factory", seconds=fleet["days"] * DAY, seed=seed, every=DAY / 6, workers=1
    )
    entry: Entry = {
        "kind": kind,
        "seed": seed,
        "drift": drift,
        "days": [round(time / DAY, 3) for time in found.times.tolist()],
        "metrics": {name: [round(value, 4) for value in values.tolist()] for name, values in found.metrics.items()},
        "trainings": found.trainings,
        "seconds": round(found.took, 1),
    }
    sys.stderr.write(f"{kind} {seed} {drift}: {found.trainings} trainings in {found.took:.0f} s\n")
    return entry


# ---------------------------------------------------------------------------- tables


def recovered(entry: Entry, metric: str, drift: float) -> float | None:
    """Return days from the drift until the mean of five evaluations recovers; None if never."""
    days, values = np.array(entry["days"]), np.array(entry["metrics"][metric])
    sign = -1 if metric == "rmse" else 1
    means = np.convolve(values, np.full(5, 0.2), mode="valid")
    ends = days[4:]
    before = means[ends < drift][-1]
    back = np.flatnonzero((ends > drift + 1) & (sign * means >= sign * before))
    return float(ends[back[0]] - drift) if len(back) else None


def reached(entry: Entry, metric: str, target: float) -> float | None:
    """Return days until the mean of five evaluations reaches a target; None if never."""
    values, sign = np.array(entry["metrics"][metric]), -1 if metric == "rmse" else 1
    means = np.convolve(values, np.full(5, 0.2), mode="valid")
    there = np.flatnonzero(sign * means >= sign * target)
    return float(entry["days"][4 + there[0]]) if len(there) else None


def said(value: float | None, metric: str) -> str:
    """Format a score."""
    return "" if value is None else f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4f}"


def span(values: Sequence[float | None], words: str = "{:.1f}") -> str:
    """Return median, minimum and maximum, or the number of seeds that reached it."""
    known = sorted(value for value in values if value is not None)
    if len(known) < len(values):
        return f"{len(known)} of {len(values)} seeds"
    return f"{words.format(median(known))} ({words.format(known[0])} to {words.format(known[-1])})"


def tables(results: Entry) -> list[str]:
    """Return the table of measurements."""
    lines = ["| | vibration | energy |", "|---|---|---|"]
    rows: dict[str, list[str]] = {}
    for kind, fleet in FLEETS.items():
        metric, drift = fleet["metric"], fleet["drift"]
        calm, drifting = (_of(results["fleets"], kind=kind, drift=when) for when in (None, drift))
        some = _of(results["pooled"], kind=kind)

        def scores(name: str, when: str, some: list[Entry] = some, metric: str = metric) -> str:
            return said(median(one[when] for one in some if one["model"] == name), metric)

        def at(entries: list[Entry], day: float, metric: str = metric) -> str:
            values = [entry["metrics"][metric][entry["days"].index(round(day, 3))] for entry in entries]
            return said(median(values), metric)

        cells = {
            "a row": "57 features of 0.32 s, each 30 min" if kind == "vibration" else "36 features, each hour",
            "seeds": str(len(drifting)),
            "test": "accuracy, balanced classes" if metric == "accuracy" else "RMSE, as a share of rated power",
            "pooled training before the drift: linear": scores("linear", "before"),
            "pooled training before the drift: perceptron": scores("mlp", "before"),
            "that linear model after the drift": scores("linear", "after"),
            "that perceptron after the drift": scores("mlp", "after"),
            "federation: days to the target": f"{said(fleet['target'], metric)}: "
            + span([reached(one, metric, fleet["target"]) for one in calm]),
            "federation: last day, no drift": at(calm, fleet["days"]),
            "drift on day": f"{drift:g}",
            "federation: four hours before the drift": at(drifting, drift - 1 / 6),
            "federation: half a day after the drift": at(drifting, drift + 0.5),
            "days until it recovers": span([recovered(one, metric, drift) for one in drifting]),
            "federation: last day, with drift": at(drifting, fleet["days"]),
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]


# -------------------------------------------------------------------------- pictures

COLOURS = ("#2a78b8", "#c4581c", "#3a8f4d", "#8550a8")
STYLE = """text{font:12px sans-serif;fill:#888}.strong{font-weight:bold}.hair,.base{stroke:#8884;fill:none}
.leader{stroke:#8886}.line{fill:none;stroke-width:1.5}.thin{stroke-width:.6}.even{stroke:#888;stroke-dasharray:3 3}
""" + "".join(f".s{number}{{stroke:{colour};fill:none}}" for number, colour in enumerate(COLOURS))
STYLE += "text.even{stroke:none}" + "".join(
    f"text.s{number}{{stroke:none;fill:{colour}}}" for number, colour in enumerate(COLOURS)
)
SEEN = bearing.Machine(bearing.BEARINGS[0], speed=29.0, resonance=3300.0, damping=0.03, gain=1.0, shaft=1.0)
"""The machine shown in the pictures."""


def windows(fault: bearing.Fault | None, count: int) -> bearing.Signals:
    """Return acceleration windows with a fault at severity 0.7."""
    ones = np.ones(count)
    rng = np.random.default_rng(0)
    return bearing.acceleration(SEEN, rng, speeds=SEEN.speed * ones, loads=ones, severity=0.7 * ones, fault=fault)


def stacked(
    lines: Sequence[tuple[str, str, np.ndarray]], x: np.ndarray, step: float, words: tuple[str, str, str]
) -> Plot:
    """Plot lines with offsets and names; `words` are the description and the axis names."""
    description, x_name, y_name = words
    plot = Plot(
        (720, 110 + 70 * len(lines)),
        description,
        linear(float(x[0]), float(x[-1]), tight=True, count=8),
        replace(linear(-0.5, len(lines) - 0.5, tight=True), ticks=()),
        x_name=x_name,
        y_name=y_name,
        right=120,
    )
    labels = []
    for place, (name, value, values) in enumerate(lines):
        level = len(lines) - 1 - place
        plot.line(zip(x.tolist(), (level + values / step).tolist(), strict=True), f"s{place}")
        labels.append(Label(level, name, value, f"s{place}"))
    plot.labels(labels)
    return plot


def signals() -> str:
    """Draw a tenth of a second, healthy and with a fault."""
    time = np.arange(1280) / bearing.RATE * 1000
    lines = []
    for name, fault in (("healthy", None), ("outer race", "outer race"), ("inner race", "inner race")):
        signal = windows(fault, 1)[0][:1280]  # type: ignore[arg-type]
        lines.append((name, f"rms {np.sqrt(np.mean(signal**2)):.1f}", signal))
    words = ("Acceleration over a tenth of a second", "milliseconds", "acceleration, offset per line")
    return framed(stacked(lines, time, 24.0, words), "thin")


def spectrum() -> str:
    """Draw spectra of the squared envelope, means of 20 windows."""
    lines = []
    orders = np.zeros(0)
    for name in ("healthy", *bearing.FAULTS):
        fault: Any = None if name == "healthy" else name
        frequencies, found = spectra.envelope_spectrum(windows(fault, 20))
        orders = frequencies / SEEN.speed
        seen = (orders > 0.3) & (orders < 12)
        line = f"{SEEN.bearing.order(fault):.2f}" if fault else "no line"
        lines.append((name, line, found.mean(axis=0)[seen]))
        orders = orders[seen]
    words = (
        "Spectra of the squared envelope: lines at the orders given by the bearing's geometry",
        "orders: multiples of the shaft's speed",
        "squared envelope over its mean, offset per line",
    )
    plot = stacked(lines, orders, 1.1, words)
    for order in (SEEN.bearing.outer, SEEN.bearing.inner, 2 * SEEN.bearing.spin):
        plot.rule(plot.x(order), plot.top, plot.x(order), plot.bottom, "line even")
    return framed(plot)


def loads() -> str:
    """Draw two weeks of four sites, the second under the new tariff."""
    hours = np.arange(14 * 24)
    sites = Sites(0, 0.0, energy(2).flow.flaws, None)
    lines = []
    for kind in ("office", "shop", "works", "homes"):
        number = next(number for number in range(1000) if sites.kind(number) == kind)
        lines.append((kind, "", sites.load(number, hours, (hours >= 7 * 24).astype(np.float64))))
    words = ("Load of four sites over two weeks", "days; a new tariff from day 7 on", "load, offset per line")
    plot = stacked([(name, value, line - 0.5 * line.mean()) for name, value, line in lines], hours / 24, 0.9, words)
    plot.mark(7, "new tariff", "even")
    return framed(plot)


def curves(results: Entry, kind: str) -> str:
    """Draw the federation's score over days with and without drift: medians over the seeds."""
    fleet = FLEETS[kind]
    metric = fleet["metric"]
    best = median(one["before"] for one in _of(results["pooled"], kind=kind, model="mlp"))
    high = 1.0 if metric == "accuracy" else 0.08
    plot = Plot(
        (720, 300),
        f"{kind}: {metric} over days, with a drift on day {fleet['drift']} and without",
        linear(0, fleet["days"], tight=True, count=8),
        linear(0.2 if metric == "accuracy" else 0.0, high, lambda value: said(value, metric).replace(".0 %", " %")),
        x_name="days of virtual time",
        y_name=f"{'accuracy, balanced classes' if metric == 'accuracy' else 'RMSE'}, median over the seeds",
        right=130,
    )
    plot.level(best, "even")
    plot.mark(fleet["drift"], "drift", "even")
    labels = [Label(best, "pooled training", said(best, metric), "even")]
    for number, drift in enumerate((None, fleet["drift"])):
        some = _of(results["fleets"], kind=kind, drift=drift)
        days = some[0]["days"]
        values = np.median([one["metrics"][metric] for one in some], axis=0)
        plot.line([(day, min(value, high)) for day, value in zip(days, values.tolist(), strict=True)], f"s{number}")
        labels.append(
            Label(
                float(values[-1]), "with drift" if drift else "no drift", said(float(values[-1]), metric), f"s{number}"
            )
        )
    plot.labels(labels)
    return framed(plot)


def framed(drawing: Drawing, also: str = "") -> str:
    """Return a drawing as the text of a file."""
    text = drawing.file(STYLE) + "\n"
    return text.replace('class="line ', f'class="line {also} ') if also else text


def pictures(results: Entry) -> Iterable[tuple[str, str]]:
    """Yield each picture with its file name."""
    yield "sensors-signals.svg", signals()
    yield "sensors-spectrum.svg", spectrum()
    yield "sensors-loads.svg", loads()
    for kind in FLEETS:
        yield f"sensors-{kind}.svg", curves(results, kind)


def load() -> Entry:
    """Read the results."""
    results: Entry = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def parts() -> dict[str, str]:
    """Return the tables of the page."""
    return {"measured": "\n".join(tables(load()))}


def main() -> None:
    """Write page and pictures."""
    if "--measure" in sys.argv[1:]:
        measure()
    put(PAGE, parts())
    for name, drawn in pictures(load()):
        (PICTURES / name).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
