"""A federation as seen from its broker: retained messages, and the aggregator's overview on request.

Retained messages are as old as their last change, and do not show that a process hangs. So the aggregator is asked for
an overview, which takes it about a second; without an answer, only the retained messages are shown.
"""

import asyncio
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from midge.broker.mqtt.connection import (
    BrokerError,
    Connection,
    Connector,
    Delivery,
    Options,
    PublishRefused,
    SubscribeRefused,
)
from midge.broker.mqtt.retained import read_retained
from midge.wire import frames, messages, overview, signing
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, DeviceState, Health, HealthState, Hello
from midge.wire.overview import DeviceRow, Overview
from midge.wire.topics import ALIASES, DEFAULT_ROOT, Channel, Frames, HomeTopics, Topics, check_name, explain_absence

ASK = frames.encode(overview.Ask())
PATIENCE = 3.0
"""Seconds to wait for an answer: aggregators send one a second."""
_AT_ONCE = 256
"""Devices per message."""
_FILTERS = 7
"""Topics in a SUBSCRIBE, beside the marker: AWS IoT Core accepts eight."""
_VERSIONS = 64
"""Versions back for which chunks are looked up by name: a broker holds those of about 32."""
_MOST_PARTS = 100_000
"""Most chunks of a frame that are looked up: an announcement may be forged."""
_FRAME = re.compile(r"/model/[a-z]+/(?P<version>\d+)/(?P<span>\d+)-\d+")
"""The topic of a chunk, after the federation's prefix."""
_PASSES = 1_000
"""Most times that what is retained is read and removed: some brokers send a few hundred messages at a time."""
_POLL = 0.5
"""Seconds between two looks at the names of registered versions."""
_TIMEOUT = 4.0
"""Seconds for the broker's answer to CONNECT and SUBSCRIBE: a monitor waits for all of this together."""


def _options() -> Options:
    return Options(client_id=f"midge-look-{secrets.token_hex(6)}", timeout=_TIMEOUT)


def _marker(topics: Topics) -> str:
    return f"{topics.aggregator}/look-{secrets.token_hex(6)}"


async def list_federations(connect: Connector, root: str = DEFAULT_ROOT) -> dict[str, AggregatorStatus]:
    """The federations whose aggregators have announced themselves under a topic root, by name."""
    topics = Topics("any", root)
    root = topics.root
    async with connect(_options()) as connection:
        marker = f"{root}/midge-look-{secrets.token_hex(6)}/aggregator"
        deliveries = await read_retained(connection, topics.of_all_aggregators, marker=marker, patience=1.5)
    found = {}
    for delivery in deliveries:
        with suppress(WireError, ValueError):
            name = check_name(delivery.topic[len(root) + 1 :].partition("/")[0])
            found[name] = messages.decode(AggregatorStatus, delivery.payload)[0]
    return found


async def explain_missing(connect: Connector, topics: Topics) -> str:
    """Explain why a federation is not on a broker."""
    return explain_absence(topics, await announced_names(connect, topics.root))


async def announced_names(connect: Connector, root: str) -> list[str]:
    """The announced federations that this user may see: none if it may not look beyond its own."""
    with suppress(PublishRefused, SubscribeRefused):
        return sorted(await list_federations(connect, root))
    return []


def nothing_known(federation: str | None, root: str = DEFAULT_ROOT) -> dict[str, Any]:
    """`FederationView.found` before anything is known of a federation."""
    return {
        "federation": federation,
        "root": root,
        "aggregator": None,
        "health": None,
        "answered": False,
        "unasked": "",
        "left_out": 0,
        "model": None,
        "metrics": {},
        "metrics_version": 0,
        "issued": 0.0,
        "privacy": {},
        "standby": None,
        "bytes_in": 0,
        "bytes_out": 0,
        "devices": {},
    }


