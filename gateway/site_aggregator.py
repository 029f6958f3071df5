"""The lower side of a gateway: an aggregator to the site's devices that passes versions on and makes sums."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.engine import Engine
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.ingress.authentication import Credentials
from midge.aggregator.model.model import Frame
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.service import Aggregator
from midge.aggregator.store.put_back import unmark
from midge.aggregator.store.store import StoreFull
from midge.broker.mqtt.connection import Connection
from midge.broker.mqtt.retained import read_retained
from midge.gateway.relay_publisher import RelayPublisher
from midge.gateway.site_values import SiteValuesPublisher
from midge.storage.failpoints import failpoint
from midge.wire.messages import Announcement, FrameInfo

log = logging.getLogger("gateway")


class SiteLine(Protocol):
    """The gateway's line to the federation, as its lower side sees it."""

    def look(self, site: "SiteFederation", now: float) -> None:
        """Send what is due."""

    def due(self, site: "SiteFederation") -> float:
        """When to look again, by a monotonic clock; infinity if only an event can change anything."""

    def want(self, frame: FrameInfo) -> None:
        """Fetch a frame of the version that is passed on."""

    def ripe(self, core: AggregatorCore, devices: int, since: float) -> float:
        """When what this number of devices gave, the first at `since`, is passed on."""


class SiteFederation(FederationRuntime):
    """A federation at a site: its versions come from above, its updates go there.

    Args:
        config: of the site; its strategy relays.
        outlet: takes messages and events.
        now: seconds of a monotonic clock.
        line: to the federation above.
        issuer: signs receipts with the gateway's key.
        credentials: authenticates messages.
    """

    shelf: RelayPublisher

    def __init__(
        self,
        config: AggregatorConfig,
        outlet: Outlet,
        now: float,
        *,
        line: SiteLine,
        issuer: AnnouncementSigner,
        credentials: Credentials,
    ) -> None:
        self._line = line
        super().__init__(config, outlet, now, issuer=issuer, credentials=credentials)
        robust = config.strategy.robust
        self.values = SiteValuesPublisher(self.store, issuer, config.topics, robust=robust, tell=outlet.tell)
        self.more_alarms.append(lambda: self.values.alarms)

    def _publisher(self, engine: Engine, core: AggregatorCore) -> RelayPublisher:
        shelf = RelayPublisher(engine, core, self.config.topics, chunk=self._chunk, stepping_back=False)
        shelf.want = self._line.want
        return shelf

    def follow(
        self, announcement: Announcement, envelope: bytes, frames: Mapping[FrameInfo, bytes], now: float
    ) -> None:
        """Pass a version on to the devices; when this returns, it is durable."""
        core = self.core
        record = core.site.follow(
            rec.FollowRecord(
                lsn=0,
                generation=announcement.generation,
                version=announcement.version,
                step=announcement.step,
                at=announcement.issued or self.issuer.dating.now(),
                digest=announcement.digest,
                envelope=envelope,
            )
        )
        try:
            # Stored before they are announced: a frame that only the broker knows could never be removed there.
            self.store.add_frames((Frame(info.version, info.span, data), info.parts) for info, data in frames.items())
            failpoint("site.stored")
            self.processor.shell.carry_out(core.note(record), now)
            failpoint("site.followed")
        except StoreFull as error:
            self._handle_full_disk(str(error), now)
            return
        self._pass_on(announcement, tuple(frames), now)

    def _pass_on(self, announcement: Announcement, frames: Sequence[FrameInfo], now: float) -> None:
        for post in self.shelf.passed_on(frames, now):
            self._outlet.put(post)
        self._outlet.tell("passed_on", version=announcement.version, step=announcement.step)

    def add_frame(self, info: FrameInfo, data: bytes, now: float) -> None:
        """Store and publish a frame that a device asked for."""
        try:
            self.store.add_frames([(Frame(info.version, info.span, data), info.parts)])
        except StoreFull as error:
            self._handle_full_disk(str(error), now)
            return
        for post in self.shelf.passed_on((info,), now):
            self._outlet.put(post)

    def fit_chunks(self, largest: int | None) -> None:
        super().fit_chunks(largest)
        self.values.largest = largest

    def everything(self) -> Iterator[Post]:
        """All messages that must be retained at the broker."""
        yield from super().everything()
        if self.config.schema.site and (post := self.values.post()) is not None:
            yield post

    @property
    def values_due(self) -> float:
        """When the values of the site's tensors are published next, by a monotonic clock; infinity if none wait."""
        since = self.values.since
        return math.inf if since is None else self._line.ripe(self.core, self.values.given, since)

    def _housekeeping(self, now: float) -> None:
        super()._housekeeping(now)
        if self.core.full is None:
            try:
                due = partial(self._line.ripe, self.core)
                if (post := self.values.look(now, due)) is not None:
                    self._outlet.put(post)
                self._line.look(self, now)
            except StoreFull as error:
                self._handle_full_disk(str(error), now)

    def _detect_rollback(self, now: float) -> None:
        """Nothing: a device that is ahead was at another aggregator of the federation."""

    def _begin_restored(self, now: float) -> None:  # noqa: ARG002 - as a federation's
        if self._restored is not None:  # versions come from above; sums are compared with the outbox
            unmark(self.store)
            self._restored = None


class SiteAggregator(Aggregator):
    """Serves a site's devices.

    Args:
        config: of the site.
        line: to the federation above.
        site: its name.
        certificate: the release key's statement of our key; empty without keys.
    """

    def __init__(self, config: AggregatorConfig, line: SiteLine, site: str, certificate: bytes) -> None:
        super().__init__(config)
        self._line = line
        self._issuer.site, self._issuer.certificate = site, certificate

    @property
    def site(self) -> SiteFederation:
        """The open runtime."""
        federation = self.federation
        assert isinstance(federation, SiteFederation)
        return federation

    def _runtime(self, outlet: Outlet, now: float) -> SiteFederation:
        return SiteFederation(
            self._config, outlet, now, line=self._line, issuer=self._issuer, credentials=self._credentials
        )

    async def _look_around(self, connection: Connection, *, begun: bool) -> None:  # noqa: ARG002 - as an aggregator's
        """Check that no other gateway serves the site; what is announced there comes from above."""
        await self._fitting.fit(connection, self.federation)
        topics = self._config.topics
        found = await read_retained(connection, topics.aggregator, marker=f"{topics.aggregator}/{self._boot:x}")
        await self._contention.contend(connection, found)

    def _patience(self) -> float:
        due = min(self._line.due(self.site), self.site.values_due)
        return max(0.0, min(super()._patience(), due - time.monotonic()))

    def look(self) -> None:
        """Look now whether something is to be sent. In the loop of `serve`."""
        if self._connected and self._contention.serving:
            self.federation.process([], time.monotonic())
