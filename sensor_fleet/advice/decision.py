"""Which way suits a fleet, why, and when the answer would change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from midge.sensor_fleet.advice.ways import Name, Reach, WayRow
from midge.sensor_fleet.progress import METRICS
from midge.sensor_fleet.report.quantities import duration, score, size, times
from midge.wire.plurals import counted

_REACH: Final[dict[Reach, int]] = {"nowhere": 0, "site": 1, "anywhere": 2}
POINT: Final = 0.01
"""Least difference between two accuracies that counts."""
ERROR: Final = 0.02
"""The same of two errors, as a share."""
WORTH_DISTRIBUTING: Final = 600.0
"""Seconds of training on one machine above which a second machine is worth its traffic."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The advice."""

    way: Name
    sentences: tuple[str, str]
    """What to do with its reason, and what speaks against the next best way."""
    changes: tuple[str, ...]
    """When it would change."""

    def packed(self) -> dict[str, Any]:
        return {"way": self.way, "text": " ".join(self.sentences), "changes": list(self.changes)}


@dataclass(frozen=True, slots=True)
class RowsHeld:
    """What a device holds on average."""

    row_bytes: float
    """Of a row as stored."""
    rows: float


def decide(rows: Sequence[WayRow], metric: str, reach: Reach | None, held: RowsHeld) -> Decision:
    """Choose a way among those that the rows' reach allows.

    Without a reach, ways that move rows are chosen only if they are better. With `anywhere`, bytes decide between ways
    that are equally good.

    Args:
        rows: the measured ways; federated is among them.
        metric: accuracy or rmse.
        reach: where rows may go; None: not said.
        held: what a device holds.
    """
    judge = _Judge(metric)
    named = {row.way: row for row in rows}
    allowed = [row for row in rows if _REACH[row.exposure.reach] <= _REACH[reach or "anywhere"]]
    if not _worth_distributing(named):  # the steps are those of the pooled training
        allowed = [row for row in allowed if row.way != "data-parallel"]
    best = max((judge.value(row) for row in allowed), key=lambda value: judge.sign * value)
    good = [row for row in allowed if not judge.behind(judge.value(row), best, judge.spread(row))]
    if reach == "anywhere":
        chosen = min(good, key=lambda row: (row.bytes, row.exposure.order))
    else:
        chosen = min(good, key=lambda row: row.exposure.order)
    return Decision(
        chosen.way,
        (_first(chosen, named, judge, reach), _second(chosen, named, judge)),
        tuple(_changes(chosen, named, judge, reach, held)),
    )


def _worth_distributing(named: dict[Name, WayRow]) -> bool:
    pooled, parallel = named.get("pooled"), named.get("data-parallel")
    if pooled is None or parallel is None:
        return parallel is not None
    return pooled.seconds > WORTH_DISTRIBUTING and parallel.seconds < pooled.seconds


@dataclass(frozen=True, slots=True)
class _Judge:
    metric: str

    @property
    def sign(self) -> int:
        return METRICS[self.metric]

    def value(self, row: WayRow) -> float:
        """The mean of both scores: of new rows of the whole fleet, and of the device's own."""
        return (row.score.mean + row.own.mean) / 2

    def spread(self, row: WayRow) -> float:
        return row.score.high - row.score.low

    def behind(self, value: float, best: float, spread: float) -> bool:
        return self.sign * (best - value) > max(self.margin(best), spread)

    def margin(self, value: float) -> float:
        return POINT if self.metric == "accuracy" else ERROR * abs(value)

    def words(self, value: float) -> str:
        return score(value, self.metric)


_VERBS: Final[dict[Name, str]] = {
    "alone": "Train each device alone",
    "federated": "Train federated",
    "hybrid": "Train data-parallel within sites, and federate the sites",
    "data-parallel": "Collect the rows, and train data-parallel",
    "pooled": "Collect the rows, and train on one machine",
}


