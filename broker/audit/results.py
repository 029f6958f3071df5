"""Results of a broker audit: plain values for text and JSON output."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
"""A note is neutral; a warning costs something; with a problem the federation does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One property that was checked."""

    name: str
    seen: str
    level: Level = "ok"
    advice: str = ""
    """What to do; empty if nothing."""


Version = Literal[4, 5]
"""Version of MQTT; 4 is 3.1.1."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One attack that was tried."""

    name: str
    expected: str
    seen: str
    passed: bool | None
    """None if it could not be tried, or has no clear result."""
    advice: str = ""
    """What to do if it did not pass."""
    version: Version | None = None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All results of an audit."""

    broker: str
    user: str | None
    findings: tuple[Finding, ...]
    acl: tuple[str, ...]
    """Lines that Mosquitto's ACL file lacks for the role; empty if none."""
    attacks: tuple[Trial, ...] = ()
    limits: tuple[Trial, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a federation works there, and every attack failed as far as can be observed."""
        works = all(finding.level != "problem" for finding in self.findings)
        return works and all(trial.passed is not False for trial in (*self.attacks, *self.limits))
