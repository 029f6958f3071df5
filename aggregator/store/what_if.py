"""What is asked of a journal with another course of events, and the answer."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.model import Model
from midge.wire.plurals import counted

Combine = Literal["mean", "trimmed", "centred"]
_WORDS = re.compile(
    r"(?:without (.+?)(?:; |$))?(?:combine (mean|trimmed|centred)(?: ([\d.]+))?(?:; |$))?(fedasync)?", re.DOTALL
)
"""A change in words, as `Change.words` makes them."""


@dataclass(frozen=True)
class Change:
    """How the execution differs from the real one."""

    without: frozenset[str] = frozenset()
    """Devices whose updates and statistics are left out."""
    combine: Combine | None = None
    """How the updates of each step become one; None as recorded."""
    trim: float = 0.1
    """For `trimmed`: the share that is left out at either end."""
    singly: Strategy | None = None
    """A strategy of which every update is a step, in the order in which they were stepped; None as recorded. With
    `centred`, each is clipped at the median length of those in its recorded step; it goes with no other combination."""

    def words(self) -> str:
        """The change in words, for the journal."""
        parts = [f"without {', '.join(sorted(self.without))}"] if self.without else []
        if self.combine:
            parts.append(f"combine {self.combine}" + (f" {self.trim:g}" if self.combine == "trimmed" else ""))
        parts += [self.singly.name] if self.singly else []
        return "; ".join(parts) or "as recorded"

    @classmethod
    def read(cls, words: str) -> "Change | None":
        """The change of these words; None if they are of none."""
        found = _WORDS.fullmatch(words)
        if not words or found is None:
            return None
        given: tuple[Any, ...] = found.groups()
        names, combine, trim, singly = given
        return cls(
            frozenset(names.split(", ") if names else ()),
            combine,
            float(trim or cls.trim),
            fedasync() if singly else None,
        )

    def after(self, earlier: "Change") -> "Change":
        """This change together with an earlier one; where both change the same, this one counts."""
        return Change(
            self.without | earlier.without,
            self.combine or earlier.combine,
            self.trim if self.combine else earlier.trim,
            self.singly or earlier.singly,
        )


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What is certain of the model."""

    since: int
    """The record after which everything was executed again; 0 is the beginning."""
    left_out: int
    """Updates that were left out."""
    unpooled: int
    """Statistics of devices that were left out."""
    remaining: int
    """Accepted updates of these devices before that which the journal lists; they are in the checkpoint."""
    pooled: int
    """Statistics of these devices that were pooled before that."""
    unlisted: int
    """Records before that which the journal does not list any more: whose they were is not known."""
    unnamed: int
    """Updates of which the journal does not say whose work they are: under an erased name, under another name than the
    log of releases has them, or sums of a gateway."""
    returned: tuple[int, ...]
    """Records that went back to a registered version, which may hold the devices' work."""
    contained: int
    """Updates of the devices that were made before the last of these; the version may hold them."""
    remade: tuple[int, ...]
    """Records that went back to an earlier counterfactual, which was executed again with this change too."""
    skipped: int
    """Updates whose base could not be rebuilt for another strategy."""
    estimated: bool = False
    """Whether another rule than the recorded one made steps: devices would have trained from its models."""

    @property
    def complete(self) -> bool:
        """Whether it is known that no update and no statistics of the devices are in the model."""
        return not (self.remaining or self.pooled or self.unlisted or self.unnamed or self.returned)

    def words(self) -> str:
        """The guarantee in words."""
        where = "from the beginning" if self.since == 0 else f"after record {self.since}"
        text = f"{'An estimate' if self.estimated else 'Exact'}: every step {where} was executed again"
        without = [counted(self.left_out, "update")] if self.left_out else []
        without += [f"the statistics of {counted(self.unpooled, 'device')}"] if self.unpooled else []
        text += f", with {' and '.join(without)} left out" if without else ""
        text += (
            ", with another rule. Its updates were trained from the models that were really published: from the models "
            "of this rule devices would have trained others, so a federation that runs with it may be far better or "
            "worse: a simulation or a candidate shows it."
            if self.estimated
            else "."
        )
        if self.remaining:
            text += (
                f" Not removed: at least {counted(self.remaining, 'earlier update')}, which the oldest "
                "checkpoint contains."
            )
        if self.pooled:
            text += " Not removed: statistics of the inputs that were pooled before."
        if self.unlisted:
            text += (
                f" Not known: how many updates were among {counted(self.unlisted, 'earlier record')} that the journal "
                "does not list any more; they are in the checkpoint."
            )
        if self.unnamed:
            text += (
                f" Not known: whose work is in {counted(self.unnamed, 'update')}, of erased or changed names or of "
                "sites that send sums."
            )
        if self.remade:
            text += (
                f" Record {self.remade[-1]} went back to an earlier what-if: that was executed again with this change."
            )
        if self.contained:
            text += (
                f" Not removed: record {self.returned[-1]} went back to a registered version, which contains up to "
                f"{counted(self.contained, 'earlier update')} of them."
            )
        elif self.returned:
            text += f" Not known: record {self.returned[-1]} went back to a registered version, with what was in it."
        if self.skipped:
            text += f" {counted(self.skipped, 'update')} could not be used: the model under them is gone."
        if self.estimated:
            return text + (
                " What devices learned from work that is left out stays in their updates." if without else ""
            )
        return text + (
            " Weights are those that were given. Devices trained from the models that were really published: what they "
            "learned from work that is left out stays in their updates."
        )


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The model of another course of events."""

    model: Model
    guarantee: Guarantee
    steps: int
    """Steps that were made."""
    devices: int
    """Distinct devices whose work is in them, counted as for a release."""
    unreleased: int
    """Those of them in steps after the last release that is a real one."""
    contributors: frozenset[str]
    """The devices of which updates are in it."""
    updates: int
    """Updates that are in it."""
