"""The page of a production federation, from the store of its aggregator."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from midge.aggregator.store.history import Period
from midge.aggregator.store.shard_stores import SHARDS
from midge.aggregator.store.summary import DeviceSummary, StoreSummary
from midge.sensor_fleet.progress import FINAL, quantile
from midge.sensor_fleet.report import learning
from midge.sensor_fleet.report.html import FULL, Section, drawn, page
from midge.sensor_fleet.report.quantities import MISSING, date, score, significant, size, whole
from midge.sensor_fleet.report.store_figures import (
    STATES,
    HistoryView,
    activity,
    bars,
    bytes_over_time,
    contributions,
    name_of,
    scores,
    staleness_over_time,
    states_over_time,
)
from midge.wire.clocks import DAY

METRICS: Final = 4
"""Most metrics that are drawn."""
ROWS: Final = 40
"""Most devices in the table; JSON has all."""
VERSIONS: Final = 20
"""Most registered versions in the table, and marked in a figure."""
_INKS: Final = 8
"""Colours of layers; the style sheet has as many."""
_MADE: Final = "Made by midge report from the store of an aggregator. Times are in UTC."


def store_page(found: StoreSummary) -> str:
    """Render the page, as self-contained HTML."""
    return page(f"{found.federation}: a Midge federation", sections(found), _MADE)


def sections(found: StoreSummary) -> Iterator[Section | None]:
    """All sections, from the top."""
    history = HistoryView(found.periods)
    yield _head(found, history)
    yield _learned(found, history)
    yield _updates(found, history)
    yield _staleness(history)
    yield _traffic(history)
    yield _service(history)
    yield _sites(found)
    yield _devices(found)
    yield _versions(found)
    yield Section("store_setting", {"found": found})


def packed(found: StoreSummary) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    registry = found.registry
    return {
        "federation": found.federation,
        "running": found.running,
        "generation": found.generation,
        "version": found.version,
        "step": found.step,
        "released": found.released,
        "parameters": found.parameters,
        "updates": dict(found.verdicts),
        "applied": found.applied,
        "strategy": found.strategy,
        "privacy": None if found.privacy is None else found.privacy.packed(),
        "aliases": registry.named,
        "registered": list(registry.versions),
        "decisions": found.decisions,
        "devices": {one.name: {k: v for k, v in asdict(one).items() if k != "name"} for one in found.devices},
        "history": [_plain(period) for period in found.periods],
    }


def _plain(one: Period) -> dict[str, Any]:
    names = ("began", "seconds", "steps", "releases", "version", "bytes_in", "bytes_out", "devices", "states")
    return {
        **{name: getattr(one, name) for name in names},
        "verdicts": dict(one.verdicts),
        "staleness": sorted(one.staleness.items()),
        "evaluation": {name: asdict(scores) for name, scores in one.evaluation.items()},
        "federated": {name: asdict(scores) for name, scores in one.federated.items()},
    }


# --------------------------------------------------------------------------- sections


def _head(found: StoreSummary, history: HistoryView) -> Section:
    metric = next(iter(history.metrics), None)
    return Section(
        "store_head",
        {
            "found": found,
            "history": history,
            "metric": metric,
            "name": None if metric is None else name_of(metric),
            "value": None if metric is None else history.value(metric),
            "accepted": found.verdicts["accepted"],
            "refused": _refused(found.verdicts),
            "taus": [quantile(history.whole.staleness, share) for share in (0.5, 0.9, 1.0)],
            "accepted_since": history.whole.verdicts["accepted"],
            "day": _heard_since(found, history.end - DAY),
            "served": _share_served(history),
            "span": history.end - history.began,
        },
    )


def _refused(verdicts: Mapping[str, int]) -> int:
    return sum(number for verdict, number in verdicts.items() if verdict in FINAL and verdict != "accepted")


def _heard_since(found: StoreSummary, since: float) -> int:
    return sum(one.heard >= since for one in found.devices)


def _share_served(history: HistoryView) -> float | None:
    """Share of the time since the first look at the health; None if it was never looked at."""
    began = next((one.began for one in history.periods if one.states), None)
    return None if began is None else min(1.0, history.served / (history.end - began))


def _learned(found: StoreSummary, history: HistoryView) -> Section | None:
    if not history.metrics:
        return None
    marks = [(one.record.at, f"{one.version} registered") for one in list(found.registry.versions.values())[-VERSIONS:]]
    figures = [
        (name_of(name), drawn(partial(scores, history, name, marks), FULL)) for name in history.metrics[:METRICS]
    ]
    return Section(
        "store_learning",
        {
            "figures": figures,
            "own": bool(history.whole.evaluation),
            "theirs": bool(history.whole.federated),
            "more": history.metrics[METRICS:],
            "marks": len(marks),
        },
    )


def _updates(found: StoreSummary, history: HistoryView) -> Section | None:
    verdicts = history.whole.verdicts
    if not verdicts.total():
        return None
    others = [verdict for verdict, number in verdicts.most_common() if verdict != "accepted" and number]
    named, rest = others[: _INKS - 1], others[_INKS - 1 :]
    layers = [([verdict], verdict.replace("_", " ")) for verdict in named] + ([(rest, "others")] if rest else [])
    return Section(
        "store_updates",
        {
            "width": history.width,
            "layers": [words for _, words in layers],
            "rows": [(verdict, number) for verdict, number in verdicts.most_common() if number],
            "known": found.verdicts,
            "accepted": drawn(partial(bars, history, [(["accepted"], "accepted")], ["fleet"], "accepted")),
            "refused": drawn(partial(bars, history, layers, [f"c{n}" for n in range(len(layers))], "not accepted"))
            if layers
            else None,
        },
    )


def _staleness(history: HistoryView) -> Section | None:
    taus = history.whole.staleness
    if not taus:
        return None
    return Section(
        "store_staleness",
        {
            "taus": [quantile(taus, share) for share in (0.5, 0.9, 1.0)],
            "histogram": drawn(partial(learning.staleness, taus)),
            "over_time": drawn(partial(staleness_over_time, history)),
        },
    )


def _traffic(history: HistoryView) -> Section | None:
    whole_ = history.whole
    if not whole_.bytes_in + whole_.bytes_out or not history.served:
        return None
    days, updates = history.served / DAY, whole_.verdicts["accepted"]
    moved = {"from devices": whole_.bytes_in, "published": whole_.bytes_out}
    return Section(
        "store_traffic",
        {
            "rows": [
                (name, size(number), size(number / days), size(number / updates) if updates else MISSING)
                for name, number in moved.items()
            ],
            "served": history.served,
            "over_time": drawn(partial(bytes_over_time, history), FULL),
        },
    )


def _service(history: HistoryView) -> Section | None:
    if not history.served:
        return None
    return Section(
        "store_service",
        {
            "states": [(place, name) for place, name in enumerate(STATES) if name != "not served"],
            "rows": sorted(history.whole.states.items(), key=lambda state: -state[1]),
            "served": history.served,
            "share": _share_served(history),
            "over_time": drawn(partial(states_over_time, history), (FULL[0], 200.0)),
        },
    )


def _sites(found: StoreSummary) -> Section | None:
    sites = sorted((one for one in found.devices if one.sums), key=lambda one: (-one.summed, one.name))
    if not sites:
        return None
    summed, sums = sum(one.summed for one in sites), sum(one.sums for one in sites)
    single = sum(one.accepted for one in found.devices) - sums
    return Section(
        "store_sites",
        {
            "shards": (found.directory / SHARDS).is_dir(),
            "share": summed / (summed + single),
            "rows": [
                (
                    one.name,
                    *(whole(count) for count in (one.behind, one.sums, one.summed)),
                    significant(one.summed / one.sums),
                    whole(one.refused),
                )
                for one in sites[:ROWS]
            ],
        },
    )


def _devices(found: StoreSummary) -> Section | None:
    if not found.devices:
        return None
    shown = sorted(found.devices, key=lambda one: (-bool(one.since), -one.since, one.heard, one.name))[:ROWS]
    return Section(
        "store_devices",
        {
            "found": found,
            "rows": [_device(one, found.version) for one in shown],
            "refused": sum(bool(one.since) for one in found.devices),
            "activity": drawn(partial(activity, found)),
            "updates": drawn(partial(contributions, found)),
        },
    )


def _device(one: DeviceSummary, version: int) -> tuple[str, ...]:
    behind = whole(version - one.version) if one.version else MISSING
    last = date(one.heard) if one.heard else MISSING
    problem = f"{one.verdict.replace('_', ' ')} × {one.since}" if one.since else MISSING
    return one.name, last, whole(one.accepted), whole(one.refused), behind, problem


def _versions(found: StoreSummary) -> Section | None:
    registry = found.registry
    if not registry.versions:
        return None
    names = {version: name for name, version in registry.named.items()}
    rows = [
        (
            f"{one.version}" + (f", {names[one.version]}" if one.version in names else ""),
            date(one.record.at),
            whole(one.record.devices),
            whole(one.record.updates),
            ", ".join(f"{name} {score(value, name)}" for name, value in one.server.items()) or MISSING,
            ", ".join(f"{name} {score(spread['mean'], name)}" for name, spread in one.federated.items()) or MISSING,
        )
        for one in list(registry.versions.values())[-VERSIONS:]
    ]
    return Section("store_versions", {"rows": rows, "why": registry.why, "share": registry.share, "registry": registry})
