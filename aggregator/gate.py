"""What stands before the core: each message is turned away as cheaply as it can be, or let in checked.

From cheap to dear: whether the device floods, its header, whether it was withdrawn, whether it sends too much or is in
quarantine, its signature. Then the core: repeats, lineage, schema, staleness, size. Only then the seal, the decoding,
and what is looked at in values. A message that is turned away is answered where it asks for an answer, or counted.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from aggregator import events as ev
from aggregator.admission import OFFENCES, Admission, Limits, Refusal
from aggregator.credentials import Credentials, FromDevice, plain
from wire import messages
from wire.errors import WireError
from wire.messages import Chunk, Hello, Report, Settled, Statistics, Update, Verdict
from wire.signing import BadSignature
from wire.topics import Topics

Hi = Callable[[str, int], int]
"""Up to which seq all of a device's outbox is settled."""
_MEND = 300.0
"""Seconds after which an update whose signature is wrong may come again: somebody must mend a key meanwhile."""


def open_gate(topics: Topics, dropped: Counter[str], tell: Callable[..., None]) -> "Gate":
    """One that lets everybody in."""
    limits = Limits(rate=None, fleet_rate=None, strikes=None)
    return Gate(
        Admission(limits),
        Credentials(topics),
        withdrawn=lambda _device: False,
        heard=lambda _device: None,
        dropped=dropped,
        tell=tell,
    )


class Gate:
    """Turns away, or lets in.

    Args:
        admission: who may send how much.
        credentials: whose message it is.
        withdrawn: whether a device was withdrawn from the federation.
        heard: told of each device whose message was let in.
        dropped: where to count what is turned away without a word.
        tell: called with each event.
    """

    def __init__(
        self,
        admission: Admission,
        credentials: Credentials,
        *,
        withdrawn: Callable[[str], bool],
        heard: Callable[[str], None],
        dropped: Counter[str],
        tell: Callable[..., None],
    ) -> None:
        self.admission = admission
        self._credentials = credentials
        self.withdrawn = withdrawn
        self._heard = heard
        self._dropped = dropped
        self._tell = tell

    def update(
        self, device: str, payload: bytes, now: float, hi: Hi
    ) -> tuple[messages.ToAggregator, memoryview] | ev.Reply | None:
        """A message from an update topic, with its own body; or the answer to one that is turned away, or nothing.

        Raises:
            WireError: it does not keep the protocol.
        """
        if not self.admission.hears(device, now):
            self._dropped["flood"] += 1
            return None
        message, body = messages.decode_update(payload)
        if self.withdrawn(device):
            return self._forgotten(device, message, now)
        if not isinstance(message, Chunk) and (refusal := self.admission.refuses(device, now)) is not None:
            return self._refused(device, message, refusal, hi)
        try:
            own = self._credentials.own_body(device, message, body, payload)
            if isinstance(message, Statistics):
                if (why := self._credentials.must_be_sealed(message)) is not None:
                    raise WireError(why)
                own = self._credentials.opened(device, message, own)
        except BadSignature as error:
            return self.unsigned(device, message, str(error), hi)
        self._heard(device)
        return message, own

    def whole(self, device: str, update: Update, body: memoryview, hi: Hi) -> ev.Reply | None:
        """The answer to an update that was put together from chunks, where these are not what its device had signed."""
        try:
            self._credentials.check_whole(device, update, body)
        except BadSignature as error:
            return self.unsigned(device, update, str(error), hi)
        return None

    def status(self, device: str, payload: bytes, now: float) -> Hello | None:
        """A status; None where it is not to be heeded.

        Raises:
            WireError: it is none.
        """
        if not self.admission.hears(device, now):
            self._dropped["flood"] += 1
            return None
        hello, body = messages.decode(Hello, payload)
        return hello if self._believed(device, hello, body, payload) else None

    def report(self, device: str, payload: bytes, now: float) -> Report | None:
        """A report; None where it is not to be heeded.

        Raises:
            WireError: it is none.
        """
        if not self.admission.hears(device, now):
            self._dropped["flood"] += 1
            return None
        if self.withdrawn(device):
            self._dropped["forgotten"] += 1
            return None
        if self.admission.refuses(device, now) is not None:
            self._dropped["over rate"] += 1
            return None
        report, body = messages.decode(Report, payload)
        return report if self._believed(device, report, body, payload) else None

    def greeting(self, device: str, hello: Hello, now: float) -> ev.Greeted | ev.Reply | None:
        """A greeting to be heeded, or the answer to one turned away; None: the device greets again by itself."""
        refusal = self.admission.refuses(device, now)
        if refusal is not None and refusal.verdict is not Verdict.QUARANTINED:
            self._dropped["over rate"] += 1
            return None
        if self.withdrawn(device):
            return ev.Reply(device, hello.outbox, 0, (_withdrawal(hello.first),))
        self._heard(device)
        return ev.Greeted(device, hello.outbox, hello.first)

    def opened(self, device: str, update: Update, body: memoryview) -> tuple[Update, memoryview]:
        """An update with its seal opened.

        Raises:
            WireError: it is not sealed as it must be, or cannot be opened.
        """
        if (why := self._credentials.must_be_sealed(update)) is not None:
            raise WireError(why)
        if not update.sealed:
            return update, body
        opened = self._credentials.opened(device, update, body)
        return plain(update, opened), opened

    # ----------------------------------------------------------------- consequences

    def judged(self, device: str, verdict: str, now: float) -> None:
        """An update of this device has been decided on."""
        if verdict == Verdict.ACCEPTED:
            self.admission.pleased(device)
        elif verdict in OFFENCES:
            self._offended(device, now)

    def malformed(self, device: str, now: float) -> None:
        """A message on this device's topics did not keep the protocol."""
        if not self._credentials.authenticated(device):  # else anybody could have sent it
            self._offended(device, now)

    def _offended(self, device: str, now: float) -> None:
        if term := self.admission.offended(device, now):
            self._tell("quarantine", device=device, seconds=term)

    def _believed(self, device: str, message: Hello | Report, body: memoryview, payload: bytes) -> bool:
        with suppress(BadSignature):
            self._credentials.own_body(device, message, body, payload)
            return True
        self._dropped["bad signature"] += 1
        return False

    def _forgotten(self, device: str, message: FromDevice, now: float) -> ev.Reply | None:
        self._dropped["forgotten"] += 1
        refusal = self.admission.refuses(device, now)
        if not isinstance(message, Update) or (refusal is not None and not refusal.told):
            return None
        return ev.Reply(device, message.outbox, message.seq, (_withdrawal(message.seq),))

    def _refused(self, device: str, message: FromDevice, refusal: Refusal, hi: Hi) -> ev.Reply | None:
        if not isinstance(message, Update) or not refusal.told:
            self._dropped["over rate"] += 1
            return None
        settled = Settled(seq=message.seq, verdict=refusal.verdict, why=refusal.why, retry_after=refusal.retry_after)
        return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))

    def unsigned(self, device: str, message: FromDevice, why: str, hi: Hi) -> ev.Reply | None:
        """The answer to a message whose signature is not right. It settles nothing: the device may not have sent it."""
        self._dropped["bad signature"] += 1
        if not isinstance(message, Update):
            return None
        settled = Settled(seq=message.seq, verdict=Verdict.BAD_SIGNATURE, why=why, retry_after=_MEND)
        return ev.Reply(device, message.outbox, hi(device, message.outbox), (settled,))


def _withdrawal(seq: int) -> Settled:
    return Settled(seq=seq, verdict=Verdict.FORGOTTEN, why="the operator withdrew this device from the federation")
