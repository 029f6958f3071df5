"""What a look at a broker comes to: plain values, for people and for machines."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
"""A note is neither good nor bad; a warning costs something; with a problem the federation does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    seen: str
    level: Level = "ok"
    advice: str = ""
    """What to do; empty where there is nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was looked at."""

    broker: str
    user: str | None
    findings: tuple[Finding, ...]
    acl: tuple[str, ...]
    """Lines that Mosquitto's ACL file lacks for the role; empty where nothing is missing."""

    @property
    def ok(self) -> bool:
        """Whether a federation works there, as far as can be seen from outside."""
        return all(finding.level != "problem" for finding in self.findings)
