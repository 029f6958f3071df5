"""A device's training throughput, and the number of local steps that follows from it."""

from midge.wire.messages import Plan

_FORGETS = 0.3
"""Weight of the newest training in the moving averages."""


class Throughput:
    """Optimiser steps and rows per second, as moving averages over trainings."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.rows = 0.0

    def record(self, steps: int, rows: int, seconds: float) -> None:
        """Record a training: its steps, its rows, and its seconds."""
        if seconds > 0:
            self.steps = _followed(self.steps, steps / seconds)
            self.rows = _followed(self.rows, rows / seconds)

    def scaled(self, plan: Plan) -> Plan:
        """The plan with as many local steps as fit into its seconds; unchanged before the first training.

        As in FedCompass (arXiv:2309.14675), fast and slow devices then answer at about the same time, each with as much
        work as it can do; the strategy's `even_steps` weights the results.
        """
        steps = self.fitting(plan)
        return plan.model_copy(update={"local_steps": steps, "epochs": None}) if steps else plan

    def fitting(self, plan: Plan) -> int:
        """Local steps that fit into the seconds of a plan; 0 if it names none, or the throughput is unknown."""
        if plan.seconds is None or self.steps == 0:
            return 0
        return max(min(max(round(self.steps * plan.seconds), plan.fewest_steps), plan.most_steps), 1)


def _followed(mean: float, value: float) -> float:
    return value if mean == 0 else mean + _FORGETS * (value - mean)
