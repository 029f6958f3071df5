"""A shard: a gateway whose two sides are at one broker, so that ingest takes more than one processor.

Its lower side serves the devices of its topic slots, its upper side sends their sums as a device named `shard-N`. It
needs no version of the model, only their numbers, so it fetches none.
"""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import HASH, hash_of
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.engine import Engine
from midge.aggregator.model.model import Model
from midge.aggregator.opening import new_core
from midge.aggregator.publish.announcement_signer import load_release_keys
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.shards import own_key
from midge.aggregator.standby.policy import StandbyPolicy
from midge.aggregator.store.store import Store, StoreError
from midge.broker.mqtt.waiting import happened
from midge.gateway.config import GatewayConfig, site_strategy
from midge.gateway.pace import SitePace
from midge.gateway.service import Gateway, beside, device_config
from midge.gateway.shard_aggregator import ShardAggregator, ShardPlace
from midge.gateway.site_aggregator import SiteFederation
from midge.gateway.uplink import UplinkDevice, UplinkIdentity, UplinkRuntime
from midge.iot_client.config import DeviceConfig
from midge.wire.messages import Announcement, FrameInfo, Participation
from midge.wire.topics import Channel

_PATIENCE = 0.2
"""Seconds for which an update waits for others at most: a person sees no step later by this."""
_DRAIN = 10.0
"""Seconds in which a shard that is stopped sends what waits; what is left waits in its store."""


@dataclass(frozen=True, slots=True)
class ShardPace(SitePace):
    """A sum goes once it holds this shard's part of a step, or after a moment; more arrive while one is under way."""

    strategy: Strategy = field(default_factory=site_strategy)
    """The root's."""
    number: int = 1
    """Of all shards."""

    def waits(self, core: AggregatorCore) -> float:  # noqa: ARG002 - as a site's
        return _PATIENCE

    def due(self, core: AggregatorCore) -> float:
        waiting, since = core.buffered, core.site.since
        if not waiting or since is None:
            return float("inf")
        enough = waiting * self.number >= self.strategy.size(self.number * max(core.steering.live, 1))
        return -float("inf") if enough else since + _PATIENCE

    def next_version(self, core: AggregatorCore, passed: float, *, gave: bool) -> float:  # noqa: ARG002
        """Never: a shard follows announcements."""
        return float("inf")


class ShardIdentity(UplinkIdentity):
    """An identity that takes part in no version, and that waits for no turn: it is one of a few."""

    def announcement(self, payload: bytes, channel: Channel, wall: float, now: float) -> Announcement:
        """As a device.

        Raises:
            WireError: it must be ignored.
        """
        found = super().announcement(payload, channel, wall, now)
        alone = {"participation": Participation().model_copy(update={"share": 0.0}), "byte_rate": 0.0, "moments": ()}
        return found.model_copy(update=alone)


class ShardUplink(UplinkDevice):
    """The device that a shard is.

    Args:
        config: of the device.
        shard: the shard.
    """

    def __init__(self, config: DeviceConfig, shard: "Shard") -> None:
        super().__init__(config, shard)
        self._parts.identity = ShardIdentity(
            self.topics, release_key=config.release_key, signing_key=config.signing_key
        )


