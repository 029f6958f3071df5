"""The device's own reasons not to train: conditions of its owner, a spent budget."""

from collections.abc import Callable, Sequence

from midge.iot_client.board.usage_budget import Budget
from midge.wire.messages import Participation

Condition = Callable[[], str | None]
"""Returns why the device should not train now, as text; None if it may."""
LOOK_EVERY = 5.0
"""Seconds between two checks of the conditions."""


class TrainingConstraints:
    """Checks all of the device's constraints."""

    def __init__(
        self, conditions: Sequence[Condition], budget: Budget, *, link_conditions: Sequence[Condition] = ()
    ) -> None:
        self._conditions, self._link_conditions = tuple(conditions), tuple(link_conditions)
        self._budget = budget

    def blocked(self, asked: Participation | None) -> str | None:
        """The first reason not to train.

        Raises:
            Exception: whatever a condition raised.
        """
        if (why := self._budget.spent(asked)) is not None:
            return why
        return _first(self._conditions)

    def muted(self) -> str | None:
        """The first reason to keep updates and models off the link.

        Raises:
            Exception: whatever a condition raised.
        """
        return _first(self._link_conditions)


def _first(conditions: Sequence[Condition]) -> str | None:
    for condition in conditions:
        if (why := condition()) is not None:
            return why
    return None
