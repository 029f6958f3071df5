"""What a run costs in bytes, beside the bytes of the raw data that stayed where they are."""

import statistics
from dataclasses import dataclass
from typing import Final

from sensor_fleet.report.quantities import size, times
from sensor_fleet.report.run import Run, finite_number

MONTH: Final = 30 * 86400.0
DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Bill:
    """Payload bytes of one device in the mean."""

    up: float
    down: float | None
    """None where the run did not live to write it down."""
    seconds: float
    updates: float
    """How many of its updates were accepted."""
    raw: float | None
    """Of its inputs, as they are stored."""

    as_float32: tuple[float, float] | None
    """What would have been sent and received as whole models of float32."""

    @property
    def total(self) -> float:
        return self.up + (self.down or 0.0)

    @property
    def per_update(self) -> float | None:
        """All that was sent and received, for each accepted update."""
        return self.total / self.updates if self.updates else None

    def monthly(self, value: float) -> float | None:
        """Bytes of a month at the pace of the run."""
        return value / self.seconds * MONTH if self.seconds else None

    def at(self, updates: float, value: float) -> float | None:
        """The same at a number of updates in a month."""
        return value / self.updates * updates if self.updates else None

    def verdict(self) -> list[str]:
        """An honest word, in sentences: whether federating is worth it by bytes alone."""
        each = self.per_update
        if self.raw is None or each is None or not self.seconds:
            return []
        told = [self._comparison(self.raw, each)]
        told.append(
            f"Data that keeps coming changes this: at one update a day, federating saves bytes where a device records "
            f"more than {size(each)} a day."
        )
        return told

    def _comparison(self, raw: float, each: float) -> str:
        day = self.total / self.seconds * DAY
        if raw < each:
            return (
                f"By bytes alone, federating is not worth it here: a device's raw data, {size(raw)}, is smaller than "
                f"what one update costs, {size(each)}. What speaks for it is that the data stays where it is."
            )
        if raw < self.total:
            return (
                f"By bytes alone, federating was not worth it here: this run moved {times(self.total / raw)} times the "
                f"raw data of a device, {size(raw)}. It would take fewer than {raw / each:.0f} updates to save any."
            )
        if raw < day:
            return (
                f"This run moved less than the raw data of a device, {size(raw)}; a day without pause would move more, "
                f"{size(day)}. Federating saves bytes here where a device sends fewer than {raw / each:.0f} updates."
            )
        return f"A device's raw data, {size(raw)}, is more than a whole day of updates without pause, {size(day)}."


def bill(run: Run) -> Bill | None:
    """The bill of a run; None where it did not get so far."""
    up, down = run.traffic
    number = run.size
    if up is None or not number:
        return None
    result = run.result or {}
    plain_up, plain_down = finite_number(result.get("float32_up")), finite_number(result.get("float32_down"))
    raw = finite_number(result.get("raw_bytes"))
    if run.devices:
        raw = statistics.fmean(traits.bytes for traits in run.devices.values())
    return Bill(
        up / number,
        None if down is None else down / number,
        run.seconds,
        run.taken / number,
        raw,
        None if plain_up is None or plain_down is None else (plain_up / number, plain_down / number),
    )
