"""Follows orders and rules on the registered versions of one federation, and what is measured of them."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from midge.aggregator.core import events as ev
from midge.aggregator.core.canary import gain
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.registry import OrderRefused
from midge.aggregator.core.registry_decisions import CanaryGroup, Cause
from midge.aggregator.engine import Engine
from midge.aggregator.ingress.filter import Bodies
from midge.aggregator.metrics.device_metrics import Reports
from midge.aggregator.observations import Observations
from midge.aggregator.processor import Processor
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.store.model_orders import LONGEST, ModelOrder, answer, given
from midge.aggregator.store.registered import note_federation, snapshot_of
from midge.wire import lineage
from midge.wire.lineage import State
from midge.wire.messages import FrameInfo, Hello, Report
from midge.wire.participation import matches
from midge.wire.schema import Parameters

log = logging.getLogger("aggregator")

_LOOK = 1.0
"""Seconds between two checks for orders and for what the rules ask."""


@dataclass(frozen=True, slots=True)
class RegistryTurn:
    """What a decision is made and carried out with, now."""

    engine: Engine
    processor: Processor
    now: float

    @property
    def core(self) -> AggregatorCore:
        return self.processor.shell.core

    def do(self, actions: Sequence[ev.Action]) -> None:
        """Carry actions out, in one transaction."""
        self.processor.shell.carry_out(actions, self.now)


class RegistryKeeper:
    """The registry of one federation at run time. What is durable of it is in the journal.

    Args:
        policy: the rules.
        observed: receives the devices' results.
        bodies: hold snapshots until their record is written.
        outlet: takes events.
        issuer: knows the time and the federation's name.
        devices: the newest status of each device.
    """

    def __init__(
        self,
        policy: RegistryPolicy,
        observed: Observations,
        bodies: Bodies,
        outlet: Outlet,
        issuer: AnnouncementSigner,
        *,
        devices: Mapping[str, Hello],
    ) -> None:
        self._policy, self._observed, self._bodies = policy, observed, bodies
        self._outlet, self._issuer, self._devices = outlet, issuer, devices
        self._looked = -math.inf
        self._reports: dict[int, Reports] = {}
        """What devices measured of each version that a name stands for."""
        self._halves: dict[str, dict[int, Report]] = {}
        """By device, its newest results of candidate and champion, until they are a pair."""
        self._compared = 0, 0
        """Candidate and champion of these."""
        self._evaluated: dict[int, Mapping[str, float]] = {}
        """Results of the server's evaluation that are not written yet."""
        self._unevaluable: set[int] = set()

    # ------------------------------------------------------------------ evaluation

    def unmeasured(self, core: AggregatorCore, engine: Engine) -> tuple[int, Parameters] | None:
        """A registered version that the server has not evaluated yet; None if there is none."""
        for version, each in reversed(core.registry.versions.items()):
            if not each.server and version not in self._evaluated and version not in self._unevaluable:
                if (data := snapshot_of(engine.store, each)) is not None:
                    return version, lineage.decode_snapshot(data).parameters()
                self._unevaluable.add(version)
        return None

    def evaluated(self, version: int, metrics: Mapping[str, float] | None) -> None:
        """Take in the server's results for a version; None if they could not be had."""
        if metrics:
            self._evaluated[version] = metrics
            self._unevaluable.discard(version)
        else:
            self._unevaluable.add(version)

    # --------------------------------------------------------------------- looking

    def look(self, engine: Engine, processor: Processor, now: float) -> None:
        """Do what orders, rules and measurements ask.

        Raises:
            StoreFull: there is no room for it; it is done later.
        """
        if now < self._looked + _LOOK:
            return
        if self._looked == -math.inf:
            note_federation(engine.store, self._issuer.federation)
        self._looked = now
        turn = RegistryTurn(engine, processor, now)
        for order in given(engine.store.directory):
            said = self._follow(order, turn)
            with suppress(OSError):  # it stays, and is answered later
                answer(engine.store.directory, order, said)
        self._write_measured(turn)
        if self._policy.decides:
            self._judge(turn)
        self._register_by_rule(turn)
        self._observed.followed = frozenset(turn.core.registry.named.values())

    # ---------------------------------------------------------------------- orders

    def _follow(self, order: ModelOrder, turn: RegistryTurn) -> dict[str, Any]:
        """Follow an order; what became of it, as plain values."""
        core = turn.core
        if order.name not in core.registry.orders:  # otherwise it was followed before a crash
            cause = Cause(order.why, order.by, self._issuer.dating.now(), order.name)
            try:
                if abs(cause.at - order.at) > LONGEST:
                    raise OrderRefused("it was given too long ago, or by another clock: give it again")  # noqa: TRY301
                self._carry_out(order, cause, turn)
            except OrderRefused as error:
                log.warning("The order to %s a version is refused: %s.", order.verb, error)
                self._outlet.tell("order_refused", verb=order.verb, version=order.version, why=str(error))
                return {"ok": False, "verb": order.verb, "why": str(error)}
        registry = core.registry
        return {
            "ok": True,
            "verb": order.verb,
            "generation": core.generation,
            "version": core.version,
            "aliases": registry.named,
            **({"meant": self._meant(registry.where)} if registry.candidate and registry.where else {}),
        }

    def _meant(self, where: Mapping[str, str]) -> dict[str, int]:
        """How many of the known devices have these capabilities."""
        known = self._devices.values()
        return {"devices": sum(matches(each.capabilities, where) for each in known), "known": len(known)}

    def _group(self, order: ModelOrder) -> CanaryGroup:
        """The devices that an order is for."""
        policy = self._policy
        share = policy.share if order.share is None and not order.where else order.share or 1.0
        return CanaryGroup(share, dict(order.where or policy.where))

    def _carry_out(self, order: ModelOrder, cause: Cause, turn: RegistryTurn) -> None:
        core, group = turn.core, self._group(order)
        if order.verb == "register":
            return self._register(order.version, cause, turn, group if order.attempt else None)
        if order.verb == "rollback":
            return self._roll_back(order.version, cause, turn)
        turn.do(self._combined(core, list(self._reports)))
        match order.verb:
            case "try":
                record = core.registering.attempt(order.version, group, cause)
            case "promote":
                record = core.registering.promote(order.version, cause)
            case "withdraw":
                record = core.registering.withdraw(cause)
        turn.do(core.note(record))
        return None

    def _register(self, version: int, cause: Cause, turn: RegistryTurn, group: CanaryGroup | None) -> None:
        """Register a version, 0 for the newest; in the same transaction it becomes the candidate of this group.

        Where there is no champion, it becomes the champion at once.

        Raises:
            OrderRefused: it cannot be registered.
        """
        core = turn.core
        version = version or turn.engine.model.version
        if group is not None and version in core.registry.versions:
            return turn.do(core.note(core.registering.attempt(version, group, cause)))
        core.registering.check_released(version)
        state = released(turn.engine, version)
        strategy = core.strategy.name
        record = core.registering.register(version, state.digest(), cause, keep=self._policy.keep, strategy=strategy)
        key = self._bodies.keep(memoryview(lineage.encode_snapshot(state)))
        actions = core.note(record, key)
        if group is not None and core.registry.champion:
            actions += core.note(core.registering.attempt(version, group, cause))
        elif group is not None:
            actions += core.note(core.registering.promote(version, cause))
        return turn.do([*actions, ev.Drop(key)])

    def _roll_back(self, version: int, cause: Cause, turn: RegistryTurn) -> None:
        core = turn.core
        to = core.registering.roll_back(version, cause).to
        data = snapshot_of(turn.engine.store, core.registry.known(to))
        if data is None:
            raise OrderRefused(f"the values of version {to} are damaged: see `midge store verify`")
        turn.do(self._combined(core, list(self._reports)))
        key = self._bodies.keep(memoryview(data))
        turn.do([*core.roll_back(core.registering.roll_back(to, cause), key, turn.now), ev.Drop(key)])

    # ----------------------------------------------------------------------- rules

    def _register_by_rule(self, turn: RegistryTurn) -> None:
        core, at = turn.core, self._issuer.dating.now()
        registry, version = core.registry, turn.engine.model.version
        if self._policy.every is None or not version or not core.frozen or registry.candidate:
            return
        last = max(registry.versions.values(), key=lambda each: each.version, default=None)
        if last is None or (version > last.version and at >= last.record.at + self._policy.every):
            self._register(
                version, Cause("it is due", at=at), turn, CanaryGroup(self._policy.share, self._policy.where)
            )

    def _judge(self, turn: RegistryTurn) -> None:
        """Promote or withdraw the candidate if what devices measured says so."""
        core, policy = turn.core, self._policy
        registry, at = core.registry, self._issuer.dating.now()
        if not registry.candidate or not registry.champion:
            return
        finding, found = registry.trial.finding(policy.alpha, policy.devices), registry.trial.evidence()
        why = f"{policy.metric}: better on {found.better}, worse on {found.worse} of {found.devices} devices"
        if finding == "open":
            if at <= registry.since + policy.patience:
                return
            why = f"undecided. {why}"
        turn.do(self._combined(core, list(self._reports)))
        cause, decisions = Cause(why, at=at), core.registering
        turn.do(core.note(decisions.promote(0, cause) if finding == "better" else decisions.withdraw(cause)))
        self._outlet.tell("trial", finding=finding, why=why, evidence=found.packed())

    # ---------------------------------------------------------------- measurements

    def _write_measured(self, turn: RegistryTurn) -> None:
        """Write what was measured since: the server's results, pairs of devices, and combined results now and then."""
        core, actions = turn.core, list[ev.Action]()
        for version, metrics in self._evaluated.items():
            if (record := core.registering.measure(version, "server", metrics)) is not None:
                actions += core.note(record)
        self._evaluated.clear()
        registry = core.registry
        if self._compared != (registry.candidate, registry.champion):
            self._compared = registry.candidate, registry.champion
            self._halves.clear()
        for device, report in self._observed.measured:
            self._reports.setdefault(report.version, Reports()).take(device, report)
            actions += self._pair(device, report, core)
        self._observed.measured.clear()
        # At twice as many devices as before: few records, however large the fleet.
        due = [version for version, each in self._reports.items() if len(each) > 2 * _known(core, version)]
        turn.do(actions + self._combined(core, due))

    def _pair(self, device: str, report: Report, core: AggregatorCore) -> Sequence[ev.Action]:
        candidate, champion = self._compared
        if not report.examples or report.version not in {candidate, champion} or device in core.registry.trial:
            return ()
        halves = self._halves.setdefault(device, {})
        halves[report.version] = report
        if len(halves) < 2:
            return ()
        del self._halves[device]
        found = gain(halves[candidate].metrics, halves[champion].metrics, self._policy.metric, lower=self._policy.lower)
        record = None if found is None else core.registering.pair(device, found)
        return () if record is None else core.note(record)

    def _combined(self, core: AggregatorCore, versions: Sequence[int]) -> list[ev.Action]:
        """Write what devices have measured of these versions."""
        actions: list[ev.Action] = []
        for version in versions:
            metrics = {name: spread.packed() for name, spread in self._reports[version].combined().items()}
            devices = len(self._reports[version])
            # After a restart it begins with few: what more devices have said stays.
            if devices >= _known(core, version):
                record = core.registering.measure(version, "federated", metrics, devices)
                actions += [] if record is None else core.note(record)
        self._reports = {
            version: each for version, each in self._reports.items() if version in core.registry.named.values()
        }
        return actions


def _known(core: AggregatorCore, version: int) -> int:
    """Devices whose results of a version are written."""
    known = core.registry.versions.get(version)
    return 0 if known is None else known.devices


def released(engine: Engine, version: int) -> State:
    """The state that was released as a version: of the newest what is used, of those before what was published.

    Raises:
        OrderRefused: nothing leads to it any more.
    """
    model = engine.model
    if version == model.version:
        return model.used()
    if model.serving is not None:
        raise OrderRefused(f"version {version} is past, and its moving average with it; the newest is {model.version}")
    known = [
        FrameInfo(each.version, each.span, each.size, 1)
        for each in engine.store.published()
        if each.span >= 0 and each.whole and each.offered
    ]
    way = lineage.route(known, None, version)
    if way is None:
        raise OrderRefused(f"nothing on offer leads to version {version} any more; the newest is {model.version}")

    def stored(frame: FrameInfo) -> bytes:
        data = engine.store.frame(frame.version, frame.span)
        if data is None:
            raise OrderRefused(f"what leads to version {version} is damaged; the newest is {model.version}")
        return data

    state = lineage.follow(way, stored)
    assert state is not None
    return state
