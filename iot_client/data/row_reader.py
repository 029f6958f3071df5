"""Reading of one row: converts values to numbers, and decides whether the row is kept."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.values import missing, number

Kind = Literal["regression", "classification", "reconstruction"]

_LONGEST_QUOTE = 60
"""Characters of a value in a message."""


class RowReader:
    """Reads rows of some features, with or without a label.

    Args:
        features: names of the inputs, in order.
        label: the name of the target; None without one.
        kind: as in `Samples`; None follows from the label.
        missing_values: numbers or words that stand for missing values.

    Raises:
        ValueError: a label is missing or superfluous.
    """

    def __init__(
        self, features: Sequence[str], label: str | None, kind: Kind | None, missing_values: Sequence[str | float] = ()
    ) -> None:
        self.label = label
        self.kind: Kind = kind or ("reconstruction" if label is None else "regression")
        if (self.kind == "reconstruction") != (label is None):
            what, how = ("need a label", "name it") if label is None else ("have no label", "leave it out")
            raise ValueError(f"Samples of kind {self.kind} {what}: {how}.")
        self.wanted = tuple(features) if label is None else (*features, label)
        """Names of all values of a row."""
        self._features = tuple(features)
        self._nothing = {number(each) for each in missing_values}
        self._nothing_words = {each.strip().casefold() for each in missing_values if isinstance(each, str)}

    def numbers(self, given: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], list[tuple[str, str]]]:
        """Values as numbers, NaN for missing and invalid ones; and for the latter, the column and a message."""
        values, wrong = np.empty(len(given), np.float64), []
        for at, (name, each) in enumerate(zip(self.wanted, given, strict=True)):
            found = number(each)
            if found in self._nothing or (isinstance(each, str) and each.strip().casefold() in self._nothing_words):
                found = math.nan
            elif isinstance(each, str) and math.isnan(found) and not missing(each):
                wrong.append((name, f"{name} is {each[:_LONGEST_QUOTE]!r}, no number"))
            values[at] = found
        return values, wrong

    def useless(
        self, known: npt.NDArray[np.bool_], given: npt.NDArray[Any], values: npt.NDArray[np.float64]
    ) -> tuple[str, str] | None:
        """Why a row is dropped, as a reason and as text; None if it is kept.

        Args:
            known: which of its values can be used.
            given: the values as they came.
            values: the same as numbers.
        """
        if self.label is not None and not known[-1]:
            return self._without_label(given[-1])
        if not known[: len(self._features)].any():
            return "no feature has a number", f"none of {', '.join(self._features)[:200]} has a number"
        if self.kind == "classification" and not (values[-1] >= 0 and float(values[-1]).is_integer()):
            return f"{self.label} is no class", f"{self.label} is {given[-1]}, no number of a class from 0"
        return None

    def _without_label(self, value: Any) -> tuple[str, str]:
        if not math.isnan(number(value)):
            return f"no {self.label}", f"{self.label} is {value}, which stands for a value that is missing"
        if isinstance(value, str) and not missing(value) and value.strip().casefold() not in self._nothing_words:
            return f"{self.label} is no number", f"{self.label} is {value[:_LONGEST_QUOTE]!r}, no number"
        return f"no {self.label}", f"{self.label} is missing"
