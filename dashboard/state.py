"""What one federation looks like now and looked like lately, fed with messages; pure, and bounded in memory.

A page gets a snapshot once, and then deltas: rows of devices that differ from those sent before, intervals that are
over, new events. Times are seconds since 1970, and come in as `now`.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from midge.broker.mqtt.connection import Delivery, Limits
from midge.broker.mqtt.federation_view import FederationView, alarms_of
from midge.dashboard import device_log, intervals
from midge.dashboard.device_log import DeviceLog
from midge.dashboard.intervals import Intervals, MetricSpread
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.inert import inert, inert_all
from midge.wire.messages import AggregatorState, Receipt, Verdict
from midge.wire.plurals import counted
from midge.wire.topics import Topics, is_name

MOST = 20_000
"""Devices that are shown."""
EVENTS = 200
"""Events that are kept."""
_AT_ONCE = 20
"""Events of devices in a second; of more, only the number is reported."""
_IN_A_ROW = 3
"""Refusals of a device without an accepted update that make an event."""
_PATIENCE = 5.0
"""Seconds that an aggregator has for its answer: it sends one a second, and fewer if it has many devices."""
_BEGIN = 4.0
"""Seconds in which a broker sends what is retained."""
_TEMPORARY = frozenset({Verdict.BUSY, Verdict.PAUSED, Verdict.FORGOTTEN})
"""Verdicts that do not depend on what a device sends."""
_OVERHEAD = 8192
"""Bytes beside a chunk's body, generously: a packet limit that is further away does not matter."""
ONLINE = ("ready", "training")


