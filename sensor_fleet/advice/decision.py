"""The advice in words: which way suits a fleet, why, and when the answer would change.

Each statement about a value is a `Clause`: the comparison as data, from which its words are made.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from midge.sensor_fleet.advice.rule import WORTH_DISTRIBUTING, Choice, Judge, choose
from midge.sensor_fleet.advice.ways import Name, Reach, WayRow
from midge.sensor_fleet.report.quantities import duration, measured, score, significant, size, times

Quantity = Literal["score", "own", "both", "bytes", "monthly_bytes", "seconds", "reach", "rows"]
"""A field of `WayRow`; `both` is the mean of score and own, `reach` the answer of the rule, `rows` a device's rows."""
Relation = Literal[
    "is",
    "only good",
    "exposes least",
    "fewest of good",
    "better",
    "worse",
    "as good",
    "no better",
    "unknown",
    "within spread",
    "fewer",
    "even",
    "chosen",
]


@dataclass(frozen=True, slots=True)
class Clause:
    """One statement of the advice."""

    quantity: Quantity
    relation: Relation
    way: Name
    other: Name | None
    """With what the way is compared; None compares it with all."""
    value: float
    """What the words say: the value itself, by how much it is better or worse, or a ratio."""
    words: str
    reach: Reach | None = None
    """Where rows may go, of `chosen`."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The advice."""

    way: Name
    sentences: tuple[str, str]
    """What to do with its reason, and what speaks against the next best way."""
    changes: tuple[str, ...]
    """When it would change."""
    clauses: tuple[Clause, ...] = ()
    """Every statement in them about a value."""

    def packed(self) -> dict[str, Any]:
        return {"way": self.way, "text": " ".join(self.sentences), "changes": list(self.changes)}


@dataclass(frozen=True, slots=True)
class RowsHeld:
    """What a device holds on average."""

    row_bytes: float
    """Of a row as stored."""
    rows: float
    model_bytes: float
    """What all devices receive as the model after a pooled training: bytes that do not grow with rows."""


def decide(
    rows: Sequence[WayRow], metric: str, reach: Reach | None, held: RowsHeld, guess: float | None = None
) -> Decision:
    """Choose a way among those that the rows' reach allows.

    Without a reach, ways that move rows are chosen only if they are better. With `anywhere`, bytes decide between ways
    that are equally good.

    Args:
        rows: the measured ways; federated is among them.
        metric: accuracy or rmse.
        reach: where rows may go; None: not said.
        held: what a device holds.
        guess: score on new rows of the most frequent class, or of the mean target; None: not known.
    """
    judge = Judge(metric, own=any(math.isfinite(row.own.mean) for row in rows))
    found = choose(rows, judge, reach)
    text = _Advising(tuple(rows), judge, reach, held, found)
    unknown = "" if judge.own else " No device had rows to keep out of training: the scores on new rows decide."
    sentences = (text.warning(guess) + text.first(), text.second() + unknown)
    return Decision(found.chosen.way, sentences, tuple(text.changes()), tuple(text.clauses))


_VERBS: Final[dict[Name, str]] = {
    "alone": "Train each device alone",
    "federated": "Train federated",
    "hybrid": "Train data-parallel within sites, and federate the sites",
    "data-parallel": "Collect the rows, and train data-parallel",
    "pooled": "Collect the rows, and train on one machine",
}
_EXPOSES: Final[dict[Name, str]] = {
    "alone": "nothing leaves a device",
    "federated": "no row leaves a device",
    "hybrid": "no row leaves its site",
    "data-parallel": "it exposes every row to the cluster",
    "pooled": "it exposes every row to that machine",
}
_IF: Final[dict[Reach, str]] = {
    "nowhere": "If the rows may not leave their devices",
    "site": "If rows may go within their site, and no further",
    "anywhere": "If rows may go anywhere",
}


