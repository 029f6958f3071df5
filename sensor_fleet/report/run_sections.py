"""Sections of the page of a run that recorded single updates and devices, such as the demo."""

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial

from midge.sensor_fleet.progress import HELD, quantile
from midge.sensor_fleet.report import devices, learning
from midge.sensor_fleet.report.html import FULL, Section, drawn
from midge.sensor_fleet.report.repeat import command, setting, weighting
from midge.sensor_fleet.report.run import Run
from midge.sensor_fleet.report.timelines import timelines
from midge.sensor_fleet.report.traffic import traffic_of

_OTHERS = {
    "repeat": "duplicates, counted once",
    "held": "deferred, to be sent again",
    "dropped": "unreadable messages",
}
_OF_DEVICES = {"unfit": "trainings without an update", "disconnected": "connections lost by devices"}


def sections(run: Run) -> Iterator[Section | None]:
    """All sections, from the top."""
    central = run.central.value if run.central else None
    yield Section("run_head", {"run": run, "central": central, "alone": run.alone.mean if run.alone else None})
    yield _facts(run)
    yield learned(run)
    yield _staleness(run)
    yield _devices(run)
    cost = traffic_of(run)
    yield None if cost is None else Section("run_traffic", {"cost": cost})
    yield _updates(run)
    repeated = setting(run)
    yield None if repeated is None else Section("run_setting", {"command": command(run), **repeated})


def _facts(run: Run) -> Section:
    values = {"run": run, "cost": traffic_of(run), "accepted": run.accepted_count, "rejected": run.rejected_count}
    for name, share in (("median", 0.5), ("ninth", 0.9), ("most", 1.0)):
        values[name] = quantile(run.taus, share)
    return Section("run_facts", values)


def learned(run: Run) -> Section | None:
    """Score over time and bytes; None if the model was never evaluated."""
    if not run.evaluations:
        return None
    over_time = drawn(partial(learning.over_time, run), FULL)
    over_bytes = drawn(partial(learning.over_bytes, run), FULL)
    scale = learning.score_scale([run])
    beyond = sum(not scale.holds(one.value) for one in run.evaluations if math.isfinite(one.value))
    return Section(
        "learning", {"run": run, "held": HELD, "over_time": over_time, "over_bytes": over_bytes, "beyond": beyond}
    )


def _staleness(run: Run) -> Section | None:
    if not run.taus:
        return None
    median = quantile(run.taus, 0.5)
    fresh = [update.weight for update in run.accepted if update.staleness <= median]
    return Section(
        "run_staleness",
        {
            "weighting": weighting(run),
            "median": median,
            "most": max(run.taus),
            "accepted": run.accepted_count,
            "fresh_updates": len(fresh),
            "fresh_weight": math.fsum(fresh),
            "total": math.fsum(update.weight for update in run.accepted),
            "staleness": drawn(partial(learning.staleness, run.taus)),
            "weights": drawn(partial(learning.weights, run)),
        },
    )


def _devices(run: Run) -> Section | None:
    found = timelines(run)
    chosen = devices.shown(run, found)
    ends = Counter(how for life in found.values() for _, how in life.ends)
    drawings = {
        "timeline": drawn(lambda room: devices.timeline(chosen, room[0]), FULL),
        "participation": drawn(partial(devices.participation, run)),
        "on_own_rows": drawn(partial(devices.on_own_rows, run)),
    }
    if not any(drawings.values()):
        return None
    return Section(
        "run_devices",
        {
            "run": run,
            "lives": len(found),
            "chosen": len(chosen),
            "ends": sorted(ends.items()),
            "slow_share": devices.share_of_slow(run),
            "means": devices.means_of_groups(run),
            **drawings,
        },
    )


def _updates(run: Run) -> Section | None:
    verdicts = Counter(update.verdict for update in run.updates).most_common()
    counts = Counter(event.event for event in run.device_events)
    others = [(words, run.others[name]) for name, words in _OTHERS.items() if run.others[name]]
    others += [(words, counts[name]) for name, words in _OF_DEVICES.items() if counts[name]]
    return Section("run_updates", {"run": run, "verdicts": verdicts, "others": others}) if verdicts or others else None