class FederationState:
    """The state of one federation, for a page."""

    def __init__(self, topics: Topics, now: float) -> None:
        self.topics, self.since = topics, now
        self.view = FederationView(topics, MOST)
        self._receipts = f"{topics.prefix}/receipt/"
        self._logs: dict[str, DeviceLog] = {}
        self._dirty: set[str] = set()
        self._rows: dict[str, tuple[Any, ...]] = {}
        """Rows as they were sent."""
        self._gone: set[str] = set()
        self.intervals = Intervals()
        self._sent = (0, 0)
        """The intervals' epoch and the last one that was sent."""
        self._head: dict[str, Any] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._number = self._told = self._flood = 0
        self._alarms: dict[str, float] = {}
        self._notices: dict[str, str] = {}
        self._broken = "Connecting."
        self._connected_at: float | None = None
        self._asked_at: float | None = None
        """When the question was asked that is not answered yet."""
        self._packets: int | None = None
        """Bytes of the broker's largest packet, if it says so."""
        self._ended = ""
        self.metric = ""
        self._moved: tuple[float, int, int, int] | None = None
        """When the aggregator of which boot had received and sent how many bytes."""
        self._health = ""

    # ------------------------------------------------------------------ what comes in

    def connected(self, limits: Limits, now: float) -> None:
        """The broker is reached; what it retains follows."""
        self._broken, self._connected_at, self._asked_at = "", now, None
        self._packets = limits.maximum_packet_size
        self.view.found["unasked"] = ""
        self._notices.clear()

    def disconnected(self, why: str, now: float) -> None:
        """The broker is not reached, or no more."""
        self._connected_at = self._moved = None
        self._broken = inert(why)
        self.tick(now)

    def ended(self, why: str) -> None:
        """Nothing follows: the page keeps what it has."""
        self._ended, self._broken = why, ""
        self._alarms.clear()

    def notice(self, about: str, text: str) -> None:
        """Show something that is worth knowing and no fault; an empty text takes it back."""
        if text:
            self._notices[about] = inert(text)
        else:
            self._notices.pop(about, None)

    def unasked(self, why: str) -> None:
        """The aggregator cannot be asked."""
        self.view.found["unasked"] = inert(why)
        self.notice("ask", f"Only retained messages are shown: {why}")

    def asked(self, now: float) -> None:
        """The aggregator was asked for an overview."""
        if self._asked_at is None:
            self._asked_at = now

    @property
    def serves(self) -> bool:
        """Whether the aggregator is there to be asked."""
        aggregator = self.view.found["aggregator"]
        return aggregator is not None and AggregatorState(aggregator["state"]).serves

    def take(self, delivery: Delivery, now: float) -> None:
        """Take in a message."""
        if delivery.topic.startswith(self._receipts):
            self._take_receipt(delivery.topic[len(self._receipts) :], delivery.payload, now)
            return
        found = self.view.found
        if delivery.topic == self.topics.overview:
            found["answered"] = False
        for name in self.view.take(delivery.topic, delivery.payload):
            self._take_device(name, now, None if delivery.topic == self.topics.overview else delivery)
        if delivery.topic == self.topics.overview and found["answered"]:
            self._take_answer(now)

    def _take_receipt(self, name: str, payload: bytes, now: float) -> None:
        device = self.view.devices.get(name)
        with suppress(WireError):
            answer, _ = messages.decode_answer(payload)
            if device is None or not isinstance(answer, Receipt):
                return
            log, interval = self._log(name), self.intervals.at(now)
            for settled in answer.settled:
                if settled.repeat:
                    continue
                log.settle(settled, now)
                self._dirty.add(name)
                if settled.verdict is Verdict.ACCEPTED:
                    interval.accepted += 1
                    interval.stale(settled.staleness)
                    device["updates"], device["refused"] = device.get("updates", 0) + 1, 0
                    continue
                interval.refused += 1
                if settled.verdict not in _TEMPORARY:
                    device["refused"] = device.get("refused", 0) + 1
                    device["verdict"], device["why"] = settled.verdict.value, settled.why
                    if device["refused"] == _IN_A_ROW:
                        why = f": {settled.why}" if settled.why else ""
                        text = f"refused {_IN_A_ROW} times in a row, as {settled.verdict.value}{why}"
                        self._tell("refused", text, now, name)

    def _take_device(self, name: str, now: float, status: Delivery | None) -> None:
        """A device's row has changed: by its status, or by the aggregator's answer."""
        device = self.view.devices.get(name)
        self._dirty.add(name)
        if device is None or not is_name(name):
            self.view.devices.pop(name, None)
            if self._logs.pop(name, None) is not None:
                self._gone.add(name)
                self._tell("gone", "its status was removed from the broker", now, name)
            return
        log = self._log(name)
        if status is None:
            if device["heard"] is not None:
                log.hear(now - device["heard"])
            if device["accepted"] is not None:
                log.accept(now - device["accepted"])
        elif not status.retain:
            log.hear(now)
            if device["state"] in ONLINE:
                log.compare_clock((device.get("capabilities") or {}).get("clock"), now)
        before = log.enter(device["state"], inert(device.get("why") or device.get("waits") or ""), now)
        if before and not (status is None and self._moved is None):  # the first answer is no news, but corrects
            self._tell(device["state"], f"{device['state']} (was {before})", now, name)

    def _log(self, name: str) -> DeviceLog:
        return self._logs.setdefault(name, DeviceLog())

    def _take_answer(self, now: float) -> None:
        """All pages of an answer have come."""
        found, self._asked_at = self.view.found, None
        interval = self.intervals.at(now)
        interval.version = found["aggregator"]["version"]
        boot, up, down = found["aggregator"]["boot"], found["bytes_in"], found["bytes_out"]
        if self._moved is not None and self._moved[1] == boot and now > self._moved[0]:
            seconds = now - self._moved[0]
            interval.up = round(max(0, up - self._moved[2]) / seconds, 1)
            interval.down = round(max(0, down - self._moved[3]) / seconds, 1)
        self._moved = (now, boot, up, down)
        own: Counter[str] = Counter(name for each in self.view.devices.values() for name in each.get("metrics") or ())
        if (metric := _main(found["metrics"], own)) != self.metric:
            self.metric = metric
            self._dirty.update(self.view.devices)
        values = (each["metrics"].get(metric) for each in self.view.devices.values() if each.get("metrics"))
        scores = MetricSpread.of(found["metrics"].get(metric), [value for value in values if value is not None])
        if scores != MetricSpread():
            interval.scores = scores

    def _tell(self, kind: str, text: str, now: float, device: str = "") -> None:
        if device:
            self._flood += 1
            if self._flood > _AT_ONCE:
                return
        self._number += 1
        self.events.append({"n": self._number, "t": int(now), "kind": kind, "text": inert(text), "device": device})

    def tell(self, kind: str, text: str, now: float) -> None:
        """Add an event, such as an operator's action."""
        self._tell(kind, text, now)

    # ------------------------------------------------------------------ what goes out

    def tick(self, now: float) -> None:
        """Judge what is wrong now. To be called about once a second."""
        interval = self.intervals.at(now)
        states = self._states()
        interval.online = sum(states[state] for state in ONLINE)
        sentences = [] if self._ended else list(self._wrong(now))
        for text in sentences:
            if text not in self._alarms:
                self._alarms[text] = now
                self._tell("alarm", text, now)
        for text in self._alarms.keys() - set(sentences):
            del self._alarms[text]
            self._tell("over", f"No more: {text}", now)
        health = self.view.found["health"]
        if health is not None and health["state"] != self._health:
            was = f" (was {self._health})" if self._health else ""
            self._health = health["state"]
            self._tell("health", f"{health['state']}{was}{': ' + health['why'] if health['why'] else ''}", now)
        if self._flood > _AT_ONCE:
            self._tell("many", f"{self._flood - _AT_ONCE} more devices changed in the same second", now)
        self._flood = 0
        self._note_limit()
        keeping = sum(bool(device.get("keeps")) for device in self.view.devices.values())
        text = f"A newer model is worse on their own rows, so they keep the one in use: {counted(keeping, 'device')}."
        self.notice("keeps", text if keeping else "")

    def _wrong(self, now: float) -> Iterable[str]:
        if self._broken or self._connected_at is None:
            return [f"The broker cannot be observed: {self._broken}"] if now > self.since + _BEGIN else []
        found = self.view.found
        if found["aggregator"] is None and now < self._connected_at + _BEGIN:
            return []
        return map(inert, alarms_of({**found, "answered": not self._late(now)}))

    def _late(self, now: float) -> bool:
        """Whether the aggregator takes too long to answer."""
        return self._asked_at is not None and now > self._asked_at + _PATIENCE

    def _note_limit(self) -> None:
        """A limit of the broker that determines how models are cut."""
        model, packets = self.view.found["model"], self._packets
        if model is not None and packets is not None:
            near = packets <= model["chunk"] + _OVERHEAD
            text = f"The broker takes packets of at most {packets:,} bytes: messages are cut into more chunks."
            self.notice("limit", text if near else "")

    def _states(self) -> Counter[str]:
        return Counter(device["state"] for device in self.view.devices.values())

    def head(self, now: float) -> dict[str, Any]:
        """Everything that is not about single devices."""
        found = self.view.found
        return {
            "federation": found["federation"],
            "root": found["root"],
            "since": int(self.since),
            "connected": self._connected_at is not None,
            "ended": self._ended,
            "answered": self._moved is not None and not self._late(now),
            "aggregator": inert_all(
                None
                if found["aggregator"] is None
                else {
                    name: value
                    for name, value in found["aggregator"].items()
                    if name not in ("health", "token", "boot")
                }
            ),
            "health": inert_all(found["health"]),
            "model": None if found["model"] is None else _model(found["model"]),
            "metric": inert(self.metric),
            "evaluation": inert_all(found["metrics"]),
            "bytes": [found["bytes_in"], found["bytes_out"]],
            "left_out": found["left_out"],
            "states": dict(self._states().most_common()),
            "alarms": [{"text": text, "since": int(since)} for text, since in self._alarms.items()],
            "notices": list(self._notices.values()),
        }

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything that a page shows; deltas follow."""
        rows = [self._row(name) for name in self.view.devices]
        return {
            "columns": {"device": device_log.COLUMNS, "interval": intervals.COLUMNS},
            "now": now,
            "head": self.head(now),
            "rows": rows,
            "step": self.intervals.step,
            "intervals": list(self.intervals.packed()),
            "events": list(self.events),
        }

    def delta(self, now: float) -> dict[str, Any]:
        """What has changed since the last delta; without changes only `now`."""
        found: dict[str, Any] = {"now": now}
        if (head := self.head(now)) != self._head:
            self._head = found["head"] = head
        rows = []
        for name in self._dirty & self.view.devices.keys():
            row = self._row(name)
            if row != self._rows.get(name):
                self._rows[name] = row
                rows.append(row)
        self._dirty.clear()
        if rows:
            found["rows"] = rows
        if self._gone:
            found["gone"] = sorted(self._gone - self.view.devices.keys())
            for name in self._gone:
                self._rows.pop(name, None)
            self._gone.clear()
        epoch, after = self._sent
        if epoch != self.intervals.epoch:
            found["step"], found["intervals"] = self.intervals.step, list(self.intervals.packed())
        elif new := list(self.intervals.packed(after)):
            found["later"] = new
        self._sent = (self.intervals.epoch, self.intervals.newest)
        if new_events := [event for event in self.events if event["n"] > self._told]:
            found["events"] = new_events
        self._told = self._number
        return found

    def _row(self, name: str) -> tuple[Any, ...]:
        return device_log.row(name, self.view.devices[name], self._log(name), self.metric)

    def device(self, name: str) -> dict[str, Any] | None:
        """Everything about one device; None if it is unknown."""
        device = self.view.devices.get(name)
        if device is None:
            return None
        log = self._log(name)
        plain = {key: value for key, value in device.items() if key not in ("outbox", "heard", "accepted")}
        plain["capabilities"] = {
            key: value
            for key, value in (device.get("capabilities") or {}).items()
            if not isinstance(value, float) or math.isfinite(value)  # JSON has no other numbers
        }
        outbox = device.get("outbox")
        return {
            "name": name,
            **inert_all(plain),
            "outbox": None if outbox is None else f"{outbox:016x}",
            "heard": log.heard,
            "accepted": log.accepted,
            "skew": log.skew,
            "life": list(log.life),
            "receipts": list(log.receipts),
        }


def _main(evaluated: Iterable[str], own: Counter[str]) -> str:
    """The metric that is drawn: one that aggregator and devices have, `accuracy` before others."""
    both = [name for name in evaluated if name in own]
    choice = both or list(evaluated) or [name for name, _ in own.most_common()]
    return "accuracy" if "accuracy" in choice else next(iter(choice), "")


def _model(model: dict[str, Any]) -> dict[str, Any]:
    plan = {name: value for name, value in model["plan"].items() if value not in (None, "", 0, 0.0)}
    return inert_all({**{name: model[name] for name in ("phase", "chunk", "issued")}, "plan": plan})  # type: ignore[no-any-return]