def _first(chosen: WayRow, named: dict[Name, WayRow], judge: _Judge, reach: Reach | None) -> str:
    what = f"{_VERBS[chosen.way]}: it reaches {judge.words(chosen.score.mean)}"
    pooled = named.get("pooled")
    if chosen.way in ("federated", "hybrid", "alone") and pooled is not None:
        what += f" where pooled rows reach {judge.words(pooled.score.mean)}"
    if chosen.way == "alone":
        what += f", and {judge.words(chosen.own.mean)} on each device's own rows"
    why = {
        "alone": "nothing leaves a device",
        "federated": "no row leaves a device",
        "hybrid": "no row leaves its site",
        "data-parallel": "it exposes every row to the cluster",
        "pooled": "it exposes every row to that machine",
    }[chosen.way]
    if reach == "anywhere" and chosen.way == "pooled":
        why = f"it moves the fewest bytes, {size(chosen.bytes)} over all links; it exposes every row to that machine"
    return f"{what}, and {why}." if chosen.way in ("alone", "federated", "hybrid") else f"{what}; {why}."


def _second(chosen: WayRow, named: dict[Name, WayRow], judge: _Judge) -> str:
    alone, federated, pooled = named.get("alone"), named["federated"], named.get("pooled")
    if chosen.way == "alone":
        return (
            f"A common model gives {judge.words(federated.own.mean)} on these rows, not more than a point better, and "
            f"costs each device {size(federated.monthly_bytes)} a month."
        )
    if chosen.way in ("pooled", "data-parallel"):
        return (
            f"The federation reaches {judge.words(federated.score.mean)} in "
            f"{duration(federated.seconds)} of the fleet's time and moves {size(federated.bytes)}, without a row."
        )
    parts = []
    if alone is not None:
        parts.append(f"alone, a device reaches {judge.words(alone.score.mean)}")
    if pooled is not None:
        parts.append(f"sending the rows would take {size(pooled.bytes)} in place of {size(chosen.bytes)}")
    sentence = "; ".join(parts) or f"it takes {duration(chosen.seconds)} of the fleet's time"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _changes(
    chosen: WayRow, named: dict[Name, WayRow], judge: _Judge, reach: Reach | None, held: RowsHeld
) -> list[str]:
    found = []
    federated, pooled, hybrid = named["federated"], named.get("pooled"), named.get("hybrid")
    if pooled is not None:
        even = held.rows * federated.bytes / pooled.bytes
        if chosen.way in ("pooled", "data-parallel"):
            found.append(
                "If the rows may not leave their devices: then federated."
                if not judge.behind(judge.value(federated), judge.value(pooled), judge.spread(federated))
                else "If the rows may not leave their devices: then federated, with the loss shown."
            )
            if even > held.rows:
                found.append(
                    f"If a device had about {even:,.0f} rows of {held.row_bytes:,.0f} bytes (it has {held.rows:,.0f}): "
                    "from there on, updates are fewer bytes than rows."
                )
        elif reach is None and chosen.bytes > pooled.bytes:
            more = chosen.bytes / pooled.bytes
            found.append(
                f"If rows may go anywhere: pooling them is as good and moves {times(more)} times fewer bytes, as long "
                f"as a device has fewer than about {held.rows * more:,.0f} rows (it has {held.rows:,.0f})."
            )
    if chosen.way == "federated" and hybrid is not None and hybrid.seconds < federated.seconds / 2:
        found.append(
            f"If devices of a site may share rows: the hybrid is there after {duration(hybrid.seconds)} in place of "
            f"{duration(federated.seconds)}."
        )
    parallel = named.get("data-parallel")
    if chosen.way == "pooled" and parallel is not None:
        found.append(
            f"If one machine took more than {duration(WORTH_DISTRIBUTING)}: a cluster may be faster. Here one takes "
            f"{duration(chosen.seconds)}, and the processes together {duration(parallel.seconds)}."
        )
    if chosen.way != "alone" and "alone" in named:
        alone = named["alone"]
        gap = judge.sign * (chosen.own.mean - alone.own.mean)
        if judge.metric == "accuracy":
            found.append(
                "If devices differed so much that a common model served none well: now a lone device is "
                f"{100 * gap:.1f} points behind on its own rows."
                if gap > 0
                else "If only a device's own rows matter: alone is as good on those."
            )
    return found or [f"With {counted(len(named), 'way')} measured, nothing near would change it."]
