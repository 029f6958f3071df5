"""What a topic implies about its payload, under any root; for tools that show payloads."""

import re
from dataclasses import dataclass

from midge.wire.topics import SLOTS, slot

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SHAPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (rf"(?P<federation>{_NAME})/aggregator", ("aggregator",)),
    (rf"(?P<federation>{_NAME})/aggregator/ask", ("ask",)),
    (rf"(?P<federation>{_NAME})/aggregator/overview", ("overview",)),
    (rf"(?P<federation>{_NAME})/model/(?:train|serve|survey|alias/(?:champion|candidate))", ("envelope",)),
    (rf"(?P<federation>{_NAME})/model/site", ("site_values",)),
    (rf"(?P<federation>{_NAME})/model/(?:train|serve|registered)/\d+/\d+-\d+", ("part",)),
    (
        rf"(?P<federation>{_NAME})/update/(?P<slot>\d+)/(?P<device>{_NAME})",
        ("update", "offer", "chunk", "fetch", "statistics"),
    ),
    (rf"(?P<federation>{_NAME})/receipt/(?P<device>{_NAME})", ("receipt", "trouble", "vouch")),
    (rf"(?P<federation>{_NAME})/status/(?P<device>{_NAME})", ("hello",)),
    (rf"(?P<federation>{_NAME})/report/(?P<device>{_NAME})", ("report", "surveyed")),
    (rf"(?P<federation>{_NAME})/renew/(?P<device>{_NAME})", ("renew",)),
    (rf"(?P<federation>{_NAME})/renewed/(?P<device>{_NAME})", ("renewed",)),
    (rf"(?P<federation>{_NAME})/authorities", ("authorities",)),
    (rf"(?P<federation>{_NAME})/claim", ("claim",)),
    (rf"(?P<federation>{_NAME})/standby/(?:copy|follow)", ("standby",)),
    (rf"(?P<federation>{_NAME})/helper", ("envelope",)),
    (rf"(?P<federation>{_NAME})/helper/deposit", ("deposit",)),
    (rf"(?P<federation>{_NAME})/helper/dealt", ("dealt",)),
)
"""Patterns of topics without their roots, and the kinds that belong there."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What a topic implies about a payload."""

    federation: str = ""
    device: str = ""
    kinds: tuple[str, ...] = ()
    """Kinds that may be published there; empty if the topic is unknown."""
    wrong: str = ""
    """What is wrong with the topic itself; empty if nothing."""


def hint(topic: str) -> Hint:
    """Read a topic under any root."""
    for shape, kinds in _SHAPES:
        if found := re.fullmatch(rf"(?:[^/]+/)+{shape}", topic):
            named = found.groupdict()
            device = named.get("device") or ""
            number = named.get("slot")
            known = number is None or number in map(str, range(SLOTS))
            wrong = "" if known else f"there is no slot {number}; that of {device} is {slot(device)}"
            return Hint(named["federation"], device, kinds, wrong)
    return Hint(wrong="this is no topic of Midge's")