@dataclass(frozen=True)
class _Advising:
    rows: tuple[WayRow, ...]
    judge: Judge
    reach: Reach | None
    held: RowsHeld
    found: Choice
    clauses: list[Clause] = field(default_factory=list)

    @property
    def chosen(self) -> WayRow:
        return self.found.chosen

    def named(self, way: Name) -> WayRow | None:
        return next((row for row in self.rows if row.way == way), None)

    # ----------------------------------------------------------------------- clauses

    def said(
        self,
        quantity: Quantity,
        relation: Relation,
        row: WayRow,
        value: float,
        words: str,
        *,
        other: WayRow | None = None,
        reach: Reach | None = None,
    ) -> str:
        compared = None if other is None else other.way
        self.clauses.append(Clause(quantity, relation, row.way, compared, value, words, reach))
        return words

    def value(self, row: WayRow, quantity: Quantity) -> str:
        """What was measured."""
        found = getattr(row, quantity)
        if quantity in ("score", "own"):
            return self.said(quantity, "is", row, found.mean, score(found.mean, self.judge.metric))
        return self.said(quantity, "is", row, found, (duration if quantity == "seconds" else size)(found))

    def compared(self, row: WayRow, other: WayRow, quantity: Literal["own", "both"]) -> str:
        """How a way does against another: better or worse by more than what counts, or as good."""
        mine, theirs = ((each.own.mean if quantity == "own" else self.judge.value(each)) for each in (row, other))
        gain, margin = self.judge.gain(mine, theirs), self.judge.margin(theirs)
        relation: Relation = "better" if gain > 0 else "worse"
        if not math.isfinite(gain):
            relation, words = "unknown", "not comparable"
        elif abs(gain) <= margin:
            relation, words = "as good", f"as good (within {'a point' if self.judge.metric == 'accuracy' else '2 %'})"
        else:
            words = f"{self.difference(abs(gain), theirs)} {relation}"
        return self.said(quantity, relation, row, gain, words, other=other)

    def difference(self, gain: float, value: float) -> str:
        """Points of an accuracy; percent of an error."""
        if self.judge.metric == "accuracy":
            return f"{100 * gain:.1f} points"
        return f"{significant(100 * gain / value)} %" if value else significant(gain)

    # --------------------------------------------------------------------- sentences

    def warning(self, guess: float | None) -> str:
        """That no way does better than a guess without inputs; empty if one does."""
        judge = self.judge
        if guess is None or any(judge.gain(row.score.mean, guess) > judge.margin(guess) for row in self.rows):
            return ""
        always = "the most frequent class" if judge.metric == "accuracy" else "the mean target"
        words = f"on new rows no way is better than always {always}, which has {measured(guess, judge.metric)}"
        return f"Nothing was learnt: {self.said('score', 'no better', self.chosen, guess, words)}. "

    def first(self) -> str:
        chosen, pooled = self.chosen, self.named("pooled")
        what = f"{_VERBS[chosen.way]}: it reaches {self.value(chosen, 'score')}"
        if chosen.way in ("federated", "hybrid", "alone") and pooled is not None:
            what += f" where pooled rows reach {self.value(pooled, 'score')}"
        if chosen.way == "alone" and self.judge.own:
            what += f", and {self.value(chosen, 'own')} on each device's own rows"
        return f"{what}; {self.reason()}, and {_EXPOSES[chosen.way]}."

    def reason(self) -> str:
        chosen, good = self.chosen, self.found.good
        which = "eligible " if len(self.found.allowed) < len(self.rows) else ""
        if len(good) == 1:
            return self.said("both", "only good", chosen, self.judge.value(chosen), f"no other {which}way is as good")
        of = f"of {len(good)} {which}ways that are as good, it"
        if self.reach == "anywhere":
            words = f"{of} moves the fewest bytes, {size(chosen.bytes)} over all links"
            return self.said("bytes", "fewest of good", chosen, chosen.bytes, words)
        return self.said("both", "exposes least", chosen, self.judge.value(chosen), f"{of} exposes least")

    def second(self) -> str:
        chosen, alone, pooled, federated = (
            self.chosen,
            self.named("alone"),
            self.named("pooled"),
            self.named("federated"),
        )
        assert federated is not None
        if chosen.way == "alone":
            gives = "On new rows a common model is"
            if self.judge.own:
                gives = f"A common model gives {self.value(federated, 'own')} on these rows, {self.where}"
            costs = f"costs each device {self.value(federated, 'monthly_bytes')} a month"
            return f"{gives} {self.not_better(federated)}, and {costs}."
        if chosen.way in ("pooled", "data-parallel"):
            return (
                f"The federation reaches {self.value(federated, 'score')} in {self.value(federated, 'seconds')} of the "
                f"fleet's time and moves {self.value(federated, 'bytes')}, without a row."
            )
        parts = []
        if alone is not None:
            parts.append(f"alone, a device reaches {self.value(alone, 'score')}")
        if pooled is not None:
            parts.append(
                f"sending the rows would take {self.value(pooled, 'bytes')} in place of {self.value(chosen, 'bytes')}"
            )
        sentence = "; ".join(parts) or f"it takes {self.value(chosen, 'seconds')} of the fleet's time"
        return f"{sentence[0].upper()}{sentence[1:]}."

    def not_better(self, federated: WayRow) -> str:
        """Why a federation is not chosen over lone devices, on new and own rows together."""
        judge, alone = self.judge, self.chosen
        gain = judge.gain(judge.value(federated), judge.value(alone))
        if gain > judge.margin(judge.value(federated)):
            words = "better by less than the seeds differ"
            return self.said("both", "within spread", federated, gain, words, other=alone)
        return self.compared(federated, alone, "both")

    @property
    def where(self) -> str:
        return "on both kinds of rows" if self.judge.own else "on new rows"

    # ----------------------------------------------------------------------- changes

    def changes(self) -> list[str]:
        found = [*self.other_reaches(), *self.more_rows(), *self.less_time(), *self.own_rows_only()]
        return found or ["Wherever the rows may go, the answer stays."]

    def other_reaches(self) -> Iterator[str]:
        """What the rule chooses if the rows may go elsewhere."""
        reaches: tuple[Reach, ...] = ("nowhere", "site", "anywhere")
        for reach in reaches:
            other = choose(self.rows, self.judge, reach).chosen
            if reach == self.reach or other.way == self.chosen.way:
                continue
            verb = _VERBS[other.way]
            answer = self.said("reach", "chosen", other, 0.0, f"{verb[0].lower()}{verb[1:]}", reach=reach)
            why = f", with {self.value(other, 'score')} in place of {self.value(self.chosen, 'score')}"
            if reach == "anywhere" and other.way == "pooled" and 0 < other.bytes < self.chosen.bytes:
                more = self.chosen.bytes / other.bytes
                ratio = self.said("bytes", "fewer", other, more, f"{times(more)} times fewer bytes", other=self.chosen)
                why += f" and {ratio}, as long as a device has {self.even(other, self.chosen, 'fewer than ')}"
            elif reach == "anywhere" and other.bytes != self.chosen.bytes:
                why += f" and {self.value(other, 'bytes')} in place of {self.value(self.chosen, 'bytes')}"
            yield f"{_IF[reach]}: {answer}{why}."

    def even(self, pooled: WayRow, other: WayRow, before: str = "") -> str:
        """The rows of a device at which sending them, and receiving the model, takes the bytes of another way."""
        model = self.held.model_bytes
        rows = self.held.rows * (other.bytes - model) / (pooled.bytes - model)
        words = f"{before}about {rows:,.0f} rows of {self.held.row_bytes:,.0f} bytes (it has {self.held.rows:,.0f})"
        return self.said("rows", "even", pooled, rows, words, other=other)

    def more_rows(self) -> Iterator[str]:
        pooled, federated = self.named("pooled"), self.named("federated")
        assert federated is not None
        if self.chosen.way in ("pooled", "data-parallel") and pooled is not None and 0 < pooled.bytes < federated.bytes:
            even = self.even(pooled, federated)
            yield f"If a device had {even}: from there on, updates take no more bytes than rows."

    def less_time(self) -> Iterator[str]:
        chosen, judge, hybrid = self.chosen, self.judge, self.named("hybrid")
        asked = choose(self.rows, judge, "site").chosen.way == "hybrid"  # said already
        if chosen.way == "federated" and hybrid is not None and hybrid.seconds < chosen.seconds / 2 and not asked:
            value = judge.value(chosen)
            if judge.gain(judge.value(hybrid), value) >= -judge.margin(value):
                yield (
                    "If devices of a site may share rows, and time matters more than what they expose: the hybrid is "
                    f"there after {self.value(hybrid, 'seconds')} in place of {self.value(chosen, 'seconds')}, and "
                    f"{self.where} {self.compared(hybrid, chosen, 'both')}."
                )
        parallel = self.named("data-parallel")
        if chosen.way == "pooled" and parallel is not None:
            least = (
                f"more than {duration(WORTH_DISTRIBUTING)}, and a cluster less" if self.quick else "more than a cluster"
            )
            yield (
                f"If one machine took {least}: then a cluster. Here one machine takes {self.value(chosen, 'seconds')}, "
                f"and the processes together {self.value(parallel, 'seconds')}."
            )

    @property
    def quick(self) -> bool:
        return self.chosen.seconds <= WORTH_DISTRIBUTING

    def own_rows_only(self) -> Iterator[str]:
        alone = self.named("alone")
        if self.chosen.way == "alone" or alone is None or not self.judge.own:
            return
        how = self.compared(alone, self.chosen, "own")
        if self.clauses[-1].relation == "worse":
            yield (
                "If devices differed so much that a common model served none well: now a lone device is "
                f"{how} on its own rows."
            )
        else:
            yield f"If only a device's own rows matter: a lone device is {how} on those."
