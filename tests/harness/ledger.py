"""A federation that keeps books: whether every update that was accepted is in the model once, seen from outside.

Each update adds a one at a place of its own, so the model itself shows which updates are in it: 0 is lost, 2 is
doubled. Each device writes down what receipts tell it, durably, before it forgets the update. `audit` compares the two
and asks nobody else.

`tests.harness.ledger:app` is the aggregator of such a federation, for `midge aggregate`; it reads the environment
variable MIDGE_LEDGER, such as `devices=20 updates=500`, by the names of `Books`. `tests.harness.program` runs its
devices.
"""

import asyncio
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.service import Aggregator
from midge.broker import Connector, Endpoint, connector
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.runtime import first_error
from midge.iot_client.session.timers import PATIENCE
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.messages import Plan, Verdict

VARIABLE = "MIDGE_LEDGER"
_LOOK = 0.2
"""Seconds between two looks whether a device is done, at most."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the aggregator and the devices of a ledger must agree on."""

    devices: int = 20
    updates: int = 500
    """Of each device."""
    pad: int = 0
    """Places that nobody uses: they make updates larger."""
    federation: str = "ledger"
    store: str = "ledger/store"
    chunk: int = 256 * 1024
    """Bytes; updates beyond it come in chunks."""
    checkpoint: int = 1000
    """Records between two checkpoints."""
    codec: str = "float32"
    """Of the deltas: one that says a single 1 exactly."""
    pause: int = 0
    """Milliseconds between two releases, at least: every device hears of every release."""

    @classmethod
    def parse(cls, text: str) -> "Books":
        """Read `name=value` pairs with spaces between them.

        Raises:
            ValueError: one is none, or no number where there must be one.
        """
        types = {field.name: field.type for field in fields(cls)}
        given: dict[str, Any] = {}
        for word in text.split():
            name, equals, value = word.partition("=")
            if not equals or name not in types or (types[name] is int and not value.isdecimal()):
                raise ValueError(f"{word!r} in {VARIABLE} is not of the form name=value; names are {', '.join(types)}.")
            given[name] = int(value) if types[name] is int else value
        return cls(**given)

    @property
    def places(self) -> int:
        return self.devices * self.updates + self.pad

    @property
    def strategy(self) -> Strategy:
        """Each update is a step, counts in full, and may be released alone."""
        return fedasync(
            1.0,
            constant(),
            form="delta",
            bounded=False,
            max_staleness=self.places,
            norm_limit=None,
            release_floor=1,
            release_interval=self.pause / 1000,
            serve_interval=0.0,
            plan=Plan(codec=self.codec),
        )


def app() -> Aggregator:
    """The aggregator, as MIDGE_LEDGER describes it; at localhost unless `midge aggregate --broker` names another."""
    books = Books.parse(os.environ.get(VARIABLE, ""))
    return Aggregator(config(books, connector(Endpoint.parse("mqtt://localhost:1883")), books.store))


def config(books: Books, connect: Connector, store: str | Path) -> AggregatorConfig:
    """What the aggregator of such a federation is."""
    return AggregatorConfig(
        connector=connect,
        federation=books.federation,
        initial={"x": np.zeros(books.places, np.float32)},
        strategy=books.strategy,
        store=store,
        chunk=books.chunk,
        checkpoint_records=books.checkpoint,
        registry=RegistryPolicy(every=0.1, patience=0.1),  # each second a version, a candidate, or its end
    )


# ------------------------------------------------------------------------ devices


