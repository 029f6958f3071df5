"""Devices that break a rule each: Midge's own, whose messages are changed on their way, or whose code is."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from midge.broker.mqtt.connection import Connection, Connector, Delivery, Limits, Options, QoS
from midge.iot_client.connection.model_fetcher import Fetcher
from midge.iot_client.session.sending import Sending
from midge.wire import frames, lineage, messages
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Chunk,
    DeviceState,
    Fetch,
    Hello,
    Participation,
    Receipt,
    Statistics,
    Update,
    Verdict,
)

Post = tuple[str, bytes, bool]
"""Topic, payload, retained."""


@dataclass
class Fault:
    """What is done to each message; a subclass changes some."""

    posted: list[Post] = field(default_factory=list)
    """Besides, by a fault itself."""

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        """What leaves of a message of the device."""
        return [(topic, payload, retain)]

    def come(self, delivery: Delivery) -> Delivery | None:
        """What arrives of a message to the device; None is nothing."""
        return delivery


class WrongConnection:
    """A connection with a fault."""

    def __init__(self, connection: Connection, fault: Fault) -> None:
        self._connection, self._fault = connection, fault
        self._waiting: list[tuple[Delivery, Delivery | None]] = []
        """What was looked at before it was taken, and what the fault made of it: a message meets the fault once."""

    @property
    def limits(self) -> Limits:
        return self._connection.limits

    async def publish(self, topic: str, payload: Any, *, qos: QoS = 1, retain: bool = False) -> None:
        for each in self._fault.out(topic, bytes(payload), retain):
            await self._connection.publish(each[0], each[1], qos=qos, retain=each[2])

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        await self._connection.subscribe(*filters, qos=qos)

    async def unsubscribe(self, *filters: str) -> None:
        await self._connection.unsubscribe(*filters)

    async def messages(self) -> AsyncIterator[Delivery]:
        async for delivery in self._connection.messages():
            changed = self._met(delivery)
            self._waiting = [pair for pair in self._waiting if pair[0] is not delivery]
            for topic, payload, retain in self._fault.posted:
                await self._connection.publish(topic, payload, retain=retain)
            self._fault.posted.clear()
            if changed is None:
                self._connection.ack(delivery)
            else:
                yield changed

    def waiting(self) -> Sequence[Delivery]:
        return [each for each in map(self._met, self._connection.waiting()) if each is not None]

    def _met(self, delivery: Delivery) -> Delivery | None:
        """What the fault makes of a message."""
        for looked_at, changed in self._waiting:
            if looked_at is delivery:
                return changed
        self._waiting.append((delivery, self._fault.come(delivery)))
        return self._waiting[-1][1]

    def ack(self, delivery: Delivery) -> None:
        self._connection.ack(delivery)

    def abort(self, why: str) -> None:
        self._connection.abort(why)


def faulty(connector: Connector, fault: Fault) -> Connector:
    """A connector whose connections have the fault."""

    @asynccontextmanager
    async def connect(options: Options) -> AsyncGenerator[Connection, None]:
        async with connector(options) as connection:
            yield WrongConnection(connection, fault)

    return connect


# --------------------------------------------------------------------- what it sends


def _read(payload: bytes) -> Any:
    """A message of a device, and its body."""
    try:
        return messages.decode_update(payload)
    except ValueError:
        return messages.decode(Hello, payload)


@dataclass
class Changed(Fault):
    """What leaves is as a function makes it of a message and its body; None drops it."""

    change: Callable[[Any, bytes], tuple[Any, bytes] | None] = lambda message, body: (message, body)

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        message, body = _read(payload)
        changed = self.change(message, bytes(body))
        return [] if changed is None else [(topic, frames.encode(*changed), retain)]


def dropped(kind: type, suits: Callable[[Any], bool] = lambda _message: True) -> Fault:
    """It never says this."""
    return Changed(change=lambda m, b: None if isinstance(m, kind) and suits(m) else (m, b))


def changed(kind: type[Update | Fetch | Statistics | Hello], **fields: Any) -> Fault:
    """It says this with other fields."""
    return Changed(change=lambda m, b: (m.model_copy(update=fields), b) if isinstance(m, kind) else (m, b))


class Garbage(Fault):
    """It sends JSON beside each update."""

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        return [(topic, payload, retain), (topic, b'{"state": "ready"}', False)][: 2 if "/update/" in topic else 1]


class PaddedSlot(Fault):
    """Its slot has a zero in front."""

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        return [(topic.replace("/update/", "/update/0"), payload, retain)]


class Unretained(Fault):
    """Nothing of it is retained."""

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        return [(topic, payload, False)]


class Retained(Fault):
    """All of it is."""

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        return [(topic, payload, True)]


def no_number() -> Fault:
    return Changed(
        change=lambda m, b: (
            (m.model_copy(update={"number": 0}), b)
            if isinstance(m, Hello) and m.state is DeviceState.JOINING
            else (m, b)
        )
    )


def gaps() -> Fault:
    return Changed(
        change=lambda m, b: (m.model_copy(update={"seq": 2 * m.seq}), b) if isinstance(m, Update) else (m, b)
    )


def flipped() -> Fault:
    return Changed(change=lambda m, b: (m, b[:-1] + bytes([b[-1] ^ 1])) if isinstance(m, Update) and b else (m, b))


def said_once() -> Fault:
    """What was not answered never comes again."""
    said: set[int] = set()

    def change(message: Any, body: bytes) -> tuple[Any, bytes] | None:
        if isinstance(message, Update):
            if message.seq in said:
                return None
            said.add(message.seq)
        return message, body

    return Changed(change=change)


def encoded_again() -> Fault:
    """What comes again has other bytes, as of a training that was made twice."""
    said: set[int] = set()

    def change(message: Any, body: bytes) -> tuple[Any, bytes]:
        if isinstance(message, Update) and body:
            if message.seq in said:
                body = bytes(len(body))
                message = message.model_copy(update={"sha256": bytes(16)})
            said.add(message.seq)
        return message, body

    return Changed(change=change)


def other_chunks() -> Fault:
    return Changed(
        change=lambda m, b: (m.model_copy(update={"part": m.part + 1}), b) if isinstance(m, Chunk) else (m, b)
    )


# ---------------------------------------------------------------------- what it hears


@dataclass
class Remembers(Fault):
    """A fault that knows the last update, and what was announced."""

    last: Post | None = None
    announced: list[messages.Announcement] = field(default_factory=list)

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        if "/update/" in topic and isinstance(_read(payload)[0], Update):
            self.last = (topic, payload, retain)
        return super().out(topic, payload, retain)

    def come(self, delivery: Delivery) -> Delivery | None:
        if delivery.topic.endswith("/model/train") and delivery.payload:
            return self.told(delivery, messages.decode_announcement(delivery.payload))
        if "/receipt/" in delivery.topic and delivery.payload:
            try:
                receipt, _ = messages.decode(Receipt, delivery.payload)
            except ValueError:
                return delivery
            return self.answered(delivery, receipt)
        if delivery.topic.endswith("/aggregator") and delivery.payload:
            return self.seen(delivery, messages.decode(AggregatorStatus, delivery.payload)[0])
        return delivery

    def told(self, delivery: Delivery, announcement: messages.Announcement) -> Delivery | None:
        self.announced.append(announcement)
        return delivery

    def answered(self, delivery: Delivery, receipt: Receipt) -> Delivery | None:
        return delivery

    def seen(self, delivery: Delivery, status: AggregatorStatus) -> Delivery | None:
        return delivery


def _announcing(delivery: Delivery, announcement: messages.Announcement) -> Delivery:
    return replace(delivery, payload=messages.encode_announcement(announcement))


class SendsOnOldReceipts(Remembers):
    hi = 0

    def answered(self, delivery: Delivery, receipt: Receipt) -> Delivery | None:
        if receipt.hi < self.hi and self.last is not None:
            self.posted.append(self.last)
        self.hi = receipt.hi
        return delivery


class TrainsTwice(Remembers):
    """An announcement that comes again is a new version to it."""

    def told(self, delivery: Delivery, announcement: messages.Announcement) -> Delivery | None:
        again = self.announced and self.announced[-1].version == announcement.version
        if again and self.last is not None:
            update, body = messages.decode_update(self.last[1])
            assert isinstance(update, Update)
            more = update.model_copy(update={"seq": update.seq + 1, "first": update.seq + 1})
            self.posted.append((self.last[0], frames.encode(more, bytes(body)), False))
        return super().told(delivery, announcement)


class LabelsFirstHeard(Remembers):
    """Its update names the announcement that came first after the last update, whatever it fetched."""

    fresh = True
    first = 0

    def told(self, delivery: Delivery, announcement: messages.Announcement) -> Delivery | None:
        if self.fresh:
            self.fresh, self.first = False, announcement.version
        return delivery

    def out(self, topic: str, payload: bytes, retain: bool) -> list[Post]:
        message, body = _read(payload)
        if isinstance(message, Update):
            self.fresh = True
            return [(topic, frames.encode(message.model_copy(update={"base": self.first}), bytes(body)), retain)]
        return [(topic, payload, retain)]


class NeverRereads(Remembers):
    """A version that was announced once, and a chunk that came once, are never looked at again."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, bytes] = {}

    def told(self, delivery: Delivery, announcement: messages.Announcement) -> Delivery | None:
        if self.announced and self.announced[-1].version == announcement.version:
            return None
        return super().told(delivery, announcement)

    def come(self, delivery: Delivery) -> Delivery | None:
        if "/model/train/" in delivery.topic:
            return replace(delivery, payload=self.parts.setdefault(delivery.topic, delivery.payload))
        return super().come(delivery)


