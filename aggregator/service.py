"""The aggregator as a process: the processor and the store, connected to MQTT.

One loop hands over what waits, and the passing of time; MQTT messages are acknowledged once the processor has them
durable. The connection is remade with growing, jittered pauses, and after each connect everything is published again:
nobody knows what the broker still has.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aggregator import events as ev
from aggregator.admission import Limits
from aggregator.averaging import refuse_noise
from aggregator.core import AggregatorCore
from aggregator.credentials import Credentials, DeviceKeys
from aggregator.federated import Spread
from aggregator.forgetting import RETENTION
from aggregator.issuing import LIFETIME, Issuer, load_release_keys
from aggregator.keeper import CHECKPOINT_RECORDS, Keeper, inputs_of
from aggregator.meters import Meters
from aggregator.model import Model
from aggregator.outgoing import Outgoing, Post
from aggregator.pausing import paused
from aggregator.presets import balanced
from aggregator.statistics import FACTOR
from aggregator.store import Store, StoreError
from aggregator.strategy import Strategy
from broker.connection import BrokerError, BrokerRefused, Connection, ConnectionLost, Connector, Delivery, Options, Will
from broker.retained import read_retained
from storage.failpoints import failpoint
from wire import frames, messages
from wire.errors import WireError
from wire.inputs import LONGEST, MOST, listed, sayable
from wire.messages import AggregatorState, AggregatorStatus, Hello, Moment
from wire.schema import Parameters, Role, Schema
from wire.signing import PublicKey
from wire.topics import DEFAULT_ROOT, Topics

log = logging.getLogger("aggregator")

Evaluate = Callable[[dict[str, Any]], Mapping[str, float]]
Listener = Callable[[dict[str, Any]], None]

CHUNK = 256 * 1024
"""Bytes of a chunk's body on a broker of one's own."""
_OVERHEAD = 1024
"""Bytes of topic and headers around a chunk's body, generously."""
_WINDOW = 200
"""Messages that a broker of MQTT 5 may have under way to us: they make a batch, and bound the memory that it takes."""
_REPORTS_EVERY = 2.0
"""Seconds at least between two tellings of what devices found on their own data."""
_OBSTACLE_AFTER = 30.0
"""Seconds after which what keeps the model from moving is told: a fleet that starts is often through it by then."""


class ForeignFederation(StoreError):
    """Another lineage is announced on our topics."""


