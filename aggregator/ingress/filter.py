"""Ingress checks, cheapest first: each message is refused as early as possible, or becomes an event for the core.

From cheap to expensive: whether the device floods, its header, whether it was withdrawn, its rate limits and
quarantine, its signature, its chunks. Then the core: duplicates, lineage, schema, staleness, size. Only then the seal,
the decoding, and checks of values. A refused message is answered if it expects an answer, otherwise counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from midge.aggregator.core import events as ev
from midge.aggregator.engine import split_moments
from midge.aggregator.ingress.authentication import Credentials, FromDevice, plain
from midge.aggregator.ingress.rate_limits import OFFENCES, Admission, Refusal
from midge.aggregator.ingress.reassembly import DISPLACED, UpdateReassembler, Whole
from midge.aggregator.ingress.troubles import Encode, Troubles
from midge.aggregator.publish.outlet import Outlet
from midge.wire import chunks, codecs, messages, sealing
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Fetch, Hello, Report, Settled, Statistics, Update, Verdict
from midge.wire.messages.proofs import Prove
from midge.wire.schema import Vector, is_sane
from midge.wire.signing import BadSignature

HighWater = Callable[[str, int], int]
"""The seq up to which all of a device's outbox is settled."""
_KEY_REPAIR = 300.0
_OTHER_KEY = 2.0
"""Seconds until a device seals an update again, to a key that it has by then."""
"""Seconds after which an update with a wrong signature may be sent again: the operator must replace a key first."""


class KnownDevices(Protocol):
    """Withdrawn devices, and who has been active (`aggregator.store.device_erasure.Names`)."""

    def withdrawn(self, device: str) -> bool: ...

    def heard(self, device: str) -> None: ...


@dataclass(slots=True)
class Body:
    """The content behind one key, from a message's arrival until the core drops it."""

    raw: memoryview
    """As journaled: without seal and signature."""
    delta: Vector | None = None
    """The decoded delta, once it is decoded."""
    direction: Vector | None = None
    """The sketch of the delta, if the strategy needs it."""
    site: memoryview | None = None
    """The device's values of its site's tensors, which followed the delta."""


class Bodies:
    """Bodies that wait for a decision, each under a key."""

    def __init__(self) -> None:
        self._keys = count(1)
        self._held: dict[int, Body] = {}
        self.decoded = 0
        """Number of bodies with a delta, which are the large ones."""

    def __getitem__(self, key: int) -> Body:
        return self._held[key]

    def keep(self, raw: memoryview) -> int:
        """Store a body; return its key."""
        key = next(self._keys)
        self._held[key] = Body(raw)
        return key

    def decode(self, key: int, delta: Vector, direction: Vector | None) -> None:
        """Add the decoded content of a body."""
        body = self._held[key]
        body.delta, body.direction = delta, direction
        self.decoded += 1

    def drop(self, key: int) -> None:
        """Remove a body."""
        body = self._held.pop(key, None)
        self.decoded -= body is not None and body.delta is not None

    def clear(self) -> None:
        """Remove all bodies: nothing was decided on them."""
        self._held.clear()
        self.decoded = 0