class Shard(Gateway):
    """One shard of an aggregator. `serve()` runs until it is stopped.

    Args:
        root: the aggregator's config.
        place: which of its shards.
    """

    def __init__(self, root: AggregatorConfig, place: ShardPlace) -> None:
        self.place = replace(place, root=root.directory)
        self._directory = place.shards.directory(root.directory, place.name)
        self._root = root
        self._draining = False
        self._drained = asyncio.Event()
        super().__init__(
            GatewayConfig(
                above=root.connector,
                below=root.connector,
                federation=root.federation,
                root=root.root,
                name=place.name,
                store=self._directory,
                pace=ShardPace(strategy=root.strategy, number=place.number),
                codec="float32",  # exact, so that shards change no result; it never leaves the broker's machine
                on_event=root.on_event,
            )
        )
        self.lower = ShardAggregator(shard_config(root, self.config), self, self.place)
        """The aggregator to its devices."""

    def _uplink(self) -> ShardUplink:
        root = self._root
        keys = None if root.release_key is None else load_release_keys(Path(root.release_key)).keys
        signs = root.release_key is not None or root.device_keys is not None
        return ShardUplink(
            replace(
                device_config(self.config),
                release_key=None if keys is None else [key.public_pem() for _, key in keys],
                signing_key=own_key(self._directory) if signs else None,
            ),
            self,
        )

    def stop(self) -> None:
        """Take no more updates, send what waits, and end `serve`. In its loop."""
        if self._below is None or not self._below.open_now or self._stopped:
            super().stop()
            return
        if not self._draining:
            self._draining = True
            self._below.pause("the aggregator stops")
            self._ending = asyncio.get_running_loop().create_task(self._end())
            self._below.look()

    async def _end(self) -> None:
        await happened(self._drained, _DRAIN)
        super().stop()

    async def _serve(self) -> None:
        self.begin_store()
        async with asyncio.TaskGroup() as tasks:
            self._below = self.lower
            tasks.create_task(self._above.serve())
            tasks.create_task(self._serve_below(self.lower, None))
            if self._stopped:
                self.lower.stop()

    def begin_store(self) -> None:
        """Begin the store with the root's lineage.

        Raises:
            StoreError: it is of another store's shard.
        """
        config = self.lower.config
        with Store(self._directory) as store:
            if store.schema is not None and store.lineage != self.place.lineage:
                raise StoreError(
                    f"{self._directory} is the store of a shard of another federation or store than "
                    f"{self._root.directory}: put it where it was, or remove the folder."
                )
            if store.schema is None:
                store.create(config.schema, self.place.lineage)
                Engine(Model.of(config.initial, config.schema), store).checkpoint(new_core(store, config))

    # --------------------------------------------------------------------- the two sides

    def heard(self, announcement: Announcement, envelope: bytes) -> None:
        """Nothing: the lower side reads announcements, in the order of the updates."""

    def wanted(self, announcement: Announcement) -> list[FrameInfo]:  # noqa: ARG002 - as a gateway's
        """None."""
        return []

    def want(self, frame: FrameInfo) -> None:
        """Nothing: the root answers the request itself."""

    def due(self, site: SiteFederation) -> float:
        return float("inf") if not self.lower.follows else super().due(site)

    def look(self, site: SiteFederation, now: float) -> None:
        if self.lower.follows:
            super().look(site, now)

    def _sum_due(self, site: SiteFederation) -> float:
        ending = self._draining and site.core.buffered
        return -float("inf") if ending else super()._sum_due(site)

    def _say_caught_up(self, site: SiteFederation, above: UplinkRuntime) -> None:
        super()._say_caught_up(site, above)
        if self._caught_up and self._draining:
            self._drained.set()

    def _say_online(self, above: UplinkRuntime, online: int, now: float) -> None:
        """Nothing: the root counts the devices itself."""

    def _who(self, site: SiteFederation, record: rec.SumRecord) -> bytes:
        known = (site.store.record(lsn) for lsn, _ in record.updates)
        names = {hash_of(each.device) for each in known if isinstance(each, rec.UpdateRecord)}
        return b"".join(sorted(names))[: HASH * 4096]


def shard_config(root: AggregatorConfig, config: GatewayConfig) -> AggregatorConfig:
    """The lower side of a shard, as an aggregator: the root's, without what the root does alone."""
    strategy = replace(
        site_strategy(weigh_examples=root.strategy.weigh_examples, robust=root.strategy.robust),
        name="shard",
        weigh_devices=root.strategy.weigh_devices and not root.strategy.single,
        clip=root.strategy.clip,
        norm_limit=root.strategy.norm_limit,
        max_staleness=root.strategy.max_staleness,
        max_age=root.strategy.max_age,
        plan=root.strategy.plan,
    )
    return replace(
        root,
        store=config.directory,
        strategy=strategy,
        moments=None,
        features=(),
        evaluate=None,
        on_event=beside(config.on_event, "below"),
        replace=False,
        raise_epoch=False,
        registry=RegistryPolicy(),
        standby=StandbyPolicy(),
        shards=0,
    )
