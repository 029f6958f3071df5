"""Rows of `benchmarks.privacy` for secure aggregation: its price in bytes, time and accuracy."""

import heapq
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning_problems import capped
from midge.aggregator.model.unmasking import Opened
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.masking import Masker
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.training.update_encoder import EncodedUpdate, update_of
from midge.mask_helper.config import HelperConfig
from midge.mask_helper.helper import MaskHelper
from midge.sensor_fleet.data import FleetData, Rows, load
from midge.sensor_fleet.models import Name, initial_model, model_for
from midge.wire import chunks, frames, masking, messages, sealing, signing
from midge.wire.messages import Announcement, Plan
from midge.wire.messages.masking import Dealt, Deposit, Masking, Piece
from midge.wire.schema import Schema, Vector

Row = dict[str, Any]
LINEAGE, FEDERATION = bytes(range(16)), "bench"
PARAMETERS, DEVICES = 100_000, 10
"""Of the rows of bytes and seconds."""
FLEET, STEPS = 20, 400
"""Devices and steps of the rows of accuracy."""
SPREAD = 0.5
"""Standard deviation of the logarithm of the devices' speeds."""
LEVELS = 7


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to send deltas: as they are, or masked, with a number of slices."""

    name: str
    slices: int
    hybrid: bool = False
    """Whether all is sealed to keys of ML-KEM-768 and X25519."""


MASKED = (Mode("secure", 1), Mode("secure, slices=4", 4))
HYBRID = Mode("secure, post-quantum", 1, hybrid=True)


def spread(name: str, found: Sequence[float]) -> Row:
    """The median of a value over seeds, and its range."""
    low, high = round(min(found), 4), round(max(found), 4)
    return {name: round(statistics.median(found), 4), f"{name}_range": [low, high]}


class Parties:
    """A helper with a real ledger, and devices with keys. Everything is signed and sealed as in production."""

    def __init__(
        self, folder: Path, names: Sequence[str], wanted: Masking, size: int, values: int, *, hybrid: bool = False
    ) -> None:
        self.release, key = signing.new_key(), signing.new_key()
        self._opens = sealing.derive(self.release)
        self.daily = sealing.public(sealing.new_key(hybrid=hybrid))
        self.devices = {name: signing.new_key() for name in names}
        roster = {name: device.public for name, device in self.devices.items()}
        config = HelperConfig(
            connector=Twin().connect,
            federation=FEDERATION,
            directory=folder,
            key=key,
            release_keys=[self.release.public],
            roster=roster,
            least=wanted.least,
            post_quantum=hybrid,
        )
        self.helper = MaskHelper(config)
        self._size, self._values, self._asked, self.store = size, values, 0, b""
        required = RequireSecure(helper_key=key.public_pem(), k_min=wanted.least)
        self.maskers = {name: Masker(required, FEDERATION, name) for name in names}
        self.plan = Plan(masking=wanted)
        self._statement = self.helper.statement()

    def announcement(self, version: int) -> Announcement:
        """The announcement of a version."""
        return Announcement(
            federation=FEDERATION,
            lineage=LINEAGE,
            generation=0,
            version=version,
            step=version,
            phase="training",
            schema_hash=bytes(16),
            digest=version.to_bytes(16, "big"),
            plan=self.plan,
            seal_key=sealing.public(self._opens),
            helper=self._statement,
        )

    def ticket(self, name: str, made: EncodedUpdate, seq: int) -> bytes:
        """The ticket of an update."""
        numbered = made.update.model_copy(update={"outbox": 1, "seq": seq})
        signed = masking.signed_entry(self.devices[name], FEDERATION, name, numbered)
        return frames.encode(masking.ticket_of(signed, name))

    def ask(self, tickets: Sequence[bytes], after: int, groups: int = 1) -> list[tuple[Dealt, bytes]]:
        """Deposit tickets; return the answers."""
        self._asked += 1
        body = frames.pack(list(tickets))
        deposit = Deposit(
            lineage=LINEAGE,
            number=self._asked,
            store=self.store,
            after=after,
            size=self._size,
            groups=groups,
            seal_key=sealing.public(self._opens),
            values=self._values,
            sha256=chunks.checksum(body),
        )
        signed = signing.sign_frame(self.release, signing.DEPOSIT, FEDERATION, frames.encode(deposit), body)
        wholes: dict[bytes, bytes] = {}
        for payload in self.helper.take(signed):
            piece, part = messages.decode(Piece, payload)
            wholes[piece.sha256] = wholes.get(piece.sha256, b"") + bytes(part)
        return [self._opened(whole) for whole in wholes.values()]

    def _opened(self, whole: bytes) -> tuple[Dealt, bytes]:
        header, rest = frames.decode(sealing.unseal(whole, self._opens, masking.answer_info(FEDERATION, LINEAGE)))
        dealt = frames.validate(Dealt, header)
        self.store = dealt.store
        return dealt, bytes(rest[: -signing.SIGNATURE])


def opened_sum(dealt: Dealt, body: bytes, bodies: Mapping[tuple[str, int], bytes], values: int) -> Opened:
    """What a sum of masks opens."""
    count = masking.places(LINEAGE, values, dealt.slices, dealt.part).size
    rows = ((each.weight, masking.unpack(bodies[each.device, each.seq], count, dealt.ring)) for each in dealt.members)
    return Opened.of(dealt, masking.unpack(body, count, dealt.ring), rows, 0)


# ---------------------------------------------------------------------------- costs


def costs(repeats: int) -> list[Row]:
    """Bytes of an update, and seconds of a step of helper and aggregator, on one core."""
    found = []
    schema = Schema.of({"w": np.zeros(PARAMETERS, np.float32)})
    rng = np.random.default_rng(1)
    for mode in (*MASKED, HYBRID):
        wanted = _masking(mode, DEVICES, clip=1.0, scale=2.0 / PARAMETERS**0.5)
        names = [f"device-{number}" for number in range(DEVICES)]
        seconds, sizes = [], []
        with tempfile.TemporaryDirectory() as folder:
            parties = Parties(Path(folder), names, wanted, DEVICES, PARAMETERS, hybrid=mode.hybrid)
            after = 0
            for round_ in range(repeats):
                asked, bodies, tickets = parties.announcement(round_), {}, []
                for name in names:
                    delta = rng.normal(0, 1 / PARAMETERS**0.5, PARAMETERS).astype(np.float32)
                    made = parties.maskers[name].mask(delta, update_of(asked, "", b""), asked, schema, None)
                    bodies[name, round_ + 1] = made.body
                    sizes.append(_sent(parties, name, made))
                    tickets.append(parties.ticket(name, made, round_ + 1))
                began = time.process_time()
                dealt, body = parties.ask(tickets, after)[-1]
                mean = opened_sum(dealt, body, bodies, PARAMETERS).delta(LINEAGE, PARAMETERS)
                seconds.append(time.process_time() - began)
                assert np.isfinite(mean).all()
                assert len(dealt.members) == DEVICES
                after = dealt.number
            parties.helper.close()
        size = statistics.mean(sizes) / PARAMETERS
        found.append(_row(mode.name, params=PARAMETERS, k=DEVICES, bytes=size, step=seconds))
    return found


def _sent(parties: Parties, name: str, made: EncodedUpdate) -> int:
    """Bytes of the payload that carries an update: header, entry, signatures, and the sealed body."""
    about = {"sealed": sealing.NAME, "number": 2**62, "key": sealing.key_id(parties.daily)}
    update, body = sealing.confide(made.update.model_copy(update=about), made.body)
    sealed = sealing.seal(body, parties.daily, sealing.about(FEDERATION, name, update))
    update = update.model_copy(update={"outbox": 2**62, "seq": 1000, "size": len(sealed)})
    signed = masking.signed_entry(parties.devices[name], FEDERATION, name, update)
    context = signing.of_device(FEDERATION, name)
    return len(signing.sign_frame(parties.devices[name], signing.DEVICE, context, frames.encode(signed), sealed))


def _masking(mode: Mode, devices: int, *, clip: float, scale: float) -> Masking:
    ring = masking.ring_for(devices, LEVELS)
    return Masking(ring=ring, levels=LEVELS, scale=scale, clip=clip, slices=mode.slices, least=min(5, devices))


def _row(mode: str, **found: Any) -> Row:
    step = found.get("step")
    return {
        "mode": mode,
        "data": found.get("data"),
        "params": found["params"],
        "k": found["k"],
        "bytes_per_param": None if "bytes" not in found else round(found["bytes"], 4),
        "step_seconds": None if step is None else round(statistics.median(step), 4),
        **found.get("accuracy", {"accuracy": None}),
        **found.get("float32", {"float32_accuracy": None}),
        "epsilon": None,
        "epsilon_lower": None,
    }


# ------------------------------------------------------------------------- accuracy


class Federation:
    """An asynchronous federation in virtual time: the same schedule and seeds for each way to send deltas."""

    def __init__(self, source: str, seed: int, devices: int = FLEET, model: Name | None = None) -> None:
        self.data: FleetData = load(source, devices=devices, seed=seed)
        if self.data.task == "regression":
            parts = {name: Rows(rows.x, capped(rows.y)) for name, rows in self.data.devices.items()}
            self.data = replace(self.data, devices=parts, test=Rows(self.data.test.x, capped(self.data.test.y)))
        self.model = model_for(self.data, model, torch=False, seed=seed)
        initial, roles = initial_model(self.model, self.data)
        self.schema = Schema.of(initial, roles)
        self._initial, self._seed = initial, seed

    def flip_labels(self, names: Iterable[str]) -> None:
        """Turn these devices' classes around: the first becomes the last."""
        top = max(int(rows.y.max()) for rows in self.data.devices.values())
        flipped = {
            name: Rows(rows.x, (top - rows.y).astype(rows.y.dtype)) if name in set(names) else rows
            for name, rows in self.data.devices.items()
        }
        self.data = replace(self.data, devices=flipped)

    def run(
        self, steps: int, send: Callable[[str, Vector, int], Iterator[Vector]], size: int, rate: float | None = None
    ) -> float:
        """The test metric after a number of steps; `send` takes a device's delta and yields the means that it opens."""
        names = list(self.data.devices)
        trainers = [
            self.model.trainer(rows, "numpy", seed=self._seed + number)
            for number, rows in enumerate(self.data.devices.values())
        ]
        speeds = np.exp(np.random.default_rng(self._seed).normal(0, SPREAD, len(names)))
        x, frozen = self.schema.flatten(self._initial), self.schema.freeze(self._initial)
        events = [(float(speed), number, 0, x) for number, speed in enumerate(speeds)]
        heapq.heapify(events)
        rate, made, ends = rate or min(1.0, 1.25 * size / len(names)), 0, []
        while made < steps:
            now, number, version, base = heapq.heappop(events)
            parameters = {**self.schema.views(base.copy()), **self.schema.thaw(frozen)}
            fit = trainers[number](parameters, Plan(seed=version))
            for mean in send(names[number], self.schema.flatten(fit.parameters) - base, version):
                x = x + np.float32(rate) * mean
                made += 1
                if made > steps - min(10, steps // 10):
                    ends.append(self._metric(x, frozen))
            heapq.heappush(events, (now + float(speeds[number]), number, made, x))
        return statistics.mean(ends)

    def _metric(self, x: Vector, frozen: bytes) -> float:
        parameters = {**self.schema.views(x.copy()), **self.schema.thaw(frozen)}
        return next(iter(self.model.evaluate(parameters, self.data.test).values()))


def plainly(size: int) -> Callable[[str, Vector, int], Iterator[Vector]]:
    """Send deltas as float32, one of each device in a mean of K."""
    waiting: dict[str, list[Vector]] = {}

    def send(name: str, delta: Vector, _version: int) -> Iterator[Vector]:
        waiting.setdefault(name, []).append(delta)
        if len(waiting) >= size:
            chosen = [waiting[each].pop(0) for each in list(waiting)[:size]]
            for each in [each for each, left in waiting.items() if not left]:
                del waiting[each]
            yield np.mean(chosen, axis=0)

    return send


class MaskedSending:
    """Sends deltas through a helper."""

    def __init__(self, parties: Parties, schema: Schema) -> None:
        self._parties, self._schema = parties, schema
        self._left: dict[str, bytes | None] = {}
        self._bodies: dict[tuple[str, int], bytes] = {}
        self._seq = self._after = 0

    def __call__(self, name: str, delta: Vector, version: int) -> Iterator[Vector]:
        asked = self._parties.announcement(version)
        left = self._left.get(name)
        made = self._parties.maskers[name].mask(delta, update_of(asked, "", b""), asked, self._schema, left)
        self._left[name] = made.residual
        self._seq += 1
        self._bodies[name, self._seq] = made.body
        answers = self._parties.ask([self._parties.ticket(name, made, self._seq)], self._after)
        for dealt, body in answers:
            if dealt.number:
                self._after = dealt.number
                size = self._schema.size
                yield opened_sum(dealt, body, self._bodies, size).delta(LINEAGE, size)


def accuracies(source: str, steps: int, seeds: Sequence[int], modes: Sequence[Mode] = MASKED) -> list[Row]:
    """The metric of a data set, masked and as float32, at the same number of steps."""
    size = 5
    federations = [Federation(source, seed) for seed in seeds]
    plain = [each.run(steps, plainly(size), size) for each in federations]
    return [
        _row(
            mode.name,
            data=Path(source).stem,
            params=federations[0].schema.size,
            k=size,
            accuracy=spread("accuracy", [_masked(each, mode, steps, size) for each in federations]),
            float32=spread("float32_accuracy", plain),
        )
        for mode in modes
    ]


def _masked(federation: Federation, mode: Mode, steps: int, size: int) -> float:
    wanted = _masking(mode, size, clip=CLIP, scale=CLIP / federation.schema.size**0.5)
    with tempfile.TemporaryDirectory() as folder:
        parties = Parties(Path(folder), list(federation.data.devices), wanted, size, federation.schema.size)
        try:
            return federation.run(steps, MaskedSending(parties, federation.schema), size)
        finally:
            parties.helper.close()


CLIP, SCALE = 4.0, 0.05
"""Of the demo (`sensor_fleet.setting.SECURE`). The rows of accuracy have a scale of CLIP/√(number of parameters)."""
