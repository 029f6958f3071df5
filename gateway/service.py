"""A gateway as a process: its two sides in one loop, and what goes from one to the other.

Sums are made when the line is free, and the order of durable effects makes each count once: the sum's record is in the
store's journal, then its update and its number are in the outbox, in one transaction. A kill between the two leaves a
number in the journal that the outbox does not have; the sum is made again from the same updates, to the same bits.
"""

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import replace
from statistics import median_low
from typing import Any

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.update_admission import MOST
from midge.aggregator.engine import Engine
from midge.aggregator.model.model import Model
from midge.aggregator.opening import new_core
from midge.aggregator.store.store import Store, StoreError
from midge.gateway.config import GatewayConfig, Listener
from midge.gateway.site_aggregator import SiteAggregator, SiteFederation
from midge.gateway.uplink import UplinkDevice, UplinkRuntime
from midge.iot_client.config import DeviceConfig
from midge.iot_client.runtime import first_error
from midge.iot_client.session.states import Link, Work
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.iot_client.training.update_encoder import EncodedUpdate, chosen, encode, update_of
from midge.storage.files import make_folder
from midge.wire import codecs, messages
from midge.wire.lineage import State, route
from midge.wire.messages import Announcement, FrameInfo
from midge.wire.schema import Schema

log = logging.getLogger("gateway")

_FULL = 30.0
"""Seconds without a sum after the outbox had no room for one."""
_GREET = 10.0
"""Least seconds between two statuses that say how many devices are online."""