class FederationView:
    """A federation as its messages describe it: `found`, as plain values.

    `answered` says whether the aggregator has answered: otherwise everything is from retained messages, and `unasked`
    says why it was not asked. `left_out` counts the devices that did not fit in its answer: they are shown from
    retained messages. A row's `as_of` says whether the aggregator has described it (`now`), or it is the device's last
    status, which may be weeks old.

    Args:
        topics: of the federation.
        most: devices that are kept; the status of another one is ignored.
    """

    def __init__(self, topics: Topics, most: int = 200_000) -> None:
        self.topics, self._most = topics, most
        self.retained = (topics.aggregator, topics.announcement(), f"{topics.prefix}/status/+")
        """Filters of what is retained."""
        self._statuses = f"{topics.prefix}/status/"
        self._pages: set[int] = set()
        self.found = nothing_known(topics.federation, topics.root)
        self.devices: dict[str, dict[str, Any]] = self.found["devices"]

    def take(self, topic: str, payload: bytes) -> list[str]:
        """Take in a message; return the names of the devices whose rows it changed. What is invalid is ignored."""
        with suppress(WireError):
            if topic.startswith(self._statuses):
                return self._take_status(topic[len(self._statuses) :], payload)
            if topic == self.topics.overview:
                return self._take_page(*overview.decode_page(payload))
            if topic == self.topics.aggregator:
                if payload:
                    self._set_status(messages.decode(AggregatorStatus, payload)[0])
                else:
                    self.found["aggregator"] = self.found["health"] = None
            elif topic == self.topics.announcement():
                self.found["model"] = _model(messages.decode_announcement(payload)) if payload else None
        return []

    def _take_status(self, name: str, payload: bytes) -> list[str]:
        if not payload:
            return [] if self.devices.pop(name, None) is None else [name]
        hello, _ = messages.decode(Hello, payload)
        before = self.devices.get(name, {"as_of": "greeting"})
        if hello.state is DeviceState.JOINING or (len(before) == 1 and len(self.devices) >= self._most):
            return []
        said = hello.model_dump(mode="json", exclude={"lineage", "kind", "number", "to", "hidden"})
        self.devices[name] = {**before, **said}
        return [name]

    def _take_page(self, header: Overview, rows: list[DeviceRow]) -> list[str]:
        """Merge the rows of a page; the answer is complete with its last page, and a lost one is not repeated."""
        if header.page == 0:
            self._pages.clear()  # those of an earlier answer
        self._pages.add(header.page)
        for row in rows:
            before = self.devices.get(row.name, {})
            if before or len(self.devices) < self._most:
                self.devices[row.name] = {**before, "waits": "", **row.model_dump(exclude={"name"}), "as_of": "now"}
        if len(self._pages) == header.pages:
            self._complete(header)
        return [row.name for row in rows]

    def _complete(self, header: Overview) -> None:
        found = self.found
        self._pages.clear()
        self._set_status(header.status)
        found["answered"], found["left_out"] = True, header.left_out
        found["metrics"], found["privacy"] = dict(header.metrics), dict(header.privacy)
        found["metrics_version"], found["issued"] = header.metrics_version, header.issued
        found["standby"] = None if header.standby is None else header.standby.model_dump()
        found["bytes_in"], found["bytes_out"] = header.bytes_in, header.bytes_out
        if found["model"] is not None:
            found["model"] |= {name: found["aggregator"][name] for name in ("version", "step", "generation")}

    def _set_status(self, status: AggregatorStatus) -> None:
        plain = status.model_dump(
            mode="json", exclude={"lineage", "kind", "health", "name", "vouch", "seal_key", "number"}
        )
        health = None if status.health is None else _health(status.health)
        self.found["aggregator"] = {**plain, "site": status.name, "lineage": status.lineage.hex(), "health": health}
        self.found["health"] = health


async def describe_federation(
    connect: Connector, topics: Topics, *, ask: bool = True, until: float | None = None
) -> dict[str, Any]:
    """`FederationView.found` of now: what is retained, and the aggregator's answer if it is asked.

    Args:
        connect: to the broker.
        topics: of the federation.
        ask: whether to ask the aggregator.
        until: when to wait no longer for its answer, by the loop's clock; by default `PATIENCE` after it was asked.
    """
    view = FederationView(topics)
    async with connect(_options()) as connection:
        for delivery in await read_retained(connection, *view.retained, marker=_marker(topics)):
            view.take(delivery.topic, delivery.payload)
        if ask and serves(view.found):
            try:
                await _ask(connection, view, until)
            except (PublishRefused, SubscribeRefused) as error:
                view.found["unasked"] = str(error)
    return view.found


async def _ask(connection: Connection, view: FederationView, until: float | None) -> None:
    """Ask the aggregator, and wait for its answer."""
    await connection.subscribe(view.topics.overview, qos=0)
    await connection.publish(view.topics.ask, ASK, qos=1)
    with suppress(TimeoutError):
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + PATIENCE if until is None else until):
            async for delivery in connection.messages():
                connection.ack(delivery)
                view.take(delivery.topic, delivery.payload)
                if view.found["answered"]:
                    break


