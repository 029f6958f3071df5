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


Version = Literal[4, 5]
"""Of MQTT; 4 is 3.1.1."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried."""

    name: str
    expected: str
    seen: str
    passed: bool | None
    """None where it could not be tried, or told."""
    advice: str = ""
    """What to do where it did not pass."""
    version: Version | None = None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All that was looked at."""

    broker: str
    user: str | None
    findings: tuple[Finding, ...]
    acl: tuple[str, ...]
    """Lines that Mosquitto's ACL file lacks for the role; empty where nothing is missing."""
    attacks: tuple[Trial, ...] = ()
    limits: tuple[Trial, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a federation works there, and every attack that was tried failed, as far as can be seen."""
        works = all(finding.level != "problem" for finding in self.findings)
        return works and all(trial.passed is not False for trial in (*self.attacks, *self.limits))