class Aggregator:
    """The server of one federation. `run()` serves until it is interrupted.

    Args:
        connector: how to reach the broker; `midge.Aggregator` makes it from a URL.
        federation: the federation's name.
        initial: the model to begin with, as a dict of arrays; a store that exists goes on from its own.
        strategy: when and how updates become the next model; `balanced()` by default.
        store: a directory of this aggregator's own.
        root: the topic root.
        roles: which tensors are not trained: name to "averaged", "local" or "frozen".
        moments: federated statistics to ask for before training: name to number of channels. They are pooled and
            frozen into the tensors `{name}_mean` and `{name}_scale`.
        statistics_devices: how many devices' statistics are pooled, 2 or more; fewer after `statistics_deadline`
            seconds, but never one device's alone.
        statistics_factor: devices whose values are further from the others' than this many times the usual spread, or
            spread wider than that, are left out and named; None takes them.
        features: names of the model's inputs, in order. A device whose own differ does not train, and nothing is taken
            from it. None learns them from the first two devices that agree; an empty list compares nothing.
        evaluate: called with all tensors by name after a release, in a thread; returns numbers for people.
        on_event: called with a dict for each event.
        chunk: bytes of a chunk's body; less where the broker takes less. A broker of MQTT 3.1.1 does not say what it
            takes: give `wire.chunks.CLOUD`, 120 KiB, where it is a cloud service.
        memory: bytes that updates may take which come in chunks and are not yet whole.
        keepalive: seconds between signs of life to the broker.
        checkpoint_records: records of the journal after which a checkpoint is written: each update makes one, each step
            and each release another. Above a hundred a second it goes by the clock, up to ten times as many. A restart
            replays those since the last.
        replace: take the topics over from another lineage.
        release_key: the file of the Ed25519 private key that signs announcements and receipts, PEM; with it devices may
            seal their updates to us. None signs nothing.
        announcement_lifetime: seconds that an announcement is good for on a device that pins the key: so long a broker
            can hold back newer ones unseen. It is reissued after a quarter of them.
        raise_epoch: let devices follow to a lower version, or to this store after another one, once.
        device_keys: the devices' public keys by name, or a directory of `NAME.pub` or `NAME.crt` files; a device whose
            key is there must sign what it sends.
        require_signed: take nothing from a device whose key is not there.
        require_sealed: take no update that is not sealed.
        limits: how much devices may send, and when one is in quarantine.
        retention: seconds without a word after which what names a device is erased, where none of its updates could be
            counted a second time if it came again; None keeps it.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        federation: str,
        initial: Parameters,
        store: str | Path,
        strategy: Strategy | None = None,
        root: str = DEFAULT_ROOT,
        roles: Mapping[str, Role] | None = None,
        moments: Mapping[str, int] | None = None,
        statistics_devices: int = 5,
        statistics_deadline: float = 10.0,
        statistics_factor: float | None = FACTOR,
        features: Sequence[str] | None = None,
        evaluate: Evaluate | None = None,
        on_event: Listener | None = None,
        chunk: int = CHUNK,
        memory: int = 2**30,
        keepalive: int = 30,
        checkpoint_records: int = CHECKPOINT_RECORDS,
        replace: bool = False,
        release_key: str | Path | None = None,
        announcement_lifetime: float = LIFETIME,
        raise_epoch: bool = False,
        device_keys: Mapping[str, bytes | PublicKey] | str | Path | None = None,
        require_signed: bool = False,
        require_sealed: bool = False,
        limits: Limits | None = None,
        retention: float | None = RETENTION,
    ) -> None:
        self.topics = Topics(federation, root)
        self.strategy = strategy or balanced()
        self.store = Store(store)
        self.connector = connector
        self.meters = Meters()
        schema = Schema.of(initial, roles)
        schema.flatten(initial)
        refuse_noise(self.strategy, schema)
        self._schema = schema
        _check_statistics(moments or {}, self.strategy, statistics_devices, statistics_factor)
        self._evaluate = evaluate
        self._listener = on_event
        self._keepalive = keepalive
        self.replace = replace
        self._boot = secrets.randbits(62)
        self._stop = asyncio.Event()
        self._released = asyncio.Event()
        self._obstacle_since: float | None = None
        self._obstacle_told = ""
        self._connected = False
        self._held: str | None = None
        self._paused: str | None = None
        self._pause_seen = float("-inf")
        self._reports_told = float("-inf")
        self.federated: dict[str, Spread] = {}
        """What devices found on their own data when it was last combined."""
        self._outgoing = Outgoing(self._sent)
        self._lifetime, self._release_key = announcement_lifetime, release_key
        self._device_keys = None if device_keys is None else DeviceKeys(device_keys)
        self._required = (require_signed, require_sealed)
        issuer, credentials = self._authorities(release_key)
        self._keeper = Keeper(
            self.store,
            initial,
            schema,
            self.strategy,
            self.topics,
            moments=_asked(schema, moments or {}),
            statistics=(statistics_devices, statistics_deadline),
            statistics_factor=statistics_factor,
            features=_named(schema, features),
            chunk=chunk,
            memory=memory,
            checkpoint_records=checkpoint_records,
            put=self._outgoing.put,
            tell=self._tell,
            meters=self.meters,
            issuer=issuer,
            credentials=credentials,
            limits=limits,
            retention=retention,
            raise_epoch=raise_epoch,
        )

    def sign(self, release_key: str | Path | None, *, raise_epoch: bool = False) -> None:
        """Sign with another key than was said at first, if any, and perhaps in a higher epoch; before `serve`.

        Raises:
            KeyUnusable: the key cannot be read.
        """
        issuer, credentials = self._authorities(release_key or self._release_key)
        self._keeper.use(issuer, credentials, raise_epoch=raise_epoch)

    def name_inputs(self, features: Sequence[str]) -> None:
        """Call the model's inputs otherwise than was said at first; before `serve`.

        Raises:
            ValueError: they cannot be those of this model.
        """
        self._keeper.features = _named(self._schema, features)

    def _authorities(self, release_key: str | Path | None) -> tuple[Issuer, Credentials]:
        keys = None if release_key is None else load_release_keys(Path(release_key))
        issuer = Issuer(self.topics, keys, lifetime=self._lifetime)
        signed, sealed = self._required
        credentials = Credentials(
            self.topics,
            device_keys=self._device_keys,
            require_signed=signed,
            require_sealed=sealed,
            seal_keys=issuer.seal_keys,
        )
        return issuer, credentials

    def run(self) -> None:
        """Serve until interrupted, then write a checkpoint and say goodbye."""
        asyncio.run(self.serve())

    def stop(self) -> None:
        """End `serve` cleanly. To be called in its loop."""
        self._stop.set()

    def pause(self, why: str | None) -> None:
        """Take no update in, saying why, until called with None. To be called in the loop of `serve`."""
        self.core.handle(ev.OperatorPaused(why), time.monotonic())
        self._post_status()

    def listen(self, listener: Listener) -> None:
        """Call a listener with a dict for each event, from now on."""
        self._listener = listener

    @property
    def devices(self) -> Mapping[str, Hello]:
        """The newest status of each device."""
        return self._keeper.processor.devices

    @property
    def core(self) -> AggregatorCore:
        return self._keeper.core

    @property
    def model(self) -> Model:
        return self._keeper.engine.model

    @property
    def open_now(self) -> bool:
        """Whether the store is open, and with it the core and the model to be looked at."""
        return hasattr(self._keeper, "processor")

    @property
    def ready(self) -> bool:
        """Whether updates are taken in."""
        return self._connected and self._keeper.hold is None

    @property
    def outgoing(self) -> int:
        """How many messages wait to be published, or for the broker's acknowledgement."""
        return len(self._outgoing)

    def open(self) -> None:
        """Lock the store and rebuild what it holds, or begin a lineage in it.

        Raises:
            StoreError: it cannot be used, or holds a model of other tensors.
        """
        self._keeper.open(time.monotonic())

    def close(self) -> None:
        """Write a checkpoint and let the store go."""
        self._keeper.close()

    def export(self, path: str | Path) -> None:
        """Write the exact model as safetensors."""
        self._keeper.export(path)

    # ------------------------------------------------------------------- serving

    async def serve(self) -> None:
        """Serve until `stop()`. After the first connection it reconnects by itself.

        Raises:
            StoreError: the store cannot be used.
            BrokerError: the first connection failed.
            ForeignFederation: another lineage is announced on our topics.
        """
        self.open()
        failed = True
        try:
            self._tell("start", lineage=self.core.lineage.hex(), version=self.core.version, step=self.core.step)
            async with asyncio.TaskGroup() as tasks:
                evaluating = tasks.create_task(self._evaluating(), name="evaluate")
                await self._reconnecting()
                evaluating.cancel()
            failed = False
        except BaseExceptionGroup as group:
            raise sole(group) from None
        finally:
            self._keeper.close(failed=failed)
            self._tell("stop", version=self.core.version, step=self.core.step)

    async def _reconnecting(self) -> None:
        pause, begun = 0.5, False
        while not self._stop.is_set():
            try:
                async with self.connector(self._options()) as connection:
                    await self._look_around(connection)
                    if not begun:
                        begun = True
                        self._begin()
                    pause = 0.5
                    self.meters.connects += 1
                    self._tell("connected")
                    await self._serve(connection)
            except BrokerError as error:
                if not begun:
                    raise
                log.info("%s Trying again in about %.0f s.", error, pause)
                self._tell("disconnected", why=str(error), refused=isinstance(error, BrokerRefused))
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311 - spreads load
                        await self._stop.wait()
                pause = min(2 * pause, 30.0)

    def _options(self) -> Options:
        will = Will(self.topics.aggregator, frames.encode(self._status(AggregatorState.LOST)))
        name = f"midge-{self.topics.federation}-aggregator-{self._boot:016x}"
        return Options(client_id=name, will=will, keepalive=self._keepalive, receive_maximum=_WINDOW)

    async def _look_around(self, connection: Connection) -> None:
        """See who is on our topics already, before anything is published."""
        largest = connection.limits.maximum_packet_size
        self._keeper.fit_chunks(None if largest is None else largest - _OVERHEAD)
        announced, ours = None, False
        marker = f"{self.topics.aggregator}/{self._boot:x}"
        for delivery in await read_retained(connection, self.topics.announcement(), marker=marker):
            try:
                announced = messages.decode_announcement(delivery.payload)
                ours = self._keeper.issuer.is_ours(delivery.payload)
            except WireError as error:
                log.warning("What was announced on our topic is no announcement (%s); it will be replaced.", error)
        if announced is None:
            return
        if announced.lineage != self.core.lineage:
            if not self.replace:
                raise ForeignFederation(
                    f"Another store's model, version {announced.version}, is announced as federation "
                    f"{self.topics.federation!r} under {self.topics.root!r}. Start with that store, choose another "
                    "federation name, or say --replace to take the topics over; its devices then start over."
                )
            if ours and announced.epoch >= self._keeper.issuer.epoch:
                self._keeper.raise_epoch(announced.epoch + 1)
            return
        if not ours:
            log.warning("What is announced on our topic is not signed by our key; it will be replaced.")
            return
        if announced.epoch > self._keeper.issuer.epoch:  # raised since this store was copied
            self._keeper.raise_epoch(announced.epoch)
        if (announced.generation, announced.version) > (self.core.generation, self.core.version):
            log.warning(
                "Version %d was announced and this store knows %d: it was put back. A new generation begins.",
                announced.version,
                self.core.version,
            )
            self._tell("put_back", announced=announced.version, version=self.core.version)
            now = time.monotonic()
            self._keeper.begin_generation(announced.generation, announced.version, now)

    def _begin(self) -> None:
        """What is due at the start of the process: the first release, an overdue step."""
        self._keeper.begin(time.monotonic())
        self._released.set()

    async def _serve(self, connection: Connection) -> None:
        """Publish and read, until the connection is lost or we are to stop."""
        self._connected = True
        self._outgoing.clear()
        for post in self._keeper.shelf.everything():
            self._outgoing.put(post)
        self._post_status()
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._outgoing.send(connection), name="send")
                await connection.subscribe(*self.topics.from_devices)
                await self._read(connection)
                self._outgoing.put(self._status_post(AggregatorState.STOPPED))
                with suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await self._outgoing.drained()
                sending.cancel()
        except BaseExceptionGroup as group:
            raise sole(group) from None
        finally:
            self._connected = False

    async def _read(self, connection: Connection) -> None:
        """Hand over batches of deliveries, and the passing of time."""
        deliveries = aiter(connection.messages())
        stopping = asyncio.create_task(self._stop.wait())
        arriving: asyncio.Task[Delivery] | None = None
        try:
            while not self._stop.is_set():
                arriving = arriving or asyncio.create_task(anext(deliveries))  # type: ignore[arg-type]
                await asyncio.wait({arriving, stopping}, timeout=self._patience(), return_when="FIRST_COMPLETED")
                batch: list[Delivery] = []
                if arriving.done():
                    batch = [arriving.result(), *connection.waiting()]
                    arriving = None
                self._process(connection, batch)
        finally:
            left = [task for task in (stopping, arriving) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _patience(self) -> float:
        deadline = self.core.deadline
        return 5.0 if deadline is None else min(5.0, max(0.0, deadline - time.monotonic()))

    def _process(self, connection: Connection, batch: list[Delivery]) -> None:
        now, version = time.monotonic(), self.core.version
        self._see_pause(now)
        self.meters.bytes_in += sum(len(delivery.payload) for delivery in batch)
        self._keeper.process(batch, now)
        for delivery in batch:
            connection.ack(delivery)
        if batch:
            failpoint("updates.acknowledged")
        if self.core.version != version:
            self._released.set()
        if self._keeper.hold != self._held:
            self._post_status()
        self._see_obstacle(now)
        self._tell_reports(now)

    def _tell_reports(self, now: float) -> None:
        """What devices found on their own data, combined; now and then."""
        reports = self._keeper.processor.reports
        if reports.new and now >= self._reports_told + _REPORTS_EVERY:
            self._reports_told = now
            self.federated = reports.combined()
            found = {name: spread.packed() for name, spread in self.federated.items()}
            self._tell("federated_evaluation", version=self.core.version, devices=len(reports), metrics=found)

    def _see_pause(self, now: float) -> None:
        """Follow what the operator has said by the store (`aggregator.pausing`)."""
        if now < self._pause_seen + 1:
            return
        self._pause_seen = now
        why = paused(self.store.directory)
        if why != self._paused:
            self._paused = why
            self.pause(why)

    def _see_obstacle(self, now: float) -> None:
        """Tell what has kept the model from moving for a while, once, and that it is over."""
        obstacle = self.core.obstacle
        if obstacle is None:
            if self._obstacle_told:
                self._post_status()
            self._obstacle_since, self._obstacle_told = None, ""
        elif self._obstacle_since is None:
            self._obstacle_since = now
        elif now - self._obstacle_since > _OBSTACLE_AFTER and obstacle != self._obstacle_told:
            self._obstacle_told = obstacle
            log.warning("%s", obstacle)
            self._post_status(obstacle)

    async def _evaluating(self) -> None:
        """Evaluate what would be released for use now, a quarter of the time at most; others are passed over."""
        while self._evaluate is not None:
            await self._released.wait()
            self._released.clear()
            version, step = self.core.version, self.core.step
            if version and self.core.frozen:
                published = self.model.used().parameters()
                began = time.monotonic()
                metrics = await asyncio.to_thread(self._evaluate, published)
                self._tell("evaluation", version=version, step=step, metrics=dict(metrics))
                await asyncio.sleep(3 * (time.monotonic() - began))

    # -------------------------------------------------------------------- words

    def _status(self, state: AggregatorState, why: str = "") -> AggregatorStatus:
        return AggregatorStatus(
            state=state,
            boot=self._boot,
            lineage=self.core.lineage,
            generation=self.core.generation,
            version=self.core.version,
            step=self.core.step,
            why=why[:400],
        )

    def _status_post(self, state: AggregatorState, why: str = "") -> Post:
        return Post(self.topics.aggregator, frames.encode(self._status(state, why)))

    def _post_status(self, why: str = "") -> None:
        self._held = self._keeper.hold
        state = AggregatorState.READY if self._held is None else AggregatorState.PAUSED
        self._outgoing.put(self._status_post(state, self._held or why))

    def _sent(self, post: Post) -> None:
        failpoint("post.acknowledged")
        now = time.monotonic()
        self.meters.bytes_out += len(post.payload)
        if post.since is not None:
            self.meters.receipt_seconds.observe(now - post.since)
        if post.withdraws is not None:
            self._keeper.withdrawn(post.withdraws, now)

    def _tell(self, event: str, **fields: Any) -> None:
        if self._listener is not None:
            self._listener({"event": event, "time": time.time(), **fields})


def sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error behind a group that a TaskGroup made of it; a lost connection counts once however many saw it."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        stack.extend(error.exceptions if isinstance(error, BaseExceptionGroup) else ())
        leaves += [] if isinstance(error, BaseExceptionGroup) else [error]
    others = [error for error in leaves if not isinstance(error, ConnectionLost)]
    if not others:
        return leaves[0]
    return others[0] if len(others) == 1 else group


def _asked(schema: Schema, moments: Mapping[str, int]) -> tuple[Moment, ...]:
    frozen = {tensor.name: tensor.size for tensor in schema.frozen}
    for name, channels in moments.items():
        for tensor in (f"{name}_mean", f"{name}_scale"):
            if frozen.get(tensor) != channels:
                raise ValueError(
                    f"statistics {name!r} of {channels} channels need a frozen tensor {tensor!r} of as many values: "
                    "add it to the model, with the role 'frozen'."
                )
    return tuple(Moment(name=name, channels=channels) for name, channels in moments.items())


def _check_statistics(moments: Mapping[str, int], strategy: Strategy, devices: int, factor: float | None) -> None:
    """See that statistics can be asked for as is said.

    Raises:
        ValueError: they cannot.
    """
    if moments and strategy.privacy is not None:
        raise ValueError(
            "A private strategy takes no moments=: the pooled statistics of the devices' data would be published "
            "without noise, and with two devices each learns the other's exactly. Freeze the constants yourself in "
            "initial=, or normalise on the devices."
        )
    if moments and devices < 2:
        raise ValueError(
            f"statistics_devices is {devices}: it must be 2 or more, for the statistics of one device would be "
            "published as they are."
        )
    if factor is not None and not factor > 1:
        raise ValueError(
            f"statistics_factor is {factor}: it must be above 1, or None to take devices that are far apart."
        )


def _named(schema: Schema, features: Sequence[str] | None) -> Sequence[str] | None:
    """The names of the model's inputs.

    Raises:
        ValueError: they cannot be those of this model.
    """
    if features is None:
        return None
    if isinstance(features, str):
        raise ValueError(f"features must be a list of names, such as [{features!r}], not one text.")  # noqa: TRY004
    if features and not sayable(features):
        raise ValueError(
            f"features names {listed(list(map(str, features)))}: at most {MOST} different names can be given, each of "
            f"at most {LONGEST} printable characters."
        )
    width = inputs_of(schema)
    if features and width not in (None, len(features)):
        raise ValueError(f"the model has {width} inputs, features names {len(features)}: {listed(features)}.")
    return tuple(features)
