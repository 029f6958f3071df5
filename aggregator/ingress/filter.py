"""Ingress checks, cheapest first: each message is turned away as early as it can be, or becomes an event for the core.

From cheap to dear: whether the device floods, its header, whether it was withdrawn, whether it sends too much or is in
quarantine, its signature, its chunks. Then the core: repeats, lineage, schema, staleness, size. Only then the seal, the
decoding, and what is looked at in values. A message that is turned away is answered if it asks for an answer, or
counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from midge.aggregator.core import events as ev
from midge.aggregator.engine import split_moments
from midge.aggregator.ingress.authentication import Credentials, FromDevice, plain
from midge.aggregator.ingress.rate_limits import OFFENCES, Admission, Refusal
from midge.aggregator.ingress.reassembly import UpdateReassembler, Whole
from midge.aggregator.ingress.troubles import Encode, Troubles
from midge.aggregator.publish.outlet import Outlet
from midge.wire import chunks, messages, sealing
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Fetch, Hello, Report, Settled, Statistics, Update, Verdict
from midge.wire.schema import Vector
from midge.wire.signing import BadSignature

HighWater = Callable[[str, int], int]
"""Up to which seq all of a device's outbox is settled."""
_KEY_REPAIR = 300.0
"""Seconds after which an update whose signature is wrong may come again: its operator has to exchange a key first."""


class KnownDevices(Protocol):
    """Who was withdrawn from the federation, and who is heard (`aggregator.store.device_erasure.Names`)."""

    def withdrawn(self, device: str) -> bool: ...

    def heard(self, device: str) -> None: ...


class Everybody:
    """Without a register: every device may take part."""

    def withdrawn(self, device: str) -> bool:  # noqa: ARG002
        return False

    def heard(self, device: str) -> None:
        """Nothing is kept."""


@dataclass(slots=True)
class Body:
    """What one key stands for, from a message's arrival until the core drops it."""

    raw: memoryview
    """As it is journaled: without seal and signature."""
    delta: Vector | None = None
    """Once it is decoded."""
    direction: Vector | None = None
    """The sketch of the delta, if the strategy asks for one."""


class Bodies:
    """All that waits for a decision, each under one key."""

    def __init__(self) -> None:
        self._keys = count(1)
        self._held: dict[int, Body] = {}
        self.decoded = 0
        """How many hold a delta: these are what is large."""

    def __getitem__(self, key: int) -> Body:
        return self._held[key]

    def keep(self, raw: memoryview) -> int:
        """Hold a body; its key."""
        key = next(self._keys)
        self._held[key] = Body(raw)
        return key

    def decode(self, key: int, delta: Vector, direction: Vector | None) -> None:
        """Note what a body says."""
        body = self._held[key]
        body.delta, body.direction = delta, direction
        self.decoded += 1

    def drop(self, key: int) -> None:
        """Let one go."""
        body = self._held.pop(key, None)
        self.decoded -= body is not None and body.delta is not None

    def clear(self) -> None:
        """Let all go: nothing was decided on them."""
        self._held.clear()
        self.decoded = 0