def alarms_of(found: Mapping[str, Any]) -> list[str]:
    """What a monitor should raise an alarm for, as sentences; empty if nothing is wrong."""
    aggregator, health = found["aggregator"], found["health"]
    if aggregator is None:
        return [f"No aggregator has announced itself for {found['federation']!r}."]
    if aggregator["state"] in ("lost", "stopped"):
        return [f"The aggregator is {aggregator['state']}."]
    if not found["answered"] and not found["unasked"]:
        return ["The aggregator does not answer."]
    if health is None or not health["alarming"]:
        return []
    worst = [f"{health['state']}: {health['why']}"] if HealthState(health["state"]).alarming else []
    return [*worst, *health["alarms"]]


def _health(health: Health) -> dict[str, Any]:
    return {**health.model_dump(mode="json"), "alarming": health.alarming}


def _model(announcement: messages.Announcement) -> dict[str, Any]:
    plain = announcement.model_dump(
        mode="json", include={"generation", "version", "step", "phase", "chunk", "plan", "issued"}
    )
    return {**plain, "lineage": announcement.lineage.hex(), "digest": announcement.digest.hex()}


def serves(found: dict[str, Any]) -> bool:
    """Whether the federation's aggregator reports that it serves."""
    return found["aggregator"] is not None and AggregatorState(found["aggregator"]["state"]).serves


async def say_gone(
    connect: Connector, topics: Topics, names: Sequence[str], key: signing.PrivateKey | None = None
) -> None:
    """Have the aggregator remove these devices' retained messages from the broker, and drop their queued updates.

    Args:
        connect: the operator's connector.
        topics: of the federation.
        names: the devices.
        key: the release key, without which nothing is dropped.

    Raises:
        BrokerError: the request cannot be sent.
    """
    async with connect(_options()) as connection:
        for first in range(0, len(names), _AT_ONCE):
            some = tuple(names[first : first + _AT_ONCE])
            plain = frames.encode(overview.Ask(gone=some))
            asking = plain if key is None else overview.revoking(key, topics.federation, some)
            await connection.publish(topics.ask, asking, qos=1)


async def send_order(connect: Connector, topics: Topics, asking: bytes, seconds: float) -> dict[str, int] | None:
    """Send a signed order about registered versions, and wait until the names have changed.

    Args:
        connect: the operator's connector.
        topics: of the federation.
        asking: the signed request.
        seconds: to wait.

    Returns:
        The names, each with its version; None if none has changed.

    Raises:
        BrokerError: the request cannot be sent.
    """
    async with connect(_options()) as connection:
        before = _names_of(await read_retained(connection, *map(topics.alias, ALIASES), marker=_marker(topics)))
        await connection.publish(topics.ask, asking, qos=1)
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_POLL)
            now = _names_of(await read_retained(connection, *map(topics.alias, ALIASES), marker=_marker(topics)))
            if now != before:
                return {name: version for name, (_, version) in now.items() if version}
    return None


def _names_of(found: Iterable[Delivery]) -> dict[str, tuple[int, int]]:
    """The number and the version of each name."""
    names: dict[str, tuple[int, int]] = {}
    for each in found:
        with suppress(WireError):
            alias, _ = messages.decode_alias(each.payload)
            names[alias.name] = alias.number, alias.version
    return names


@dataclass(frozen=True, slots=True)
class Cleared:
    """Result of `clear_federation`."""

    removed: int
    """Number of retained messages that were removed."""
    blind: bool
    """Whether the broker shows retained messages by exact topic only, so that some may be left."""


async def clear_federation(connect: Connector, topics: Topics, devices: Collection[str] = ()) -> Cleared:
    """Remove every retained message of a federation from a broker.

    They are read at QoS 0 and removed until none is left: at QoS 1 rumqttd stops answering a client that is to get
    more of them than may be in flight. Some brokers, such as RabbitMQ, do not send retained messages to subscriptions
    with wildcards. So known topics are then subscribed to one by one: the aggregator's, the chunks in the
    announcements, and those of named devices.
    """
    async with connect(_options()) as connection:
        marker, empty = _marker(topics), 0
        removed: set[str] = set()
        for _ in range(_PASSES):
            found = await read_retained(connection, topics.everything, marker=marker, qos=0)
            empty = 0 if found else empty + 1
            if empty == 2:  # the marker may have come before them
                break
            removed |= await _remove(connection, {each.topic for each in found})
        known = [topics.aggregator, topics.authorities, topics.announcement("train"), topics.announcement("serve")]
        known += [*map(topics.alias, ALIASES), topics.survey]
        for name in devices:
            known += [topics.status(name), topics.receipt(name), topics.renew(name), topics.renewed(name)]
        exact = await _read_exactly(connection, known, marker)
        exact |= await _read_exactly(connection, _parts(list(exact.values()), topics), marker)
        if blind := bool(exact):
            exact |= await _read_exactly(connection, _earlier(list(exact.values()), topics), marker)
            exact |= await _read_exactly(connection, _rest(list(exact.values())), marker)
        removed |= await _remove(connection, exact)
    with suppress(BrokerError):  # a user may have no rights there; some services end the connection for it
        async with connect(_options()) as connection:
            removed |= await _clear_home(connection, topics, devices)
    return Cleared(len(removed), blind)


