"""Asks a federation's devices for statistics of their rows, over its broker, and collects their answers.

The request is retained, so that devices which connect or wake meanwhile find it. It is removed at the end, whatever
ends the survey: the connection's Last Will removes it if this process is killed. A request that stays on a broker which
died meanwhile expires.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from midge.broker.mqtt.connection import Connection, ConnectionLost, Connector, Delivery, Options, PublishRefused, Will
from midge.wire import envelopes, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.inert import inert
from midge.wire.messages import DeviceState, Envelope, Hello, Surveyed, SurveyRequest
from midge.wire.messages.survey import MOST_SUMMARY
from midge.wire.row_statistics import Columns, RowStatistics, unpacked
from midge.wire.signing import PrivateKey
from midge.wire.topics import Topics

GRACE = 300.0
"""Seconds until the request expires after its end, for devices whose clocks are ahead. It is removed at its end."""
_PATIENCE = 5.0
"""Seconds within which what is retained, and our own request, must have come back."""
_MOST = 100_000
"""Most devices that are kept: names cost nothing on an open broker."""
_PAUSE = 1.0
"""Seconds before the next connection, after one was lost."""
Authenticate = Callable[[str, Surveyed, memoryview, bytes], memoryview]
"""Returns the body of a device's answer without its signature; raises WireError if it is not the device's."""


@dataclass(slots=True)
class SurveyAnswers:
    """What the devices answered: of each the newest."""

    rows: dict[str, tuple[Columns, RowStatistics]] = field(default_factory=dict)
    """The summaries, by device."""
    states: dict[str, str] = field(default_factory=dict)
    """Why others gave none, as in their answers."""
    malformed: dict[str, str] = field(default_factory=dict)
    """What is wrong with answers that cannot be read."""
    online: set[str] = field(default_factory=set)
    """Devices that are online by their statuses."""
    asleep: set[str] = field(default_factory=set)

    @property
    def answered(self) -> set[str]:
        """Devices that answered, in whatever way."""
        return {*self.rows, *self.states, *self.malformed}

    @property
    def silent(self) -> set[str]:
        """Devices that are online and did not answer."""
        return self.online - self.answered

    def put(self, device: str, given: tuple[Columns, RowStatistics] | None = None, state: str = "") -> None:
        """Record a valid answer in place of an earlier one."""
        self.rows.pop(device, None)
        self.states.pop(device, None)
        self.malformed.pop(device, None)
        if given is not None:
            self.rows[device] = given
        else:
            self.states[device] = state


def _bare(_device: str, message: Surveyed, body: memoryview, _payload: bytes) -> memoryview:
    return signing.split(message, body)[0]


class FleetSurvey:
    """One survey of one federation.

    Args:
        topics: the federation's.
        keys: sign the request; empty if the federation signs nothing.
        authenticate: verifies the signatures of devices; by default they are not looked at.
        sealed: whether answers are to be sealed to a key that is made here.
    """

    def __init__(
        self,
        topics: Topics,
        keys: Sequence[PrivateKey] = (),
        *,
        authenticate: Authenticate = _bare,
        sealed: bool = True,
    ) -> None:
        self._topics, self._keys, self._authenticate = topics, keys, authenticate
        self._private = sealing.new_key() if sealed else b""
        self._number = secrets.randbits(62) + 1
        self._marker = f"{topics.aggregator}/survey-{secrets.token_hex(6)}"
        self._request, self._newest = b"", b""
        """What we ask, and what is retained now."""
        self._retained, self._echoed = asyncio.Event(), asyncio.Event()
        self._done = asyncio.Event()
        self._known = False
        """Whether retained statuses said who is online: some brokers send none to filters with wildcards."""
        self.answers = SurveyAnswers()
        self.objection = ""
        """Why no device will take the request; empty if nothing is known against it."""

    async def run(self, connect: Connector, seconds: float) -> SurveyAnswers:
        """Ask, and collect for so long, or until all that are online have answered and none sleeps.

        Raises:
            BrokerError: there is no connection, or this user may not publish the request.
        """
        loop = asyncio.get_running_loop()
        until, expires = loop.time() + seconds, time.time() + seconds + GRACE
        # An empty will removes the request if we are killed.
        options = Options(
            client_id=f"midge-survey-{secrets.token_hex(6)}",
            will=Will(self._topics.survey, b"", retain=True),
            largest=MOST_SUMMARY + frames.MAX_HEADER,
        )
        while True:
            try:
                async with connect(options) as connection:
                    await self._over(connection, until, expires)
                    return self.answers
            except ConnectionLost:
                if loop.time() + _PAUSE >= until:
                    raise
                await asyncio.sleep(_PAUSE)

    async def _over(self, connection: Connection, until: float, expires: float) -> None:
        """Ask over this connection, and collect until the end."""
        topics = self._topics
        self._retained.clear()
        self._echoed.clear()
        filters = (*topics.from_devices[1:], topics.announcement(), topics.survey, self._marker)
        reading = asyncio.create_task(self._read(connection))
        try:
            await connection.subscribe(*filters)
            await connection.publish(self._marker, b"")
            await _either(reading, self._retained, _PATIENCE)
            if self.objection:
                return
            self._request, self._known = self._made(expires), bool(self.answers.online)
            try:
                await connection.publish(topics.survey, self._request, retain=True)
                if not await _either(reading, self._echoed, _PATIENCE):
                    raise PublishRefused(
                        f"The request did not come back: this user may not publish, or not read, {topics.survey}.", 0
                    )
                await _either(reading, self._done, until - asyncio.get_running_loop().time())
            finally:
                if self._newest in (b"", self._request):  # otherwise another survey's is there
                    with suppress(ConnectionLost):  # the Last Will has removed it; a cancellation must go on
                        await connection.publish(topics.survey, b"", retain=True)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _made(self, expires: float) -> bytes:
        survey = SurveyRequest(
            federation=self._topics.federation,
            number=self._number,
            seal_key=sealing.public(self._private) if self._private else b"",
            issued=time.time(),
            expires=expires,
            devices=len(self.answers.online),
        )
        return envelopes.sign_survey(self._keys, survey)

    # --------------------------------------------------------------------- what comes

    async def _read(self, connection: Connection) -> None:
        async for delivery in connection.messages():
            with suppress(WireError):
                self._take(delivery)
            connection.ack(delivery)
            if self._known and self._echoed.is_set() and not self.answers.asleep and not self.answers.silent:
                self._done.set()

    def _take(self, delivery: Delivery) -> None:
        """Take in a message.

        Raises:
            WireError: it is invalid.
        """
        topic, payload, topics = delivery.topic, delivery.payload, self._topics
        if topic == self._marker:
            self._retained.set()
        elif topic == topics.survey:
            self._newest = payload
            if payload and payload == self._request:
                self._echoed.set()
        elif topic == topics.announcement():
            self._look_at(messages.decode(Envelope, payload)[0])
        else:
            origin = topics.origin(topic)
            if origin.sort == "status":
                self._note(origin.device, payload)
            elif not delivery.retain:
                self._answer(origin.device, payload)

    def _look_at(self, envelope: Envelope) -> None:
        """Compare the keys that sign the announcement with ours: devices that pin one take nothing else."""
        signers, ours = envelopes.signers(envelope), {key.public.id for key in self._keys}
        if signers and not ours:
            self.objection = (
                "its announcements are signed, and devices answer only a request that the release key signed"
            )
        elif signers and not signers & ours:
            self.objection = "its announcements are signed by another key than this one"

    def _note(self, device: str, payload: bytes) -> None:
        """Note whether a device is online, or sleeps."""
        self.answers.online.discard(device)
        self.answers.asleep.discard(device)
        if payload and len(self.answers.online) + len(self.answers.asleep) < _MOST:
            state = messages.decode(Hello, payload)[0].state
            if state.live:
                self.answers.online.add(device)
            elif state is DeviceState.SLEEPING:
                self.answers.asleep.add(device)

    def _answer(self, device: str, payload: bytes) -> None:
        """Take an answer; what cannot be read is counted, and changes no valid one."""
        answers = self.answers
        try:
            if not messages.is_kind("surveyed", payload):
                return
            message, body = messages.decode(Surveyed, payload)
            if message.to != self._number or (device not in answers.answered and len(answers.answered) >= _MOST):
                return
            body = self._authenticate(device, message, body, payload)
            if message.state != "rows":
                answers.put(device, state=message.state)
            else:
                answers.put(device, unpacked(device, self._opened(device, message, body)))
        except WireError as error:
            if device not in answers.answered and len(answers.answered) < _MOST:
                answers.malformed[device] = inert(str(error))

    def _opened(self, device: str, message: Surveyed, body: memoryview) -> bytes | memoryview:
        if len(body) != message.size:
            raise WireError(f"its body has {len(body)} bytes, and its header says {message.size}")
        if bool(message.sealed) != bool(self._private) or message.sealed not in ("", sealing.NAME):
            raise WireError("it is not sealed as the request asks")
        if not self._private:
            return body
        return sealing.unseal(body, self._private, sealing.about(self._topics.federation, device, message))


async def _either(reading: "asyncio.Task[None]", event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, for so long; whether it came.

    Raises:
        ConnectionLost: the reading ended.
    """
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({reading, waiting}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            await reading
        return waiting.done()
    finally:
        waiting.cancel()
