"""What an operator can do from the page: each action is a value, and the page shows those that it is given."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

Scope = Literal["federation", "device", "update"]


@dataclass(frozen=True, slots=True)
class ActionRequest:
    """What was chosen on the page."""

    device: str = ""
    """The device, of an action on a device or an update; a valid name."""
    seq: int = 0
    """Of an action on an update."""
    text: str = ""
    """What was typed, of an action that asks for a text; at most 300 characters."""


class Refused(Exception):
    """The action was not carried out; the message says why."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action.

    Attributes:
        name: its name in requests.
        label: of its button.
        scope: what it acts on.
        carry_out: does it, and returns what to show; raises `Refused`.
        confirm: the question before it; empty asks none.
        asks: the label of a text that goes with it; empty for none.
        grave: whether it cannot be undone.
    """

    name: str
    label: str
    scope: Scope
    carry_out: Callable[[ActionRequest], Coroutine[Any, Any, str]]
    confirm: str = ""
    asks: str = ""
    grave: bool = False

    def packed(self) -> dict[str, Any]:
        """As the page gets it."""
        return {
            "name": self.name,
            "label": self.label,
            "scope": self.scope,
            "confirm": self.confirm,
            "asks": self.asks,
            "grave": self.grave,
        }