class NoMergedSteps(Fault):
    def come(self, delivery: Delivery) -> Delivery | None:
        merged = "/model/train/" in delivery.topic and int(delivery.topic.rpartition("/")[2].partition("-")[0]) > 1
        return None if merged else delivery


class NumbersOnly(Fault):
    """Names as text are nothing to it."""

    def come(self, delivery: Delivery) -> Delivery | None:
        return None if delivery.payload[2:20].find(b"body") > 0 or b"kind" in delivery.payload[:12] else delivery


class Impatient(Remembers):
    def answered(self, delivery: Delivery, receipt: Receipt) -> Delivery | None:
        if any(settled.verdict is Verdict.BUSY for settled in receipt.settled) and self.last is not None:
            self.posted.append(self.last)
        return delivery


class OwnChunkSize(Remembers):
    def told(self, delivery: Delivery, announcement: messages.Announcement) -> Delivery | None:
        return _announcing(delivery, announcement.model_copy(update={"chunk": 2**18}))


class AlwaysTakesPart(Remembers):
    def told(self, delivery: Delivery, announcement: messages.Announcement) -> Delivery | None:
        return _announcing(delivery, announcement.model_copy(update={"participation": Participation()}))


class NeverPauses(Remembers):
    def seen(self, delivery: Delivery, status: AggregatorStatus) -> Delivery | None:
        return replace(delivery, payload=frames.encode(status.model_copy(update={"state": AggregatorState.READY})))