class Gateway:
    """One site's gateway. `run()` serves until it is interrupted."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self._above = self._uplink()
        self._below: SiteAggregator | None = None
        self._first: asyncio.Future[tuple[Announcement, bytes, State]] | None = None
        """The first version ever, from which the store is made."""
        self._stopped = False
        self._resumed = False
        """Whether the newest sum of the journal is known to be in the outbox."""
        self._passed_at = -math.inf
        """When a version was passed on last."""
        self._gave = True
        """Whether a sum was sent since."""
        self._full_until = -math.inf
        self._caught_up = False
        self._greeted_at, self._online = -math.inf, 0
        self._reported = 0
        """Results of devices that the mean which was passed on last is of."""

    def _uplink(self) -> UplinkDevice:
        """The device that it is above."""
        return UplinkDevice(device_config(self.config), self)

    def run(self) -> None:
        """Serve until interrupted."""
        asyncio.run(self.serve())

    def stop(self) -> None:
        """End `serve` cleanly. In its loop."""
        self._stopped = True
        self._above.stop()
        if self._below is not None:
            self._below.stop()
        if self._first is not None and not self._first.done():
            self._first.cancel()

    @property
    def site(self) -> SiteFederation | None:
        """The runtime of the lower side; None until the federation's model is known."""
        return None if self._below is None or not self._below.open_now else self._below.site

    @property
    def holding(self) -> int:
        """The number of sums without a receipt."""
        return self._above.holding

    async def serve(self) -> None:
        """Serve until `stop()`. Both sides reconnect by themselves.

        Raises:
            StoreError: the store cannot be used.
            OutboxError: the outbox cannot be used.
            BrokerError: the first connection ever to one of the brokers failed.
        """
        make_folder(self.config.directory)
        self._first = asyncio.get_running_loop().create_future()
        try:
            await self._serve()
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def _serve(self) -> None:
        assert self._first is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._above.serve())
            found = _stored(self.config)
            first = None
            if found is None:
                log.info("The site %s waits for the federation's model.", self.config.name)
                with suppress(asyncio.CancelledError):
                    first = await self._first
                if first is None or self._stopped:
                    return
                found = self._create(first[0], first[2])
            schema, announcement = found
            self._below = SiteAggregator(
                _aggregator(self.config, schema, announcement), self, self.config.name, self.config.certificate
            )
            tasks.create_task(self._serve_below(self._below, first))
            if self._stopped:
                self._below.stop()

    async def _serve_below(self, below: SiteAggregator, first: tuple[Announcement, bytes, State] | None) -> None:
        serving = asyncio.ensure_future(below.serve())
        await asyncio.sleep(0)  # it has opened its store
        if first is not None and below.open_now:
            self.fetched(*first)
        try:
            await serving
        finally:
            self._above.stop()

    def _create(self, announcement: Announcement, state: State) -> tuple[Schema, Announcement]:
        """Begin the store, with the federation's lineage and schema."""
        config = _aggregator(self.config, state.schema, announcement)
        with Store(self.config.directory) as store:
            store.create(state.schema, announcement.lineage)
            Engine(Model.of(config.initial, state.schema), store).checkpoint(new_core(store, config))
        return state.schema, announcement

    # -------------------------------------------------------------------- from above

    def heard(self, announcement: Announcement, envelope: bytes) -> None:
        """Pass on another announcement of the same version: it has another date, or asks more devices."""
        site = self.site
        if site is None or site.shelf.announced is None or site.core.full is not None:
            return
        known = site.shelf.announced
        same = (known.lineage, known.generation, known.version, known.digest) == (
            *(announcement.lineage, announcement.generation, announcement.version),
            announcement.digest,
        )
        if same and envelope != site.core.site.envelope:
            site.follow(announcement, envelope, {}, time.monotonic())

    def wanted(self, announcement: Announcement) -> list[FrameInfo]:
        """Frames by which a device that knows no version comes to this one: it may come when the line is down."""
        way = route(announcement.frames, None, announcement.version) or ()
        site = self.site
        return list(way) if site is None else site.shelf.lacking(way)

    def fetched(self, announcement: Announcement, envelope: bytes, state: State) -> None:
        """Pass a version on to the site's devices."""
        site, above = self.site, self._above.runtime
        assert above is not None
        now = time.monotonic()
        if site is None:
            if self._first is not None and not self._first.done():
                self._first.set_result((announcement, envelope, state))
            return
        if announcement.lineage != site.core.lineage:
            log.error(
                "The federation has another store than the one that this site took part in: give the gateway another "
                "store than %s.",
                self.config.directory,
            )
            self._tell("foreign", lineage=announcement.lineage.hex())
            return
        frames, above.frames = above.frames, {}
        known = site.shelf.announced
        if known is None or known.digest != announcement.digest or known.version != announcement.version or frames:
            site.follow(announcement, envelope, frames, now)
        self._passed_at, self._gave = now, False

    def settled(self) -> None:
        """The line is free: send what waits."""
        if self._below is not None:
            asyncio.get_running_loop().call_soon(self._below.look)

    # -------------------------------------------------------------------- from below

    def want(self, frame: FrameInfo) -> None:
        """Fetch a frame that a device asked for, and publish it."""
        site, above = self.site, self._above.runtime
        if site is None or above is None or site.shelf.announced is None:
            return
        above.ask(site.shelf.announced, frame, lambda info, data: site.add_frame(info, data, time.monotonic()))

    def due(self, site: SiteFederation) -> float:
        """When the oldest waiting update has waited long enough, if the line is free; otherwise infinity."""
        above = self._above.runtime
        if above is None or above.session.link is not Link.UP or above.session.holding:
            return math.inf
        due = self._sum_due(site)
        if above.session.work is Work.TRAINING:
            due = min(due, self.config.pace.next_version(site.core, self._passed_at, gave=self._gave))
        return max(due, self._full_until)

    def ripe(self, core: AggregatorCore, devices: int, since: float) -> float:
        """When values of the site's tensors are published, with or without a line."""
        return self.config.pace.ripe(core, devices, since)

    def look(self, site: SiteFederation, now: float) -> None:
        """Send the sums that are due, if the line is free, and take the next version."""
        above = self._above.runtime
        if above is None:
            return
        self._say_online(above, site.core.steering.live, now)
        if now < self._full_until or not (self._resumed or self._resume(site, above, now)):
            return
        free = above.session.link is Link.UP and not above.session.holding
        pace = self.config.pace
        if free and now >= self._sum_due(site):
            while self._send(site, above, now):
                self._gave = True
        self._say_caught_up(site, above)
        collecting = above.session.work is Work.TRAINING and above.session.link is Link.UP
        if collecting and now >= pace.next_version(site.core, self._passed_at, gave=self._gave):
            self._report(site, above)
            above.collected(now)

    def _report(self, site: SiteFederation, above: UplinkRuntime) -> None:
        """Pass on the mean of the devices' results on their own data, if there is a new one."""
        reports = site.reports
        if reports.taken != self._reported and (merged := reports.merged(site.core.lineage)) is not None:
            self._reported = reports.taken
            above.report(merged)

    def _sum_due(self, site: SiteFederation) -> float:
        """When a sum is due; infinity if nothing waits."""
        return self.config.pace.due(site.core)

    def _say_caught_up(self, site: SiteFederation, above: UplinkRuntime) -> None:
        """Say once that everything that the devices gave is with the federation."""
        caught = not site.core.site.waiting and above.session.link is Link.UP and not above.session.holding
        if caught and not self._caught_up:
            self._tell("caught_up", number=above.sums)
        self._caught_up = caught

    def _resume(self, site: SiteFederation, above: UplinkRuntime, now: float) -> bool:
        """Compare the journal with the outbox after a start; whether sums can go on."""
        newest, known = site.core.site.newest, above.sums
        number = 0 if newest is None else newest.number
        if known is None or known > number:
            lost = site.core.site.given_up() if known is not None or newest is not None else None
            if lost is not None:
                what = "outbox" if known is None else "store"
                log.warning("The %s of the gateway is not the one that it had: what waits may have been sent.", what)
                self._tell("given_up", updates=len(lost.dropped), why=f"another {what}")
                site.processor.shell.carry_out(site.core.note(lost), now)
            above.begin_sums(max(number, known or 0))
        elif newest is not None and known < number and not self._give(site, above, newest, now):
            return False
        self._resumed = True
        return True

    def _send(self, site: SiteFederation, above: UplinkRuntime, now: float) -> bool:
        """Make the next sum; False if nothing waits, or there is no room."""
        core, store = site.core, site.store
        planned = core.site.next(now, (above.sums or 0) + 1)
        if planned is None or self._announcement(above) is None:
            return False
        records = [store.record(lsn) for lsn, _ in planned.updates]
        updates = [record for record in records if isinstance(record, rec.UpdateRecord)]
        record = replace(
            planned,
            examples=min(sum(update.examples for update in updates), MOST),
            steps=median_low(update.steps for update in updates),
        )
        total = site.engine.total(record)  # before it is journaled, while the deltas are at hand
        site.processor.shell.carry_out(core.note(record), now)
        core.site.made(now)
        return self._give(site, above, record, now, total)

    def _announcement(self, above: UplinkRuntime) -> Announcement | None:
        return above.session.announcement

    def _give(
        self,
        site: SiteFederation,
        above: UplinkRuntime,
        record: rec.SumRecord,
        now: float,
        total: Any = None,
    ) -> bool:
        """Encode a sum and put it into the outbox; False if there is no room or no announcement yet."""
        announcement = self._announcement(above)
        if announcement is None:
            return False
        total = site.engine.total(record) if total is None else total
        plan = announcement.plan
        codec = self.config.codec or chosen(plan)
        feedback = plan.feedback and codecs.parse(codec).feedback  # without an error there is nothing to keep
        coded, (after,) = encode(
            np.asarray(total)[None],
            codec,
            announcement.lineage,
            site.engine.model.schema,
            record.tensors,
            feedback=feedback,
            left=[above.parts.outbox.residual()],
            seeds=[record.number],
        )
        update = update_of(
            announcement,
            codec,
            body := coded.body(0),
            tensors=record.tensors,
            examples=record.examples,
            steps=record.steps,
            feedback=feedback or not codecs.parse(codec).feedback,
            accepted=len(record.updates),
            devices=record.devices,
            weight=record.mass,
            who=self._who(site, record),
        ).model_copy(update={"generation": record.generation, "base": record.base, "base_digest": record.base_digest})
        made = EncodedUpdate(above.parts.identity.to_be_sealed(update, announcement), body, after)
        if not above.give(made, record.number, now):
            self._resumed, self._full_until = False, now + _FULL
            return False
        self._tell("sum", number=record.number, base=record.base, updates=len(record.updates), devices=record.devices)
        return True

    def _who(self, site: SiteFederation, record: rec.SumRecord) -> bytes:  # noqa: ARG002 - a shard says it
        """What the federation learns of the devices in a sum."""
        return b""

    def _say_online(self, above: UplinkRuntime, online: int, now: float) -> None:
        """Say how many devices are online, if that has changed by a tenth."""
        if abs(online - self._online) * 10 > max(self._online, online) and now >= self._greeted_at + _GREET:
            self._online, self._greeted_at = online, now
            above.parts.devices = online
            above.greet()

    def _tell(self, event: str, **fields: Any) -> None:
        if self.config.on_event is not None:
            self.config.on_event({"event": event, "time": time.time(), "site": self.config.name, **fields})


