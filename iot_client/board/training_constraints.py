"""What of the device's own keeps it from training: conditions of its owner, a spent budget."""

from collections.abc import Callable, Sequence

from midge.iot_client.board.usage_budget import Budget
from midge.wire.messages import Participation

Condition = Callable[[], str | None]
"""Why the device should not train now, in words; None where it may."""
LOOK_EVERY = 5.0
"""Seconds between two looks at the conditions."""


class Hindrances:
    """Looks at everything that may be in the way."""

    def __init__(
        self, conditions: Sequence[Condition], budget: Budget, *, link_conditions: Sequence[Condition] = ()
    ) -> None:
        self._conditions, self._link_conditions = tuple(conditions), tuple(link_conditions)
        self._budget = budget

    def found(self, asked: Participation | None) -> str | None:
        """The first that is in the way.

        Raises:
            Exception: whatever a condition raised.
        """
        if (why := self._budget.spent(asked)) is not None:
            return why
        return _first(self._conditions)

    def muted(self) -> str | None:
        """The first that keeps updates and models off the link.

        Raises:
            Exception: whatever a condition raised.
        """
        return _first(self._link_conditions)


def _first(conditions: Sequence[Condition]) -> str | None:
    for condition in conditions:
        if (why := condition()) is not None:
            return why
    return None