class LedgerDevice:
    """One device, number `number` of the fleet. Its outbox and its page of the ledger are files in `directory`."""

    def __init__(
        self,
        connect: Connector,
        books: Books,
        number: int,
        directory: Path,
        *,
        until: float = math.inf,
        pace: float = 0.0,
        patience: float = PATIENCE,
        skip: int = 0,
    ) -> None:
        self._books = books
        self._until = until
        self._pace = pace
        self._skip = skip
        self._base = number * books.updates + skip
        self._name = f"device-{number}"
        self._page = directory / f"{self._name}.jsonl"
        self._opened = False
        self._last = 0
        """The seq of the update that was trained last."""
        self._accepted = False
        """Whether an update was accepted since the start of this process."""
        self._news = asyncio.Event()
        self.device = Device(
            DeviceConfig(
                connector=connect,
                federation=books.federation,
                name=self._name,
                train=self._train,
                outbox=directory / f"{self._name}.outbox",
                on_event=self._hear,
                patience=patience,
            )
        )

    async def serve(self) -> None:
        """Take part until all updates are made, or it is later than `until`, and all that were made are settled.

        However late it is, one is accepted first: on a busy machine a play may be over before its processes are there.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.device.serve())
            while not self._done:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._news.wait()
                self._news.clear()
            self.device.stop()

    @property
    def _wanted(self) -> bool:
        # The right time, whatever `tests.harness.clock` has made of `time.time`.
        now = time.clock_gettime(time.CLOCK_REALTIME)
        in_time = now < self._until or not self._accepted
        return self.device.next_seq <= self._books.updates - self._skip and in_time

    @property
    def _done(self) -> bool:
        if not self._opened or self._wanted:
            return False
        return self._last < self.device.next_seq and self.device.holding == 0

    async def _train(self, parameters: Parameters, _: TrainingPlan) -> Fit:
        if not self._wanted:
            await asyncio.Event().wait()  # until the device is stopped
        await asyncio.sleep(self._pace)
        x = parameters["x"].copy()
        self._last = self.device.next_seq
        x[self._base + self._last - 1] += 1
        return Fit({"x": x}, examples=1)

    def _hear(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "connected"}:
                self._opened = True
            case {"event": "receipt", "outbox": outbox, "seq": seq, "verdict": verdict}:
                if Verdict(verdict).final:
                    self._write(outbox=outbox, seq=seq, verdict=str(verdict), place=self._base + seq - 1)
                self._accepted |= verdict == Verdict.ACCEPTED
            case {"event": "settled", "outbox": outbox, "through": through}:
                self._write(outbox=outbox, through=through, first=self._base)
                self._news.set()

    def _write(self, **line: Any) -> None:
        """Durable when this returns: the device forgets the update only then."""
        with self._page.open("ab", buffering=0) as page:
            page.write(json.dumps({"device": self._name, **line}).encode() + b"\n")
            os.fsync(page.fileno())


class LedgerFleet:
    """Devices `numbers` of a ledger, in one loop. What remains is each device's."""

    def __init__(self, connect: Connector, books: Books, numbers: range, directory: Path, **manner: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._devices = [LedgerDevice(connect, books, number, directory, **manner) for number in numbers]
        self._stop = asyncio.Event()

    async def serve(self) -> None:
        """Take part until every device is done, or `stop()`.

        Raises:
            Exception: what ended one device ends all.
        """
        everybody = asyncio.create_task(self._everybody())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({everybody, stopping}, return_when="FIRST_COMPLETED")
        finally:
            stopping.cancel()
            everybody.cancel()
            await asyncio.wait({everybody})
        if not everybody.cancelled() and (error := everybody.exception()) is not None:
            raise first_error(error) if isinstance(error, BaseExceptionGroup) else error

    async def _everybody(self) -> None:
        async with asyncio.TaskGroup() as lives:
            for device in self._devices:
                lives.create_task(device.serve())

    def stop(self) -> None:
        """End `serve`; what is not settled waits in the outboxes."""
        self._stop.set()


# -------------------------------------------------------------------------- audit


class Audit(NamedTuple):
    """What the books say."""

    accepted: int
    """Updates that a receipt called accepted, or that were settled by a receipt whose verdict was lost."""
    lost: int
    """Those of them that are not in the model."""
    doubled: int
    """Updates that are in it twice or more, or once though a receipt refused them."""
    applied: int
    """Updates that are in it at all."""


def audit(model: Path, pages: Path) -> Audit:
    """Compare a model with what the devices in the directory `pages` wrote down.

    Raises:
        ValueError: the model is none of a ledger, or the same update was both accepted and refused.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        x = load_file(model)["x"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"{model} is no model of a ledger ({error}): name the file that the aggregator wrote."
        ) from error
    times = np.rint(x).astype(np.int64)
    if not np.allclose(x, times, atol=1e-3):
        raise ValueError(f"{model} is no model of a ledger: its values are no whole numbers.")
    settled: set[int] = set()
    verdicts: dict[int, str] = {}
    for line in _lines(pages):
        if "verdict" in line:
            if verdicts.setdefault(line["place"], line["verdict"]) != line["verdict"]:
                raise ValueError(f"{line['device']} was told two verdicts on its update {line['seq']}.")
            settled.add(line["place"])
        else:
            settled |= set(range(line["first"], line["first"] + line["through"]))
    accepted = sorted(place for place in settled if verdicts.get(place, Verdict.ACCEPTED) == Verdict.ACCEPTED)
    refused = sorted(settled.difference(accepted))
    doubled = int(np.count_nonzero(times > 1)) + int(np.count_nonzero(times[refused] == 1))
    lost = int(np.count_nonzero(times[accepted] == 0))
    return Audit(len(accepted), lost, doubled, int(np.count_nonzero(times)))


def _lines(pages: Path) -> Iterator[dict[str, Any]]:
    for page in sorted(pages.glob("*.jsonl")):
        for line in page.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):  # else it was cut short, and nothing was forgotten for it
                yield json.loads(line)
