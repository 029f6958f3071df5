"""The upper side of a gateway: a device of the federation above, whose training is done by the site's devices."""

import logging
import struct
from collections.abc import Callable
from typing import Protocol

from midge.broker.mqtt.connection import BrokerError
from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.identity import Identity
from midge.iot_client.connection.model_fetcher import Fetcher, FetchError
from midge.iot_client.device import Device
from midge.iot_client.parts import DeviceParts
from midge.iot_client.runtime import DeviceRuntime
from midge.iot_client.session import events as ev
from midge.iot_client.training.update_encoder import EncodedUpdate
from midge.storage.failpoints import failpoint
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import Announcement, FrameInfo, Participation, Plan, Report, Update
from midge.wire.topics import Channel, Topics

log = logging.getLogger("gateway")

_SUM = "sum"
"""Key in the outbox under which it records the number of the newest sum, in the transaction that stores its update."""
_KEPT = 8
"""Announcements that are kept as they came: of the version that is fetched, and of later ones."""

Heard = Callable[[Announcement, bytes], None]
"""Called with each trusted announcement, and with its bytes."""


class Site(Protocol):
    """The gateway, as its upper side sees it."""

    def heard(self, announcement: Announcement, envelope: bytes) -> None:
        """An announcement came."""

    def wanted(self, announcement: Announcement) -> list[FrameInfo]:
        """Frames of this version that the site's devices may need and that are not here."""

    def fetched(self, announcement: Announcement, envelope: bytes, state: State) -> None:
        """A version is here: pass it on."""

    def settled(self) -> None:
        """A sum was settled: the line is free."""


class UplinkIdentity(Identity):
    """An identity that keeps announcements as they came."""

    on_heard: Heard = staticmethod(lambda _announcement, _envelope: None)

    def announcement(self, payload: bytes, channel: Channel, wall: float, now: float) -> Announcement:
        """As a device; the gateway takes part in each version, and its devices decide for themselves.

        Raises:
            WireError: it must be ignored.
        """
        announcement = super().announcement(payload, channel, wall, now)
        if channel == "train":
            self.on_heard(announcement, payload)
        return announcement.model_copy(update={"participation": Participation()})


class UplinkFetcher(Fetcher):
    """Fetches versions, and beside them single frames for the site's devices."""

    def __init__(self, topics: Topics, device: str, finished: Callable[[FrameInfo, memoryview], None]) -> None:
        super().__init__(topics, device, finished=finished)
        self.single = Fetcher(topics, device)

    def expects(self, topic: str) -> bool:
        return super().expects(topic) or self.single.expects(topic)

    def deliver(self, topic: str, payload: bytes) -> None:
        """Process a chunk."""
        if self.single.expects(topic):
            self.single.deliver(topic, payload)
        if super().expects(topic):
            super().deliver(topic, payload)


class UplinkRuntime(DeviceRuntime):
    """A device whose updates are sums.

    Args:
        parts: of the device; the outbox is open.
        site: the gateway.
    """

    def __init__(self, parts: DeviceParts, site: Site) -> None:
        self._site = site
        self.frames: dict[FrameInfo, bytes] = {}
        """Frames that were fetched and not passed on yet."""
        self._singles = UplinkFetcher(parts.topics, parts.config.name, self._keep)
        super().__init__(parts, fetcher=self._singles)
        self._envelopes: dict[tuple[int, int], bytes] = {}
        self._asked: set[FrameInfo] = set()
        assert isinstance(parts.identity, UplinkIdentity)
        parts.identity.on_heard = self._heard

    @property
    def sums(self) -> int | None:
        """The number of the newest sum that is in the outbox, or was; None if this outbox never had one."""
        known = self.parts.outbox.remembered(_SUM)
        return None if known is None else struct.unpack("<q", known)[0]

    def begin_sums(self, number: int) -> None:
        """Record where the numbers of sums begin."""
        self.parts.outbox.pending[_SUM] = struct.pack("<q", number)
        self.parts.outbox.write_pending()

    def give(self, made: EncodedUpdate, number: int, now: float) -> bool:
        """Store a sum and send it; False if there is no room. When this returns, it is durable."""
        key = next(self._keys)
        self._made[key] = made
        self.parts.outbox.pending[_SUM] = struct.pack("<q", number)
        failpoint("site.summed")
        self.shell.handle(ev.Summed(made.update, key), now)
        return self.sums == number

    def store(self, update: Update, key: int) -> bool:
        stored = super().store(update, key)
        if not stored:  # or the number would be written without the update
            self.parts.outbox.pending.pop(_SUM, None)
        return stored

    def forget(self, through: int) -> None:
        super().forget(through)
        self._site.settled()

    def report(self, report: Report) -> None:
        """Publish the mean of the devices' results on their own data."""
        self._training_task.publish(report, self.session.announcement)

    def collected(self, now: float) -> None:
        """The site has given what it could on this version: take the next one."""
        self.shell.handle(ev.NothingToSend(""), now)

    def train(self, announcement: Announcement, plan: Plan) -> None:  # noqa: ARG002 - the site's devices train
        assert self.state is not None
        envelope = self._envelopes.get((announcement.generation, announcement.version), b"")
        self._site.fetched(announcement, envelope, self.state)

    def _heard(self, announcement: Announcement, envelope: bytes) -> None:
        self._envelopes[announcement.generation, announcement.version] = envelope
        while len(self._envelopes) > _KEPT:
            del self._envelopes[next(iter(self._envelopes))]
        self._site.heard(announcement, envelope)

    def _keep(self, frame: FrameInfo, data: bytes | memoryview) -> None:
        self.frames[frame] = bytes(data)

    async def _fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        self.frames.clear()
        for frame in self._site.wanted(announcement):
            if frame not in frames:
                await self._fetch_single(announcement, frame)
        await super()._fetch(announcement, frames)

    async def _fetch_single(self, announcement: Announcement, frame: FrameInfo) -> bytes | None:
        connection = self.publisher.connection
        if connection is None:
            return None
        try:
            data = await self._singles.single.frame(connection, announcement, frame)
        except (BrokerError, FetchError, WireError) as error:
            log.info("%s: a frame for the site's devices: %s", self.parts.config.name, error)
            return None
        self._keep(frame, data)
        return data

    def ask(self, announcement: Announcement, frame: FrameInfo, done: Callable[[FrameInfo, bytes], None]) -> None:
        """Fetch a frame that a device of the site asked for; one at a time."""
        if self._asked or (self._fetching is not None and not self._fetching.done()):
            return  # the device asks again

        async def run() -> None:
            try:
                data = await self._fetch_single(announcement, frame)
                if data is not None:
                    done(frame, data)
            finally:
                self._asked.clear()

        self._asked.add(frame)
        self.start(run())


class UplinkDevice(Device):
    """The device that a gateway is.

    Args:
        config: of the device; its trainer is never called.
        site: the gateway.
    """

    def __init__(self, config: DeviceConfig, site: Site) -> None:
        super().__init__(config)
        self._site = site
        self._parts.identity = UplinkIdentity(
            self.topics, release_key=config.release_key, signing_key=config.signing_key
        )

    @property
    def runtime(self) -> UplinkRuntime | None:
        """What runs while it serves."""
        runtime = self._runtime
        assert runtime is None or isinstance(runtime, UplinkRuntime)
        return runtime

    def _begin(self, parts: DeviceParts) -> DeviceRuntime:
        return UplinkRuntime(parts, self._site)