async def _remove(connection: Connection, wanted: Collection[str]) -> set[str]:
    """Remove what is retained on these topics, and return them."""
    for topic in wanted:
        await connection.publish(topic, b"", qos=1, retain=True)
    return set(wanted)


async def _clear_home(connection: Connection, topics: Topics, devices: Collection[str]) -> set[str]:
    """Remove what is retained for Home Assistant, and return its topics."""
    home = HomeTopics(topics)
    marker = f"{home.prefix}/look-{secrets.token_hex(6)}"
    known = [home.found, home.state, *map(home.device, devices)]
    found = await _read_exactly(connection, known, marker)
    found |= {each.topic: each for each in await read_retained(connection, home.everything, marker=marker)}
    if home.found in found:
        with suppress(ValueError):  # a prefix that is none: not ours
            home = HomeTopics(topics, bytes(found[home.found].payload).decode(errors="replace"))
        found |= await _read_exactly(connection, [home.config(), *map(home.config, devices)], marker)
        found |= {each.topic: each for each in await read_retained(connection, home.configs, marker=marker)}
    return await _remove(connection, sorted(found, key=home.removal_order))


async def _read_exactly(connection: Connection, wanted: Sequence[str], marker: str) -> dict[str, Delivery]:
    """Retained messages on exact topics, a few topics per packet because services limit their number."""
    found: dict[str, Delivery] = {}
    for first in range(0, len(wanted), _FILTERS):
        some = wanted[first : first + _FILTERS]
        here = await read_retained(connection, *some, marker=marker)
        found |= {each.topic: each for each in here if each.topic in some}  # others may be late
    return found


def _earlier(found: Sequence[Delivery], topics: Topics) -> list[str]:
    """First chunks of frames that an announcement no longer names, and that a stopped aggregator left."""
    names = [name for each in found if (name := _FRAME.fullmatch(each.topic.removeprefix(topics.prefix)))]
    newest = max((int(name["version"]) for name in names), default=0)
    spans = sorted({0, 1, 2, 4, 8, 16, 32, *(int(name["span"]) for name in names)})
    versions = range(max(1, newest - _VERSIONS), newest + 1)
    channels: dict[Frames, list[int]] = {"train": spans, "serve": spans, "registered": [0]}
    return [
        topics.part(version, span, 0, channel)
        for channel, lengths in channels.items()
        for version in versions
        for span in lengths
    ]


def _rest(found: Sequence[Delivery]) -> list[str]:
    """The other chunks of frames whose first chunk was found."""
    rest: list[str] = []
    known = {each.topic for each in found}
    for each in found:
        if each.topic.endswith("-0"):
            with suppress(WireError):
                count = min(messages.decode(messages.Part, each.payload)[0].parts, _MOST_PARTS)
                rest += [topic for index in range(1, count) if (topic := f"{each.topic[:-1]}{index}") not in known]
    return rest


def _parts(found: Sequence[Delivery], topics: Topics) -> list[str]:
    """The topics of all chunks that the announcements among these messages name."""
    parts: list[str] = []
    channels: tuple[Channel, Channel] = ("train", "serve")
    for channel in channels:
        for delivery in found:
            if delivery.topic == topics.announcement(channel):
                with suppress(WireError):
                    for frame in messages.decode_announcement(delivery.payload).frames:
                        count = min(frame.parts, _MOST_PARTS)
                        parts += [topics.part(frame.version, frame.span, index, channel) for index in range(count)]
    for delivery in found:
        if delivery.topic in map(topics.alias, ALIASES):
            with suppress(WireError):
                alias, _ = messages.decode_alias(delivery.payload)
                count = min(alias.parts, _MOST_PARTS)
                parts += [topics.part(alias.version, 0, index, "registered") for index in range(count)]
    return parts