class DeafAfterEmpty(Fault):
    """An empty payload ends its reading, as an exception does."""

    deaf = False

    def come(self, delivery: Delivery) -> Delivery | None:
        self.deaf = self.deaf or not delivery.payload
        return None if self.deaf else delivery


class SameBoot(Remembers):
    boot = 0

    def seen(self, delivery: Delivery, status: AggregatorStatus) -> Delivery | None:
        self.boot = self.boot or status.boot
        same = status.model_copy(update={"state": AggregatorState.READY, "boot": self.boot})
        return replace(delivery, payload=frames.encode(same))


class NoTokens(Remembers):
    def answered(self, delivery: Delivery, receipt: Receipt) -> Delivery | None:
        return replace(delivery, payload=frames.encode(receipt.model_copy(update={"token": 0})))


class KeepsIdentity(Remembers):
    def answered(self, delivery: Delivery, receipt: Receipt) -> Delivery | None:
        return None if not receipt.settled and receipt.hi > 30 else delivery


# --------------------------------------------------------------------- its own code


def trusts_checksums(patch: pytest.MonkeyPatch) -> Fault:
    """It looks at the checksum of a frame and at no digest of a model."""
    apply = Fetcher._apply

    def believing(self: Fetcher, announcement: Any, way: Any, state: Any) -> Any:
        try:
            return apply(self, announcement, way, state)
        except ValueError as error:
            if "digest" not in str(error):
                raise
        for frame in way:
            step, _ = lineage.decode_step(self._assemblies[frame.version, frame.span].finish(), state.schema.size)
            state = state.advance(step)
        return state

    patch.setattr(Fetcher, "_apply", believing)
    return Fault()


