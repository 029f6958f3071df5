"""The parties of secure aggregation, without a broker: devices that mask, and an aggregator that may be hostile."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from midge.broker.embedded.in_memory import Twin
from midge.mask_helper.config import HelperConfig
from midge.mask_helper.helper import MaskHelper
from midge.wire import chunks, envelopes, frames, masking, messages, sealing, signing
from midge.wire.chunks import checksum
from midge.wire.masking import SealTo
from midge.wire.messages import Update
from midge.wire.messages.masking import Dealt, Deposit, Masking, Piece

FEDERATION, LINEAGE = "plant", bytes(range(16))
VALUES = 64
LEVELS = 7
ROUND = b"a model's digest"
RELEASE, HELPER = signing.new_key(), signing.new_key()
OPENS = sealing.derive(RELEASE)


def delta(seed: int) -> np.ndarray:
    """Whole levels, so that rounding changes nothing."""
    return np.random.default_rng(seed).integers(-3, 4, VALUES).astype(np.float32)


@dataclass
class Sender:
    """A device."""

    name: str
    key: signing.PrivateKey = field(default_factory=signing.new_key)
    outbox: int = 1
    seq: int = 0

    def send(
        self,
        helper: MaskHelper,
        values: np.ndarray,
        base: int = 1,
        *,
        digest: bytes = ROUND,
        least: int = 2,
        slices: int = 1,
        ring: int = 12,
        noise: float = 0.0,
        honest: int = 0,
    ) -> tuple[Update, bytes]:
        """A masked and signed update, and its body."""
        self.seq += 1
        stated = envelopes.read_statement(helper.statement(), FEDERATION, [HELPER.public])
        update = Update(
            outbox=self.outbox,
            first=1,
            seq=self.seq,
            lineage=LINEAGE,
            generation=0,
            base=base,
            base_digest=digest[:8],
            codec="",
            size=0,
            sha256=checksum(b""),
        )
        wanted = Masking(
            ring=ring, levels=LEVELS, scale=1.0, clip=1e9, slices=slices, least=2, noise=noise, honest=honest
        )
        to = SealTo(stated.keys[0].key, FEDERATION, self.name, least)
        made = masking.masked(values, wanted, update, to)
        return masking.signed_entry(self.key, FEDERATION, self.name, made.update), made.body


class Asker:
    """An aggregator: deposits whatever the test says, and reads the answers."""

    def __init__(self, helper: MaskHelper, key: signing.PrivateKey = RELEASE) -> None:
        self.helper, self._key = helper, key
        self.number = 0
        self.turns = True
        """Whether deposits are numbered over restarts, as those of earlier versions were not."""
        self.bodies: dict[tuple[str, int, int], bytes] = {}

    def hold(self, device: Sender, sent: tuple[Update, bytes]) -> tuple[str, Update]:
        update, body = sent
        self.bodies[device.name, update.outbox, update.seq] = body
        return device.name, update

    def payload(
        self,
        tickets: Iterable[tuple[str, Update]],
        *,
        size: int = 2,
        after: int = 0,
        store: bytes = b"",
        groups: int = 1,
    ) -> bytes:
        body = frames.pack([frames.encode(masking.ticket_of(update, name)) for name, update in tickets])
        return self.signed(body, size=size, after=after, store=store, groups=groups)

    def signed(self, body: bytes, **request: Any) -> bytes:
        """A deposit with these bytes for its tickets."""
        self.number += 1
        deposit = Deposit(
            lineage=LINEAGE,
            number=self.number,
            turn=self.number if self.turns else 0,
            **{"size": 2, **request},
            seal_key=sealing.public(OPENS),
            values=VALUES,
            sha256=checksum(body),
        )
        return signing.sign_frame(self._key, signing.DEPOSIT, FEDERATION, frames.encode(deposit), body)

    def ask(self, tickets: Iterable[tuple[str, Update]] = (), **request: Any) -> list[tuple[Dealt, bytes]]:
        """The helper's answers to a deposit; see `payload`."""
        return opened(self.helper.take(self.payload(tickets, **request)))

    def sums(self, answers: Sequence[tuple[Dealt, bytes]]) -> list[np.ndarray]:
        """The sums of devices' integers that these answers open."""
        found = []
        for dealt, body in answers:
            if not dealt.number:
                continue
            count = masking.places(LINEAGE, VALUES, dealt.slices, dealt.part).size
            rows = [
                (each.weight, masking.unpack(self.bodies[each.device, each.outbox, each.seq], count, dealt.ring))
                for each in dealt.members
            ]
            total = masking.weighted(rows, count, dealt.ring)
            found.append(masking.unmasked(total, masking.unpack(body, count, dealt.ring), dealt.ring))
        return found


def opened(pieces: Sequence[bytes]) -> list[tuple[Dealt, bytes]]:
    """Answers from their pieces."""
    wholes: dict[bytes, bytes] = {}
    for payload in pieces:
        piece, body = messages.decode(Piece, payload)
        wholes[piece.sha256] = wholes.get(piece.sha256, b"") + bytes(body)
    found = []
    for whole in wholes.values():
        plain = sealing.unseal(whole, OPENS, masking.answer_info(FEDERATION, LINEAGE))
        header, rest = frames.decode(plain)
        body, signature = rest[:-64], rest[-64:]
        assert HELPER.public.verifies(signature, signing.HELPER, FEDERATION, signing.head_of(plain, rest))
        dealt = frames.validate(Dealt, header)
        assert chunks.fits(body, dealt.sha256)
        found.append((dealt, bytes(body)))
    return found


def rejections(answers: Sequence[tuple[Dealt, bytes]]) -> dict[str, str]:
    """Why updates were refused, by device."""
    return {each.device: each.why for dealt, _ in answers for each in dealt.rejected}


def senders(count: int) -> list[Sender]:
    return [Sender(f"pump-{number}") for number in range(count)]


def helper_of(
    directory: Path,
    devices: Sequence[Sender],
    least: int = 3,
    *,
    clock: Callable[[], float] | None = None,
    post_quantum: bool = False,
) -> MaskHelper:
    config = HelperConfig(
        connector=Twin().connect,
        federation=FEDERATION,
        directory=directory,
        key=HELPER,
        release_keys=[RELEASE.public],
        roster={device.name: device.key.public for device in devices},
        least=least,
        post_quantum=post_quantum,
    )
    return MaskHelper(config, clock or (lambda: 1.7e9))