class IngressFilter:
    """Turns a message away, or into an event.

    Args:
        admission: who may send how much.
        credentials: whose message it is.
        known: who takes part.
        reassembler: puts chunks together.
        bodies: holds what comes until it is decided on.
        outlet: what is turned away is counted there.
        encode_trouble: signs what devices are told of it; None leaves that unsigned.
    """

    def __init__(
        self,
        admission: Admission,
        credentials: Credentials,
        known: KnownDevices,
        *,
        reassembler: UpdateReassembler,
        bodies: Bodies,
        outlet: Outlet,
        encode_trouble: Encode | None = None,
    ) -> None:
        self.admission, self.credentials, self.known = admission, credentials, known
        self.reassembler, self.bodies = reassembler, bodies
        self.troubles = Troubles(admission, credentials, outlet, encode_trouble)
        reassembler.known, reassembler.displaced = self._knows, self._displaced
        self._outlet, self._dropped = outlet, outlet.meters.dropped

    def update(
        self, device: str, payload: bytes, now: float, hi: HighWater
    ) -> ev.Event | ev.Reply | ev.GrantChunks | None:
        """A message from an update topic: an event, the answer to one that is decided on here, or nothing.

        Raises:
            WireError: it does not keep the protocol.
        """
        if self._floods(device, now, len(payload)):
            return None
        message, body = messages.decode_update(payload)
        if self.known.withdrawn(device):
            return self._forgotten(device, message, now)
        # Chunks are paid for by the offer that was granted, or a large update would use up its device's rate.
        if not isinstance(message, Chunk) and (refusal := self.admission.refuses(device, now)) is not None:
            return self._refused(device, message, refusal, hi, now)
        try:
            body = self.credentials.own_body(device, message, body, payload)
            if isinstance(message, Statistics):
                if (why := self.credentials.must_be_sealed(message)) is not None:
                    raise WireError(why)
                body = self.credentials.opened(device, message, body)
                message = self.credentials.shown(device, message)
        except BadSignature as error:
            return self._unsigned(device, message, str(error), hi, now)
        self._heard(device)
        match message:
            case Update(kind="update"):
                return ev.Arrived(device, message, self.bodies.keep(body))
            case Update():
                return ev.Offered(device, message)
            case Chunk():
                return self._chunk(device, message, body, now, hi)
            case Fetch():
                return ev.FetchAsked(device, message)
            case Statistics():
                split_moments(body, message.names)
                return ev.StatisticsArrived(device, message, self.bodies.keep(body), chunks.checksum(body))

    def _chunk(
        self, device: str, chunk: Chunk, body: memoryview, now: float, hi: HighWater
    ) -> ev.Arrived | ev.Reply | ev.GrantChunks | None:
        come = self.reassembler.add(device, chunk, body, now)
        if isinstance(come, Update):
            return ev.GrantChunks(device, come, hi(device, come.outbox))
        if not isinstance(come, Whole):
            # The last ones come again if an acknowledgement was lost: what is settled is no trouble.
            if not self.reassembler.awaits(device, chunk) and hi(device, chunk.outbox) < chunk.seq:
                why = f"a chunk of update {chunk.seq} came, which was not offered here since the start: offer it again"
                self.troubles.tell(device, why, now)
            return None
        try:
            # Only the offer was signed: a forged chunk must cost the device a retry, not its update.
            self.credentials.check_whole(device, come.update, come.body)
        except BadSignature as error:
            return self._unsigned(device, come.update, str(error), hi, now)
        return ev.Arrived(device, come.update, self.bodies.keep(come.body))

    def status(self, device: str, payload: bytes, now: float) -> Hello | None:
        """A status; None if it is not to be heeded.

        Raises:
            WireError: it is none.
        """
        if self._floods(device, now, len(payload)):
            return None
        hello, body = messages.decode(Hello, payload)
        return self.credentials.shown(device, hello) if self._believed(device, hello, body, payload, now) else None

    def report(self, device: str, payload: bytes, now: float) -> Report | None:
        """A report; None if it is not to be heeded.

        Raises:
            WireError: it is none.
        """
        if self._floods(device, now, len(payload)):
            return None
        if self.known.withdrawn(device):
            self._dropped["forgotten"] += 1
            self.troubles.tell(device, _WITHDRAWN, now)
            return None
        if (refusal := self.admission.refuses(device, now)) is not None:
            self._over_rate(device, refusal, now)
            return None
        report, body = messages.decode(Report, payload)
        return self.credentials.shown(device, report) if self._believed(device, report, body, payload, now) else None

    def greeting(self, device: str, hello: Hello, now: float) -> ev.Greeted | ev.Reply | None:
        """A greeting to be heeded, or the answer to one turned away; None: the device greets again by itself."""
        refusal = self.admission.refuses(device, now)
        # One in quarantine is answered: it has to learn what is settled, or it could not forget what was accepted.
        if refusal is not None and refusal.verdict is not Verdict.QUARANTINED:
            self._over_rate(device, refusal, now)
            return None
        if self.known.withdrawn(device):
            return ev.Reply(device, hello.outbox, 0, (_withdrawal(hello.first),))
        self._heard(device)
        return ev.Greeted(device, hello.outbox, hello.first)

    def unseal(self, device: str, update: Update, body: Body) -> Update:
        """Open an update's seal in its place: the journal keeps what can be decoded again without a key.

        Raises:
            WireError: it is not sealed as it must be, cannot be opened, or is not what the header's checksum is of.
        """
        if (why := self.credentials.must_be_sealed(update)) is not None:
            raise WireError(why)
        if not update.sealed:
            if not chunks.fits(body.raw, update.sha256):
                raise WireError("the delta's checksum is not that of its header")
            return update
        update, body.raw = sealing.revealed(update, self.credentials.opened(device, update, body.raw))
        return plain(update, body.raw)

    # ----------------------------------------------------------------- consequences

    def judged(self, device: str, verdict: str, now: float) -> None:
        """An update of this device has been decided on."""
        self.known.heard(device)
        if verdict == Verdict.ACCEPTED:
            self.admission.pleased(device)
        elif verdict in OFFENCES:
            self._offended(device, now)

    def malformed(self, device: str, now: float) -> None:
        """A message on this device's topics did not keep the protocol."""
        # A device that signs is not blamed: whoever may publish on its topic could have sent it.
        if not self.credentials.authenticated(device):
            self._offended(device, now)

    def forget(self, device: str) -> None:
        """Drop what is here of a device."""
        self.reassembler.forget(device)
        self.admission.forget(device)

    def _knows(self, device: str) -> bool:
        return self.admission.knows(device)

    def _heard(self, device: str) -> None:
        """Note who was heard, for the names that grow old: those of which something is kept, or any name would be."""
        if self._knows(device):
            self.known.heard(device)

    def _offended(self, device: str, now: float) -> None:
        if term := self.admission.offended(device, now):
            self._outlet.tell("quarantine", device=device, seconds=term)

    def stray(self, topic: str, now: float, size: int) -> bool:
        """Whether a message on a topic that is no device's is looked at: whose it is, the topic's end says at most."""
        return not self._floods(topic.rsplit("/", 1)[-1][:64], now, size)

    def _floods(self, device: str, now: float, size: int) -> bool:
        if self.admission.hears(device, now, size):
            return False
        self._dropped["flood"] += 1
        self.troubles.tell(device, "more messages from this device than its share: what is over it is not read", now)
        return True

    def _over_rate(self, device: str, refusal: Refusal, now: float) -> None:
        self._dropped["over rate"] += 1
        self.troubles.tell(device, refusal.why, now)

    def _displaced(self, device: str, now: float) -> None:
        self.troubles.tell(device, "its half update made room for another, being too slow: offer it again", now)

    def _believed(self, device: str, message: Hello | Report, body: memoryview, payload: bytes, now: float) -> bool:
        try:
            self.credentials.own_body(device, message, body, payload)
        except BadSignature as error:
            self._dropped["bad signature"] += 1
            self.troubles.tell(device, f"its {message.kind} is dropped: {error}", now)
            return False
        return True

    def _forgotten(self, device: str, message: FromDevice, now: float) -> ev.Reply | None:
        self._dropped["forgotten"] += 1
        refusal = self.admission.refuses(device, now)
        if not isinstance(message, Update) or (refusal is not None and not refusal.told):
            self.troubles.tell(device, _WITHDRAWN, now)
            return None
        return ev.Reply(device, message.outbox, message.seq, (_withdrawal(message.seq),))

    def _refused(
        self, device: str, message: FromDevice, refusal: Refusal, hi: HighWater, now: float
    ) -> ev.Reply | None:
        if not isinstance(message, Update) or not refusal.told:
            self._over_rate(device, refusal, now)
            return None
        settled = Settled(seq=message.seq, verdict=refusal.verdict, why=refusal.why, retry_after=refusal.retry_after)
        return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))

    def _unsigned(self, device: str, message: FromDevice, why: str, hi: HighWater, now: float) -> ev.Reply | None:
        """The answer to a message whose signature is not right. It settles nothing: the device may not have sent it."""
        self._dropped["bad signature"] += 1
        if not isinstance(message, Update):
            self.troubles.tell(device, f"its {message.kind} is dropped: {why}", now)
            return None
        settled = Settled(seq=message.seq, verdict=Verdict.BAD_SIGNATURE, why=why, retry_after=_KEY_REPAIR)
        return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))


_WITHDRAWN = "the operator withdrew this device from the federation"


def _withdrawal(seq: int) -> Settled:
    return Settled(seq=seq, verdict=Verdict.FORGOTTEN, why=_WITHDRAWN)