class IngressFilter:
    """Refuses a message, or turns it into an event.

    Args:
        admission: the rate limits.
        credentials: authentication.
        known: withdrawn and active devices.
        reassembler: reassembles chunks.
        bodies: holds bodies until they are decided on.
        outlet: refused messages are counted there.
        encode_trouble: signs `trouble` messages; None leaves them unsigned.
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
        self.on_drop: Callable[[str, str, float], None] = lambda _device, _why, _now: None
        """Takes each message that is dropped without an answer, as a flood or for its signature: device, why, time."""
        self.answers: Callable[[str], bool] = lambda _device: True
        """Whether we answer a device's greeting; with shards, one process does."""
        self.answers_retained = False
        """Whether a retained greeting is answered too: of a shard, whose start no device notices."""

    def update(
        self, device: str, payload: bytes, now: float, hi: HighWater
    ) -> ev.Event | ev.Reply | ev.GrantChunks | ev.ProofAsked | None:
        """Process a message from an update topic: return an event, the answer if it is decided here, or nothing.

        Raises:
            WireError: it violates the protocol.
        """
        if self._floods(device, now, len(payload)):
            return None
        message, body = messages.decode_update(payload)
        if self.known.withdrawn(device):
            return self._forgotten(device, message, now)
        # The granted offer paid for its chunks, or a large update would use up its device's rate.
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
            case Update() if self.credentials.erased(message):
                return _other_key(device, message, hi)
            case Update(kind="update"):
                return ev.Arrived(device, message, self.bodies.keep(body))
            case Update():
                return ev.Offered(device, message)
            case Chunk():
                return self._chunk(device, message, body, now, hi)
            case Fetch():
                return ev.FetchAsked(device, message)
            case Prove():
                return ev.ProofAsked(device, message)
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
            # A lost acknowledgement repeats the last chunks: those of a settled update are no trouble.
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
        """Process a status; None if it is ignored.

        Raises:
            WireError: it is none.
        """
        if self._floods(device, now, len(payload)):
            return None
        hello, body = messages.decode(Hello, payload)
        return self.credentials.shown(device, hello) if self._trusted(device, hello, body, payload, now) else None

    def report(self, device: str, payload: bytes, now: float) -> Report | None:
        """Process a report; None if it is ignored.

        Raises:
            WireError: it is none.
        """
        if self._floods(device, now, len(payload)) or messages.is_kind("surveyed", payload):
            return None  # the answer to an operator's survey is none of ours
        if self.known.withdrawn(device):
            self._dropped["forgotten"] += 1
            self.troubles.tell(device, _WITHDRAWN, now)
            return None
        if (refusal := self.admission.refuses(device, now)) is not None:
            self._over_rate(device, refusal, now)
            return None
        report, body = messages.decode(Report, payload)
        return self.credentials.shown(device, report) if self._trusted(device, report, body, payload, now) else None

    def greeting(self, device: str, hello: Hello, now: float) -> ev.Greeted | ev.Reply | None:
        """Process a READY status: return an event, a refusal, or None if the device will repeat it."""
        if not self.answers(device):
            return None
        refusal = self.admission.refuses(device, now)
        # A quarantined device is answered: it must learn what is settled, or it could not forget what was accepted.
        if refusal is not None and refusal.verdict is not Verdict.QUARANTINED:
            self._over_rate(device, refusal, now)
            return None
        if self.known.withdrawn(device):
            return ev.Reply(device, hello.outbox, 0, (_withdrawal(hello.first),))
        self._heard(device)
        return ev.Greeted(device, hello.outbox, hello.first)

    def unseal(self, device: str, update: Update, body: Body) -> Update:
        """Open an update's seal in place: the journal keeps what can be decoded again without a key.

        Raises:
            WireError: it is not sealed as required, cannot be opened, or does not match the header's checksum; or its
                values of a site's tensors are cut short or, as `codecs.NonFinite`, not finite.
        """
        if (why := self.credentials.must_be_sealed(update)) is not None:
            raise WireError(why)
        if not update.sealed:
            if not chunks.fits(body.raw, update.sha256):
                raise WireError("the delta's checksum is not that of its header")
            return _without_site(update, body)
        update, body.raw = sealing.revealed(update, self.credentials.opened(device, update, body.raw))
        return _without_site(plain(update, body.raw), body)

    # ------------------------------------------------------------------ consequences

    def judged(self, device: str, verdict: str, now: float) -> None:
        """Record a verdict on an update of this device."""
        self.known.heard(device)
        if verdict == Verdict.ACCEPTED:
            self.admission.accepted(device)
        elif verdict in OFFENCES:
            self._offended(device, now)

    def malformed(self, device: str, now: float) -> None:
        """Count a message on this device's topics that violated the protocol."""
        # A device that signs is not blamed: any client that may publish on its topic could have sent it.
        if not self.credentials.authenticated(device):
            self._offended(device, now)

    def forget(self, device: str) -> None:
        """Remove everything kept here of a device."""
        self.reassembler.forget(device)
        self.admission.forget(device)

    def _knows(self, device: str) -> bool:
        return self.admission.knows(device)

    def _heard(self, device: str) -> None:
        """Record activity, for the retention of names: only of known devices, or any name would be stored."""
        if self._knows(device):
            self.known.heard(device)

    def _offended(self, device: str, now: float) -> None:
        if term := self.admission.offended(device, now):
            self._outlet.tell("quarantine", device=device, seconds=term)

    def stray(self, topic: str, now: float, size: int) -> bool:
        """Whether a message on a topic without a device is processed: at most the topic's end names its sender."""
        return not self._floods(topic.rsplit("/", 1)[-1][:64], now, size)

    def _floods(self, device: str, now: float, size: int) -> bool:
        if self.admission.hears(device, now, size):
            return False
        self._drop("flood", device, "more messages from this device than its share: the excess is not read", now)
        return True

    def _over_rate(self, device: str, refusal: Refusal, now: float) -> None:
        self._dropped["over rate"] += 1
        self.troubles.tell(device, refusal.why, now)

    def _displaced(self, device: str, now: float) -> None:
        self.troubles.tell(device, DISPLACED, now)

    def _trusted(self, device: str, message: Hello | Report, body: memoryview, payload: bytes, now: float) -> bool:
        try:
            self.credentials.own_body(device, message, body, payload)
        except BadSignature as error:
            self._drop("bad signature", device, f"its {message.kind} is dropped: {error}", now)
            return False
        return True

    def _drop(self, kind: str, device: str, why: str, now: float) -> None:
        self._dropped[kind] += 1
        self.on_drop(device, why, now)
        self.troubles.tell(device, why, now)

    def _forgotten(self, device: str, message: FromDevice, now: float) -> ev.Reply | None:
        self._dropped["forgotten"] += 1
        refusal = self.admission.refuses(device, now)
        if not isinstance(message, Update) or (refusal is not None and not refusal.answer):
            self.troubles.tell(device, _WITHDRAWN, now)
            return None
        return ev.Reply(device, message.outbox, message.seq, (_withdrawal(message.seq),))

    def _refused(
        self, device: str, message: FromDevice, refusal: Refusal, hi: HighWater, now: float
    ) -> ev.Reply | None:
        if not isinstance(message, Update) or not refusal.answer:
            self._over_rate(device, refusal, now)
            return None
        settled = Settled(seq=message.seq, verdict=refusal.verdict, why=refusal.why, retry_after=refusal.retry_after)
        return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))

    def _unsigned(self, device: str, message: FromDevice, why: str, hi: HighWater, now: float) -> ev.Reply | None:
        """The answer to a message with a wrong signature. It settles nothing: the device may not have sent it."""
        if not isinstance(message, Update):
            self._drop("bad signature", device, f"its {message.kind} is dropped: {why}", now)
            return None
        self._dropped["bad signature"] += 1
        settled = Settled(seq=message.seq, verdict=Verdict.BAD_SIGNATURE, why=why, retry_after=_KEY_REPAIR)
        return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))


def _without_site(update: Update, body: Body) -> Update:
    """Split the values of a site's tensors from the delta, which alone is journaled."""
    if not update.site_size:
        return update
    left = len(body.raw) - update.site_size
    if left < 0:
        raise WireError("the values of the site's tensors are cut short")
    body.raw, body.site = body.raw[:left], body.raw[left:]
    if not is_sane(body.site):
        raise codecs.NonFinite("a value of the site's tensors is not finite, or beyond 2^80")
    return update.model_copy(update={"size": left})


def _other_key(device: str, message: Update, hi: HighWater) -> ev.Reply:
    """The answer to an update that cannot be opened: its device keeps it, and seals it to the newest key."""
    why = "it is sealed to a key of the day that is no longer here: seal it to the one in the aggregator's status"
    settled = Settled(seq=message.seq, verdict=Verdict.BUSY, why=why, retry_after=_OTHER_KEY)
    return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))


_WITHDRAWN = "the operator withdrew this device from the federation"


def _withdrawal(seq: int) -> Settled:
    return Settled(seq=seq, verdict=Verdict.FORGOTTEN, why=_WITHDRAWN)
