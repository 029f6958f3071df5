"""The rules that a device is tested for, each with its section on the protocol page, and the verdicts."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not seen"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of docs/protocol.md."""

    name: str
    section: str
    """The heading of its section."""
    what: str
    """What a device must do."""


LIFE, SENDING, MODEL = "A device's life", "Sending an update", "States and frames"
RULES = (
    Rule("frames", "Frames", "every payload is a frame of a known kind, its fields of the right types and in range"),
    Rule("topics", "Topics", "a device publishes on its own topics"),
    Rule("joining", LIFE, "it asks with a number whether another device has its name, before it greets"),
    Rule("greeting", LIFE, "it greets once it has seen the aggregator's status, with what it holds"),
    Rule("retained", "Topics", "its status is retained, and nothing else of it is"),
    Rule("question", LIFE, "it answers a joining device of its name with that one's number"),
    Rule("statistics", "Statistics", "it answers with the moments that are asked for"),
    Rule("fetch", MODEL, "it asks again for a chunk that does not come, and for no other"),
    Rule("largest", MODEL, "its size limit is no less than the part size, and it accepts parts of that size"),
    Rule("seq", "Identity", "seq counts from 1 without gaps, and first never falls"),
    Rule(
        "base", "Sending an update", "lineage, generation, base and base_digest are those of a model that was announced"
    ),
    Rule("delta", "The delta", "the delta decodes, is finite, and is what size and sha256 say"),
    Rule("settling", SENDING, "what is settled is forgotten: it is not sent again, and first passes it"),
    Rule("resending", SENDING, "what is not answered is sent again, the same bytes under the same seq"),
    Rule("receipts twice", SENDING, "a receipt that comes twice, or late, changes nothing"),
    Rule("once", LIFE, "it trains once from each version"),
    Rule("newer version", LIFE, "an announcement that comes during a fetch does not change what is being trained from"),
    Rule("corrupt chunk", MODEL, "a chunk that is not what its checksum says is not trained from"),
    Rule("digest", MODEL, "a model that is not what its digest says is not trained from"),
    Rule("recovery", MODEL, "it comes to the right model once that is there"),
    Rule("merged step", MODEL, "it follows a step over several versions"),
    Rule("unknown", "Frames", "fields, numbers and kinds of a later version are ignored; names may be text"),
    Rule("busy", SENDING, "after busy it waits for retry_after, and sends the same again"),
    Rule("chunk size", SENDING, "no body is larger than the announced chunk"),
    Rule(
        "grants", SENDING, "it sends just the chunks that are granted, in any order, again if they are asked for again"
    ),
    Rule("share", "Who takes part", "it trains where the hash of its name is below the share, and only there"),
    Rule("paused", LIFE, "while the aggregator is paused it neither sends nor trains"),
    Rule("cleared", "Topics", "an empty payload on a retained topic is ignored"),
    Rule("restart", LIFE, "it greets again when the aggregator's boot changes, and sends what is not settled"),
    Rule("token", LIFE, "a receipt of an aggregator that was replaced settles nothing"),
    Rule("old copy", SENDING, "if more is settled than it ever sent, it takes a new identity"),
)
BY_NAME = {rule.name: rule for rule in RULES}


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """The verdict on a rule."""

    rule: Rule
    outcome: Outcome
    did: str
    """What the device did."""

    def plain(self) -> dict[str, str]:
        """As JSON types."""
        return {"rule": self.rule.name, "section": self.rule.section, "outcome": self.outcome, "did": self.did}


class Notebook:
    """Verdicts by rule. A failure is final."""

    def __init__(self) -> None:
        self._noted: dict[str, RuleVerdict] = {}

    def passed(self, name: str, did: str) -> None:
        """Record that a rule was kept; the last record is shown."""
        if not self.has_failed(name):
            self._noted[name] = RuleVerdict(BY_NAME[name], "pass", did)

    def failed(self, name: str, did: str) -> None:
        """Record that a rule was broken; the first record is shown."""
        if not self.has_failed(name):
            self._noted[name] = RuleVerdict(BY_NAME[name], "fail", did)

    def unseen(self, name: str, why: str) -> None:
        """Record that a rule could not be checked."""
        self._noted.setdefault(name, RuleVerdict(BY_NAME[name], "not seen", why))

    def has_failed(self, name: str) -> bool:
        """Whether it was broken."""
        return name in self._noted and self._noted[name].outcome == "fail"

    def findings(self) -> list[RuleVerdict]:
        """The verdicts of all rules, in their order."""
        return [self._noted.get(rule.name, RuleVerdict(rule, "not seen", "it was not reached")) for rule in RULES]