def trusts_everything(patch: pytest.MonkeyPatch) -> Fault:
    """It looks at nothing, and what does not decode it takes for a step of zeros."""

    def believing(self: Fetcher, announcement: Any, way: Any, state: Any) -> Any:
        for frame in way:
            try:
                data = self._assemblies[frame.version, frame.span].whole()
                if frame.span == 0:
                    state = lineage.decode_snapshot(data)
                else:
                    state = state.advance(lineage.decode_step(data, state.schema.size)[0])
            except ValueError:
                pass
        return state

    patch.setattr(Fetcher, "_apply", believing)
    return Fault()


def keeps_all(patch: pytest.MonkeyPatch) -> Fault:
    """What is settled is never forgotten."""
    patch.setattr(Sending, "forget", lambda self, through: [])
    return Fault()


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Fault]]] = {
    "JSON beside its updates": ("frames", lambda _: Garbage()),
    "a slot with a zero in front": ("topics", lambda _: PaddedSlot()),
    "joins without a number": ("joining", lambda _: no_number()),
    "never greets": ("greeting", lambda _: dropped(Hello, lambda hello: hello.state is DeviceState.READY)),
    "retains nothing": ("retained", lambda _: Unretained()),
    "retains everything": ("retained", lambda _: Retained()),
    "answers no question": ("question", lambda _: dropped(Hello, lambda hello: hello.to > 0)),
    "sends no statistics": ("statistics", lambda _: dropped(Statistics)),
    "other statistics": ("statistics", lambda _: changed(Statistics, names=(("output", 3),))),
    "asks for no chunk": ("fetch", lambda _: dropped(Fetch)),
    "asks for all chunks": ("fetch", lambda _: changed(Fetch, parts=(0, 1, 2))),
    "takes next to nothing": ("largest", lambda _: changed(Hello, largest=100)),
    "leaves gaps": ("seq", lambda _: gaps()),
    "the digest of another model": ("base", lambda _: changed(Update, base_digest=bytes(8))),
    "a base of its own": ("base", lambda _: changed(Update, base=77)),
    "a bit flipped": ("delta", lambda _: flipped()),
    "a codec of its own": ("delta", lambda _: changed(Update, codec="mine")),
    "forgets nothing": ("settling", keeps_all),
    "says everything once": ("resending", lambda _: said_once()),
    "trains again to send again": ("resending", lambda _: encoded_again()),
    "sends on old receipts": ("receipts twice", lambda _: SendsOnOldReceipts()),
    "trains twice": ("once", lambda _: TrainsTwice()),
    "labels what it heard first": ("newer version", lambda _: LabelsFirstHeard()),
    "trusts everything": ("corrupt chunk", trusts_everything),
    "trusts checksums": ("digest", trusts_checksums),
    "never looks again": ("recovery", lambda _: NeverRereads()),
    "knows no merged steps": ("merged step", lambda _: NoMergedSteps()),
    "knows numbers only": ("unknown", lambda _: NumbersOnly()),
    "is impatient": ("busy", lambda _: Impatient()),
    "cuts as it likes": ("chunk size", lambda _: OwnChunkSize()),
    "sends other chunks": ("grants", lambda _: other_chunks()),
    "sends no chunks": ("grants", lambda _: dropped(Chunk)),
    "always takes part": ("share", lambda _: AlwaysTakesPart()),
    "never pauses": ("paused", lambda _: NeverPauses()),
    "dies of an empty payload": ("cleared", lambda _: DeafAfterEmpty()),
    "knows one boot": ("restart", lambda _: SameBoot()),
    "knows no tokens": ("token", lambda _: NoTokens()),
    "keeps its identity": ("old copy", lambda _: KeepsIdentity()),
}
"""By what it does: the rule that it breaks, and how."""