def beside(listener: Listener | None, side: str) -> Listener | None:
    """A listener that also says which side of the gateway an event is of."""
    return None if listener is None else lambda event: listener({**event, "side": side})


def _untrained(_parameters: Parameters, _plan: TrainingPlan) -> Fit:
    raise AssertionError("a gateway does not train")


def device_config(config: GatewayConfig) -> DeviceConfig:
    """The gateway as a device of the federation above."""
    return DeviceConfig(
        connector=config.above,
        federation=config.federation,
        root=config.root,
        name=config.name,
        train=_untrained,
        outbox=config.directory / "outbox.db",
        release_key=config.release_key,
        signing_key=config.signing_key,
        on_event=beside(config.on_event, "above"),
        features=(),
        wait=True,
    )


def _aggregator(config: GatewayConfig, schema: Schema, announcement: Announcement | None) -> AggregatorConfig:
    """The gateway as the aggregator of its site. The model's values stay above; only its tensors matter here."""
    weigh = announcement is not None and announcement.weigh_examples
    return AggregatorConfig(
        connector=config.below,
        federation=config.federation,
        root=config.root,
        store=config.directory,
        initial={tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in schema.tensors},
        roles={tensor.name: f"={tensor.tied}" if tensor.tied else tensor.role for tensor in schema.tensors},
        strategy=config.strategy(weigh_examples=weigh),
        features=None if announcement is None or not announcement.features else announcement.features,
        release_key=config.signing_key,
        device_keys=config.device_keys,
        require_signed=config.require_signed,
        on_event=beside(config.on_event, "below"),
    )


def _stored(config: GatewayConfig) -> tuple[Schema, Announcement | None] | None:
    """Schema and newest announcement of an existing store; None if there is none."""
    if not (config.directory / "store.db").exists():
        return None
    with Store(config.directory) as store:
        if store.schema is None:
            return None
        envelope = store.newest_checkpoint().core.get("site", [b""])[0]
        for entry in store.entries(after=store.newest_checkpoint().lsn):
            if isinstance(entry.record, rec.FollowRecord):
                envelope = entry.record.envelope
        if store.schema is None:
            raise StoreError(f"The store {config.directory} has no model.")
        return store.schema, messages.decode_announcement(envelope) if envelope else None
