"""A device as a process: the session and the outbox, connected to MQTT and to a trainer.

One loop hands events to the session and does what it asks for, in order; fetching and training run beside it and come
back as events. What is stored is on disk before it is sent.
"""

import asyncio
import inspect
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from broker.connection import (
    BrokerError,
    BrokerRefused,
    Connection,
    ConnectionLost,
    Connector,
    Delivery,
    Options,
    PacketTooLarge,
    PublishRefused,
    QoS,
    SubscribeRefused,
    Will,
)
from iot_client import events as ev
from iot_client import session as s
from iot_client.attention import Attention
from iot_client.budget import Budget, Costs
from iot_client.duty import Cycle, Duty
from iot_client.evaluating import Evaluate, Evaluating
from iot_client.fetching import Fetcher, FetchError
from iot_client.fit import Fit, Parameters, TrainingKilled, TrainingPlan
from iot_client.hardware import capabilities as measured
from iot_client.hindrances import LOOK_EVERY, Condition, Hindrances
from iot_client.identity import Identity, Key
from iot_client.memory_outbox import AnyOutbox, outbox_at
from iot_client.outbox import OutboxFull
from iot_client.pacing import Speed
from iot_client.personal import Missing, Personal, Values
from iot_client.predicting import Model, Predict, Predicting
from iot_client.samples import Samples, Source
from iot_client.serving import OnModel, Serving
from iot_client.timers import PATIENCE
from iot_client.training import Made, TrainerError, Unfit, make_update
from iot_client.uplink import Uplink
from storage.failpoints import failpoint
from wire import chunks, frames, messages, sharing
from wire.errors import WireError
from wire.inputs import sayable
from wire.lineage import State
from wire.messages import AggregatorStatus, Announcement, Chunk, DeviceState, Hello, Plan, Statistics, Update, Verdict
from wire.moments import Moments
from wire.topics import DEFAULT_ROOT, Channel, Topics, check_name

log = logging.getLogger("iot_client")

Train = Callable[[Parameters, TrainingPlan], Fit | Awaitable[Fit]]
Listener = Callable[[dict[str, Any]], None]

T = TypeVar("T")

_OVERHEAD = 4096
"""Bytes of topic and headers around a body, generously: an update's header may tell 32 metrics."""
_NAMESAKE = 3.0
"""Seconds that a live device with our name has to say that it lives."""
_LARGE = 2**20
"""Bytes above which it is told how far something is."""
_NAP = 0.2
"""Seconds between two looks whether a device on duty may sleep."""
_CONNECTING = 12
"""Messages that a connection begins with, both ways."""
_GOODBYE = 2.0
"""Seconds that the broker has to acknowledge our last word."""


class Namesake(Exception):
    """Another live device has this name."""


class Device:
    """One participant of one federation. `run()` takes part until it is interrupted.

    Args:
        connector: how to reach the broker; `midge.Device` makes it from a URL.
        federation: the federation's name.
        name: the device's own name in it.
        train: called with all tensors by name and a plan, in a thread; returns a `Fit`. May be a coroutine function.
        outbox: the file that holds updates until they are settled; None keeps them in memory, for simulations, and so
            does an outbox that is given as such.
        root: the topic root.
        moments: statistics of the device's data by name, for the aggregator to pool; or a function that makes them.
        missing: how many missing values they leave out.
        capabilities: plain values for the status: what the device is, beside its cores, memory and speed.
        evaluate: called with all tensors by name, in a thread; returns `Scores` of the device's own held-out data.
        on_model: called with each model that is released for use, all tensors by name and its version, in a thread.
        local: first values of the tensors that stay on the device, or a function that makes them.
        predict: called by `predict` with all tensors of the newest verified model by name, and with what it was given.
        samples: rows of the device's data as they come, for `observe` and the trainer.
        features: what the inputs are called, in order; those of the samples by default. Where the federation's model
            has names too and they differ, the device does not train and says so.
        end_if_unsuited: end with an error where they differ from the first; for who named them on a command line.
        sources: what feeds the samples: each has a coroutine function `follow(samples)`.
        conditions: functions that say why the device should not train now, or None where it may.
        link_conditions: functions that say why it should not use its link for models and updates now, or None.
        duty: when the device wakes, where it sleeps most of the time.
        outbox_bytes: of updates that wait, from which on nothing is trained until one is settled; None sets no limit.
        costs: limits of what a month may cost, and what the device's work costs it.
        link: "narrow" where bytes are dear: the plan may have another codec for that.
        on_event: called with a dict for each event.
        keepalive: seconds between signs of life to the broker.
        patience: seconds before an update that was not answered is sent again; less and less often after that.
        release_key: the public key, a PEM file, that signs what the federation releases; or several. Then only what is
            signed, newer than what was seen before and not expired is believed, and updates are sealed to the
            aggregator where it says with which key. Without one the broker is believed.
        signing_key: the device's own private key, a PEM file, to sign what it sends: that of its certificate, or an
            Ed25519 key.
        look_every: seconds between two looks at the conditions, 5 by default; infinity leaves it to who calls `look`.
        versions: models by digest, of which devices in one process share each: it is looked at once a fetch is done.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        federation: str,
        name: str,
        train: Train,
        outbox: str | Path | AnyOutbox | None,
        root: str = DEFAULT_ROOT,
        moments: Mapping[str, Moments] | Callable[[], Mapping[str, Moments]] | None = None,
        missing: int = 0,
        capabilities: Mapping[str, str | int | float | bool] | None = None,
        evaluate: Evaluate | None = None,
        on_model: OnModel | None = None,
        local: Values | None = None,
        predict: Predict | None = None,
        samples: Samples | None = None,
        sources: Sequence[Source] = (),
        features: Sequence[str] | None = None,
        end_if_unsuited: bool = False,
        conditions: Sequence[Condition] = (),
        link_conditions: Sequence[Condition] = (),
        duty: Duty | None = None,
        costs: Costs | None = None,
        outbox_bytes: int | None = None,
        link: str | None = None,
        on_event: Listener | None = None,
        keepalive: int = 30,
        patience: float = PATIENCE,
        release_key: Key | Sequence[Key] | None = None,
        signing_key: Key | None = None,
        look_every: float | None = None,
        versions: MutableMapping[bytes, State] | None = None,
    ) -> None:
        self.name = check_name(name, "device name")
        if sources and samples is None:
            raise ValueError("Sources feed samples: give Device(samples=midge.Samples(…)) too.")
        if not callable(train):
            raise ValueError(f"train must be a function of (parameters, plan), not {type(train).__name__}.")  # noqa: TRY004
        self.topics = Topics(federation, root)
        self.connector = connector
        self._train = train
        self._outbox = outbox_at(outbox) if outbox is None or isinstance(outbox, str | Path) else outbox
        self._identity = Identity(self.topics, release_key=release_key, signing_key=signing_key)
        self._moments = moments
        self._missing = missing
        self._features = tuple(samples.features if features is None and samples is not None else features or ())
        self._end_if_unsuited = end_if_unsuited
        self._waits: str | None = None
        """What it was told last that the device waits for."""
        self._warned: str | None = None
        """Which statistics it was told last that the device does not give."""
        self._capabilities = dict(capabilities or {})
        self._link = link
        self._speed = Speed()
        self._evaluating = Evaluating(evaluate)
        self._local = local if local is not None else getattr(train, "local", None)
        self._costs = costs or Costs()
        self._withdrawn: str | None = None
        """What the aggregator said when it told us that we were withdrawn: from then on no work is done for nothing."""
        self._conditions, self._link_conditions = tuple(conditions), tuple(link_conditions)
        self._cycle = Cycle(duty)
        self._samples, self._sources = samples, tuple(sources)
        self._predict, self._on_model = predict, on_model
        used = on_model is not None or predict is not None
        self._serving = Serving(self.topics, self.name, self._served if used else None)
        self._remember()
        self._listener = on_event
        self._keepalive = keepalive
        self._patience = patience
        self._outbox_bytes = outbox_bytes
        self._look_every = look_every
        self._versions = versions
        self._stop = asyncio.Event()
        self._parting: asyncio.Future[DeviceState] | None = None
        """As what to part from the connection that stands; done where that is to be."""
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._made: dict[int, Made] = {}
        self._keys = count(1)
        self._fetcher = Fetcher(self.topics, self.name, progress=lambda done, total: self._show("down", done, total))
        self._uplink = Uplink(keepalive)
        self._shown: tuple[str, int, int] | None = None
        self._state: State | None = None
        self._connection: Connection | None = None
        self._attention = Attention()
        self._deaf: Connection | None = None
        """Over which we do not hear of new versions, for the while of a training."""
        self._fetching: asyncio.Task[None] | None = None
        self._training: asyncio.Task[None] | None = None
        self.bytes_up = 0
        """Payload bytes published so far."""
        self.bytes_down = 0
        """Payload bytes received so far."""
        self.killed = 0
        """Trainings whose process was killed so far."""

    def run(self) -> None:
        """Take part until interrupted."""
        asyncio.run(self.serve())

    def stop(self) -> None:
        """End `serve` cleanly. To be called in its loop."""
        self._stop.set()
        self.hang_up()

    def hang_up(self) -> None:
        """End the connection that stands, with a goodbye; the connector says when there is another. In its loop."""
        self._part(DeviceState.DISCONNECTED)

    def _part(self, state: DeviceState) -> None:
        if self._parting is not None and not self._parting.done():
            self._parting.set_result(state)

    def listen(self, listener: Listener) -> None:
        """Call a listener with a dict for each event, from now on."""
        self._listener = listener

    def rename(self, name: str) -> None:
        """Take another name, and with it an outbox beside the old one; before `serve`."""
        self.name = name
        path = self._outbox.path
        self._outbox = outbox_at(None if path is None else path.with_name(f"{name}.outbox"))
        self._fetcher = Fetcher(self.topics, name, progress=lambda done, total: self._show("down", done, total))
        self._serving = Serving(self.topics, name, self._serving.on_model)
        self._remember()

    def trust(self, release_key: Key | Sequence[Key] | None, signing_key: Key | None = None) -> None:
        """Believe, and sign with, other keys than were said at first; before `serve`.

        Raises:
            KeyUnusable: a key cannot be read.
        """
        self._identity = Identity(self.topics, release_key=release_key, signing_key=signing_key)

    def restrict(
        self,
        *,
        conditions: Sequence[Condition] = (),
        link_conditions: Sequence[Condition] = (),
        costs: Costs | None = None,
        duty: Duty | None = None,
    ) -> None:
        """Add conditions, and set other costs and duty where they are given; before `serve`."""
        self._conditions += tuple(conditions)
        self._link_conditions += tuple(link_conditions)
        self._costs = costs or self._costs
        if duty is not None:
            self._cycle = Cycle(duty)
        self._remember()

    @property
    def trainer(self) -> Train:
        """What trains."""
        return self._train

    def train_with(self, train: Train) -> None:
        """Train with another function than was said at first; before `serve`."""
        self._train = train

    def observe(self, x: Any, y: float | None = None) -> bool:
        """Keep a row of the device's data; whether it is worth keeping. From any thread; see `Samples.observe`."""
        if self._samples is None:
            raise ValueError("Say where rows are to be kept: Device(samples=midge.Samples(…)).")
        return self._samples.observe(x, y)

    def predict(self, x: Any) -> Any:
        """Predict with the newest verified model: that of the channel `serve`, or the newest fetched. From any thread.

        Raises:
            NoModel: there is none yet, or the device was not told how to predict.
        """
        return self._predicting(x)

    def _remember(self) -> None:
        """What is kept beside the outbox: our own tensors, the model in use, and what this month has cost."""
        path = self._outbox.path
        self._personal = Personal(None if path is None else path.with_name(f"{path.name}.local.npz"), self._local)
        self._budget = Budget(None if path is None else path.with_name(f"{path.name}.usage.json"), self._costs)
        self._hindrances = Hindrances(
            (self._cycle.condition, *self._conditions, lambda: self._withdrawn),
            self._budget,
            link_conditions=self._link_conditions,
        )
        kept = None if path is None else path.with_name(f"{path.name}.model")
        self._predicting = Predicting(kept, self._predict, self._personal.join)
        self._predicting.restore()

    @property
    def holding(self) -> int:
        """How many updates wait for their receipt."""
        return self._session.holding

    @property
    def next_seq(self) -> int:
        """The number that the next update will get."""
        return self._session.next

    # ------------------------------------------------------------------- serving

    async def serve(self) -> None:
        """Take part until `stop()`. Reconnects by itself, with growing, jittered pauses.

        Raises:
            OutboxError: the outbox cannot be used.
            BrokerError: the very first connection failed.
            Namesake: another live device has our name.
            TrainerError: the trainer returned what is no update.
            Exception: whatever the trainer raised.
        """
        with self._outbox:
            self._identity.begin(self.name, self._outbox)
            self._session = s.DeviceSession(
                self.name,
                self._outbox.identity,
                self._outbox.held(),
                self._outbox.next_seq,
                random.random,
                patience=self._patience,
                room=self._outbox_bytes,
                features=sayable(self._features),
                counted=self._counts_samples,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    acting = tasks.create_task(self._acting(), name="act")
                    beside = self._feed(tasks)
                    every = LOOK_EVERY if self._look_every is None else self._look_every
                    if every < math.inf:
                        beside.append(tasks.create_task(self._looking(every), name="look"))
                    await self._reconnecting()
                    for task in (acting, *beside):
                        task.cancel()
                    self._cancel_fetch()
                    if self._training is not None:
                        self._training.cancel()
            except BaseExceptionGroup as group:
                raise first_error(group) from None
            finally:
                if (end := getattr(self._train, "end_training", None)) is not None:
                    end()
                self._settle_down()
                if self._samples is not None:
                    self._samples.close()

    def _feed(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Have the sources feed the samples."""
        samples = self._samples
        return [] if samples is None else [tasks.create_task(each.follow(samples)) for each in self._sources]

    def _settle_down(self) -> None:
        """Write what was put off: the power may go."""
        self._personal.save()
        self._predicting.close()
        if self._samples is not None:
            self._samples.flush()
        self._count_wear()
        self._budget.save()

    def _count_wear(self) -> None:
        samples = 0 if self._samples is None else self._samples.written
        self._budget.wore(self._outbox.written + self._predicting.written + samples)

    async def _looking(self, every: float) -> None:
        """See now and then whether something of our own keeps us from training."""
        while True:
            if not self._cycle.asleep:
                self.look()
            await asyncio.sleep(every)

    def look(self) -> None:
        """See now whether something of our own keeps us from training. While `serve` runs, and in its loop."""
        announcement = self._session.announcement
        why = self._hindrances.found(None if announcement is None else announcement.participation)
        muted = self._hindrances.muted()
        unready = self._unready(announcement)
        self._count_wear()
        waits = self._session.unsuited or unready or why
        if waits != self._waits:
            self._waits = waits
            self._tell("hindered" if waits else "unhindered", why=waits or "")
            log.info("%s: %s", self.name, f"training waits: {waits}" if waits else "training goes on")
        if muted != self._session.muted:
            self._tell("muted" if muted else "unmuted", why=muted or "")
            self._serving.mute(muted is not None)
        if (why, muted, unready) != (self._session.hindered, self._session.muted, self._session.unready):
            self._events.put_nowait(ev.Hindered(why, muted, unready))

    @property
    def _counts_samples(self) -> bool:
        """Whether the statistics are those of the samples: then they have a channel for each feature."""
        return self._samples is not None and self._moments == self._samples.moments

    def _unready(self, announcement: Announcement | None) -> str | None:
        """Why statistics that are asked for are not worth sending yet: of a few rows, they would be chance."""
        if announcement is None or announcement.phase != "statistics" or not self._counts_samples:
            return None
        assert self._samples is not None
        return self._samples.scarce

    def _end_or_wait(self, why: str) -> None:
        """Our inputs are not the model's.

        Raises:
            TrainerError: that was so from the first, and the device was told to end then.
        """
        if self._end_if_unsuited and not self._session.suited:
            raise TrainerError(f"Device {self.name!r}: {why}.")
        log.warning("%s: no training: %s.", self.name, why)
        self.look()

    async def _reconnecting(self) -> None:
        pause, connected_before = 0.5, False
        self._cycle.wake(time.monotonic())
        while not self._stop.is_set():
            try:
                async with self.connector(self._options()) as connection:
                    await self._see_namesakes(connection)
                    connected_before, pause = True, 0.5
                    await self._serve(connection)
            except BrokerError as error:
                if isinstance(error, ConnectionLost):
                    if error.taken_over:
                        raise Namesake(
                            f"Another live device uses the outbox of {self.name!r}: never copy one to a second device."
                        ) from error
                elif not connected_before:
                    raise
                connected_before = True
                log.info("%s: %s Trying again in about %.0f s.", self.name, error, pause)
                self._tell("disconnected", why=str(error), refused=isinstance(error, BrokerRefused))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._away(pause)):
                        await self._stop.wait()
                pause = min(2 * pause, 60.0)
            if not self._stop.is_set() and (self._cycle.asleep or self._may_sleep(connected=False)):
                await self._sleep()
                pause = 0.5

    def _away(self, pause: float) -> float:
        """Seconds before the next attempt to connect, random: more in a large fleet, all of which may have lost it."""
        told = self._session.announcement
        spread = 0.0 if told is None else sharing.spread(told.byte_rate, told.devices, 0, _CONNECTING)
        return max(pause * random.uniform(0.5, 1.5), spread * random.random())  # noqa: S311 - spreads load

    def _may_sleep(self, *, connected: bool) -> bool:
        busy = self._session.work is s.Work.TRAINING
        at_rest = connected and self._session.at_rest and not self._serving.busy
        return self._cycle.over(time.monotonic(), at_rest=at_rest, busy=busy)

    async def _rest(self) -> None:
        """Part when the device may sleep."""
        while not self._may_sleep(connected=True):  # noqa: ASYNC110 - of many things, some of them times
            await asyncio.sleep(_NAP)
        self._part(DeviceState.SLEEPING)

    def _fall_asleep(self) -> float:
        """Seconds that it will sleep."""
        return self._cycle.sleep(time.monotonic(), time.time(), random.random())  # noqa: S311 - spreads load

    async def _sleep(self) -> None:
        """Sleep until the next waking; where the duty is to wake once, end."""
        seconds = max(0.0, self._cycle.wakes - time.time()) if self._cycle.asleep else self._fall_asleep()
        self._settle_down()
        self._tell("sleeping", wakes=self._cycle.wakes, seconds=seconds)
        if self._cycle.duty is not None and self._cycle.duty.once:
            self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if not self._stop.is_set():
            self._cycle.wake(time.monotonic())
            self.look()
            self._tell("awake")

    def _options(self) -> Options:
        will = Will(self.topics.status(self.name), self._identity.frame(self._hello(DeviceState.LOST)))
        identity = f"midge-{self.topics.federation}-{self.name}-{self._outbox.identity:016x}"
        return Options(client_id=identity, will=will, keepalive=self._keepalive)

    async def _see_namesakes(self, connection: Connection) -> None:
        """End with a sentence where a live device has our name: two would take each other's receipts.

        Our own JOINING comes back behind whatever is retained; a namesake that lives answers it.
        """
        topic = self.topics.status(self.name)
        await connection.subscribe(topic)
        await self._publish(connection, topic, self._identity.frame(self._hello(DeviceState.JOINING)))
        suspected, patience = False, _NAMESAKE
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                async for delivery in connection.messages():
                    self._count_down(delivery)
                    connection.ack(delivery)
                    hello = _hello_of(delivery.payload)
                    if hello is None:
                        continue
                    if hello.outbox == self._outbox.identity:
                        if hello.state is DeviceState.JOINING and not suspected:
                            return
                    elif hello.state.live and delivery.retain:
                        suspected = True
                    elif hello.state.live:
                        raise Namesake(
                            f"Another live device of federation {self.topics.federation!r} is named {self.name!r}: "
                            "give each device its own name, and never copy an outbox."
                        )

    async def _serve(self, connection: Connection) -> None:
        """Take part over one connection, until it is lost or we are to stop."""
        self._parting = asyncio.get_running_loop().create_future()
        reading = asyncio.create_task(self._read(connection))
        beside = [asyncio.create_task(self._serving.follow(connection))] if self._serving.wanted else []
        if self._cycle.duty is not None:
            beside.append(asyncio.create_task(self._rest()))
        if self._stop.is_set():
            self.hang_up()
        last = DeviceState.LOST
        try:
            either: set[asyncio.Future[Any]] = {reading, self._parting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading
            last = self._parting.result() if self._parting.done() else DeviceState.DISCONNECTED
            if last is DeviceState.SLEEPING:
                self._fall_asleep()
        finally:
            # Also where the trainer raised: an orderly end of the connection takes the Last Will back.
            self._connection = None
            self._uplink.lost()
            self._session.handle(ev.LinkMeasured(self._uplink.chunk), time.monotonic())
            self._events.put_nowait(ev.Disconnected())
            if not reading.done():
                await self._say_goodbye(connection, last)
            self._parting = None
            for task in (reading, *beside):
                task.cancel()
            await asyncio.gather(reading, *beside, return_exceptions=True)

    async def _say_goodbye(self, connection: Connection, state: DeviceState) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                goodbye = self._identity.frame(self._hello(state))
                await self._publish(connection, self.topics.status(self.name), goodbye, retain=True)

    async def _read(self, connection: Connection) -> None:
        await connection.subscribe(self.topics.aggregator, self.topics.receipt(self.name))
        await connection.subscribe(self.topics.announcement(), qos=0)
        if self._serving.wanted:
            await connection.subscribe(self.topics.announcement("serve"), qos=0)
        largest = connection.limits.maximum_packet_size
        self._connection = connection
        self._events.put_nowait(ev.Connected(None if largest is None else max(256, largest - _OVERHEAD)))
        self._tell("connected")
        async for delivery in connection.messages():
            self._count_down(delivery)
            try:
                self._deliver(delivery.topic, delivery.payload)
            except WireError as error:
                log.warning("%s: a message on %s was dropped: %s", self.name, delivery.topic, error)
            connection.ack(delivery)

    def _count_down(self, delivery: Delivery) -> None:
        self.bytes_down += len(delivery.payload)
        self._budget.spend(moved=len(delivery.payload))

    def _deliver(self, topic: str, payload: bytes) -> None:
        if self._fetcher.expects(topic):
            self._fetcher.deliver(topic, payload)
        elif self._serving.fetcher.expects(topic):
            self._serving.fetcher.deliver(topic, payload)
        elif not payload:
            pass  # a retained message was cleared
        elif topic == self.topics.announcement():
            self._events.put_nowait(ev.Announced(self._announcement(payload, "train")))
        elif topic == self.topics.announcement("serve"):
            self._serving.announced(self._announcement(payload, "serve"))
        elif topic == self.topics.receipt(self.name):
            self._events.put_nowait(ev.Receipted(self._identity.receipt(payload)))
        elif topic == self.topics.aggregator:
            self._events.put_nowait(ev.AggregatorSeen(messages.decode(AggregatorStatus, payload)[0]))
        elif topic == self.topics.status(self.name):
            hello, _ = messages.decode(Hello, payload)
            if hello.outbox != self._outbox.identity and hello.state is DeviceState.JOINING:
                self._send(topic, self._identity.frame(self._hello(DeviceState.READY)), retain=True)  # we live

    def _announcement(self, payload: bytes, channel: Channel) -> Announcement:
        """Read an announcement, and tell where it is not to be believed.

        Raises:
            WireError: it is not.
        """
        try:
            return self._identity.announcement(payload, channel, time.time(), time.monotonic())
        except WireError as error:
            self._tell("untrusted", channel=channel, why=str(error))
            raise

    # -------------------------------------------------------------------- acting

    async def _acting(self) -> None:
        """The session's own loop: one event at a time, and the passing of time."""
        while True:
            deadline = self._session.deadline
            event: ev.Event | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if deadline is None else self._at(deadline)):
                    event = await self._events.get()
            now = time.monotonic()
            self._act(self._session.tick(now) if event is None else self._session.handle(event, now))
            if isinstance(event, ev.Disconnected):
                self._cancel_fetch()

    @staticmethod
    def _at(deadline: float) -> float:
        return asyncio.get_running_loop().time() + max(0.0, deadline - time.monotonic())

    def _act(self, actions: list[ev.Action]) -> None:
        lost: int | None = None
        for action in actions:
            match action:
                case ev.Send(update) | ev.Offer(update) if update.seq == lost:
                    pass  # there was no room to store it, and what is not stored is not sent
                case ev.Unsuited(why):
                    self._end_or_wait(why)
                case ev.Greet():
                    status = self.topics.status(self.name)
                    self._send(status, self._identity.frame(self._hello(DeviceState.READY)), retain=True)
                case ev.ReadAnnouncement():
                    self._task(self._reread())
                case ev.SendStatistics(lineage, asked):
                    self._send_statistics(lineage, asked)
                case ev.Fetch(announcement, way):
                    self._fetching = self._task(self._fetch(announcement, way))
                case ev.Train(announcement, plan):
                    self._training = self._task(self._fit(announcement, plan))
                case ev.Store(update, key):
                    lost = None if self._store(update, self._made.pop(key)) else update.seq
                case ev.Send(update):
                    signed = self._identity.frame(update, self._outbox.body(update.seq))
                    self._send(self.topics.update(self.name), signed)
                    failpoint("update.handed_over")
                case ev.Offer(update):
                    self._send(self.topics.update(self.name), self._identity.frame(update))
                    failpoint("update.offered")
                case ev.SendChunks(update, parts):
                    self._send_chunks(update, parts)
                case ev.Forget(through):
                    self._forget(through)
                case ev.Renew(keep):
                    self._renew(keep)
                case ev.Tell(settled):
                    self._tell("receipt", outbox=self._outbox.identity, **settled.model_dump())
                    if settled.verdict is Verdict.FORGOTTEN:
                        self._withdrawn = settled.why
                        self.look()

    def _store(self, update: Update, made: Made) -> bool:
        try:
            self._outbox.store(update, made.body, made.residual)
            self._identity.stored(time.monotonic())
        except OutboxFull as error:
            log.warning("%s: %s An update is lost, and none is trained for a while.", self.name, error)
            self._tell("full", why=str(error))
            self._session.not_stored(time.monotonic())
            return False
        left = 0 if made.residual is None else len(made.residual)
        self._tell("stored", seq=update.seq, size=update.size, residual=left, written=self._outbox.written)
        return True

    def _forget(self, through: int) -> None:
        self._tell("settled", outbox=self._outbox.identity, through=through)
        failpoint("receipt.heard")
        try:
            self._outbox.forget(through)
        except OutboxFull as error:
            log.warning("%s: %s A settled update stays in it for now.", self.name, error)
        failpoint("receipt.followed")

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self._tasks.create_task(work)

    def _cancel_fetch(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            self._fetching = None

    def _renew(self, keep: tuple[int, ...]) -> None:
        log.warning(
            "%s: the aggregator has settled more than this outbox ever sent: it was put back from a copy. "
            "It goes on under a new identity.",
            self.name,
        )
        self._outbox.renew(keep)
        failpoint("outbox.renewed")
        self._tell("renewed", kept=len(keep))
        again = self._session.renewed(
            self._outbox.identity, self._outbox.held(), self._outbox.next_seq, time.monotonic()
        )
        self._act(again)

    # ---------------------------------------------------------------- publishing

    def _send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish in the order of the calls, without waiting; what is lost on the way, the session says again."""
        if self._connection is not None:
            self._task(self._publish(self._connection, topic, payload, retain=retain))

    async def _publish(self, connection: Connection, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Whether the broker has taken it."""
        self.bytes_up += len(payload)
        self._budget.spend(moved=len(payload))
        try:
            await connection.publish(topic, payload, qos=1, retain=retain)
            failpoint("publish.acknowledged")
        except ConnectionLost:
            pass  # the reader sees it too, and the session hears of it from there
        except (PublishRefused, PacketTooLarge) as error:
            log.warning("%s: %s", self.name, error)
            self._tell("refused", topic=topic, why=str(error))
        else:
            return True
        return False

    def _send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        size = chunks.part_size(update.size, update.parts)
        for part in parts:
            if part < update.parts and self._connection is not None:
                body = self._outbox.piece(update.seq, part * size, size)
                header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=part)
                self._task(self._send_chunk(self._connection, update, part, frames.encode(header, body)))
        failpoint("chunks.handed_over")

    async def _send_chunk(self, connection: Connection, update: Update, part: int, payload: bytes) -> None:
        self._uplink.published(part, len(payload), time.monotonic())
        if await self._publish(connection, self.topics.update(self.name), payload):
            now = time.monotonic()
            self._uplink.acknowledged(part, now)
            self._session.handle(ev.LinkMeasured(self._uplink.chunk), now)
            self._session.moved(now)
            done = min(update.size, (part + 1) * chunks.part_size(update.size, update.parts))
            self._show("up", done, update.size)

    def _show(self, way: str, done: int, total: int) -> None:
        """Tell how far something large is, twenty times in all."""
        if total > _LARGE and (step := (way, total, 20 * done // total)) != self._shown:
            self._shown = step
            self._tell("progress", way=way, done=done, total=total)

    def _send_statistics(self, lineage: bytes, asked: tuple[messages.Moment, ...]) -> None:
        if self._unready(self._session.announcement) is not None:
            self.look()
            return
        moments = self._moments() if callable(self._moments) else (self._moments or {})
        if not moments and callable(self._moments):
            return  # its first rows have not come yet
        wrong = [
            f"{moment.name} ({moment.channels} channels)"
            for moment in asked
            if moment.name not in moments or moments[moment.name].count.size != moment.channels
        ]
        if wrong:
            if self._warned != (said := ", ".join(wrong)):
                self._warned = said
                log.warning(
                    "%s: the federation asks for statistics that this device does not give: %s. Others' will be used.",
                    self.name,
                    said,
                )
            return
        header = Statistics(
            lineage=lineage,
            names=tuple((moment.name, moment.channels) for moment in asked),
            missing=self._missing,
        )
        body = b"".join(moments[moment.name].to_bytes() for moment in asked)
        header, body = self._identity.seal_statistics(header, body, self._session.announcement)
        self._send(self.topics.update(self.name), self._identity.frame(header, body))

    def _hello(self, state: DeviceState) -> Hello:
        target = self._session.announcement
        return Hello(
            state=state,
            outbox=self._session.outbox,
            first=self._session.first,
            next=self._session.next,
            lineage=None if target is None else target.lineage,
            generation=0 if target is None else target.generation,
            version=0 if target is None else target.version,
            wakes=self._cycle.wakes if state is DeviceState.SLEEPING else 0.0,
            capabilities={**measured(self._speed, self._link), **self._capabilities},
            features=sayable(self._features),
        )

    # ------------------------------------------------------------------ the work

    async def _reread(self) -> None:
        """Subscribing again makes the broker send what is retained again."""
        connection = self._connection
        if connection is not None:
            await self._hear(connection, self.topics.aggregator)
            if connection is not self._deaf:
                await self._hear(connection, self.topics.announcement(), qos=0)

    async def _turn_away(self, announcement: Announcement) -> None:
        """Hear of no new version while training, where many would come."""
        connection = self._connection
        if connection is not None and self._attention.turns_away(announcement):
            self._deaf = connection
            with suppress(ConnectionLost):
                await connection.unsubscribe(self.topics.announcement())

    async def _turn_back(self, turning: asyncio.Task[None]) -> None:
        """Hear of the newest version at once, for it is retained."""
        await turning
        connection, self._deaf = self._deaf, None
        if connection is not None and connection is self._connection:
            await self._hear(connection, self.topics.announcement(), qos=0)

    async def _hear(self, connection: Connection, topic: str, *, qos: QoS = 1) -> None:
        """Subscribe over a connection that stands. Rights may have been taken away, and may be given again."""
        try:
            await connection.subscribe(topic, qos=qos)
        except ConnectionLost:
            pass  # the reader sees it too
        except SubscribeRefused as error:
            log.warning("%s: %s", self.name, error)
            self._tell("refused", topic=topic, why=str(error))

    async def _fetch(self, announcement: Announcement, way: tuple[messages.FrameInfo, ...]) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            state = await self._fetcher.fetch(connection, announcement, way, self._state)
        except ConnectionLost:
            return  # the session hears of it from the reader
        except FetchError as error:
            log.info("%s: %s", self.name, error)
            self._tell("fetch_failed", why=str(error))
            self._events.put_nowait(ev.FetchFailed(str(error), error.start_over))
            return
        self._state = state if self._versions is None else self._versions.setdefault(announcement.digest, state)
        failpoint("model.fetched")
        self._events.put_nowait(ev.Fetched(ev.Base.of(announcement)))
        if self._predict is not None and self._state is not None:
            model = Model("train", announcement.lineage, announcement.version, self._state)
            with suppress(Missing):  # the training says so, in more words
                await asyncio.to_thread(self._predicting.take, model, time.monotonic())

    def _served(self, parameters: Parameters, version: int) -> None:
        """A model was released for use."""
        if self._predict is not None and self._serving.state is not None:
            model = Model("serve", self._serving.lineage, version, self._serving.state)
            self._predicting.take(model, time.monotonic())
        if self._on_model is not None:
            self._on_model(parameters, version)

    async def _fit(self, announcement: Announcement, plan: Plan) -> None:
        assert self._state is not None
        self._tell("training", version=announcement.version)
        state = self._state
        try:
            parameters = self._personal.join(state.parameters(), state.schema)
        except Missing as error:
            raise TrainerError(f"Device {self.name!r}: {error}") from error
        await self._report(parameters, announcement)
        turning = self._task(self._turn_away(announcement))
        started = time.monotonic()
        try:
            fit = await self._trained(parameters, self._speed.paced(plan))
        except TrainingKilled as error:
            self._task(self._turn_back(turning))
            self._killed(str(error))
            return
        finally:
            seconds = time.monotonic() - started
            self._budget.spend(trained=seconds)
            self._cycle.trained(time.monotonic())
            self.look()
        self._task(self._turn_back(turning))
        self._speed.saw(fit.steps, fit.steps * (plan.batch_size or 1), seconds)
        self._personal.keep(fit.parameters, state.schema, started)
        self._predicting.refresh()
        try:
            left = self._outbox.residual()
            made: Made = await asyncio.to_thread(
                make_update, fit, state, announcement, seconds, left=left, seed=plan.seed, narrow=self._link == "narrow"
            )
            if self._identity.seals(announcement):
                made = await asyncio.to_thread(self._identity.seal, made, announcement)
        except Unfit as error:
            log.warning("%s: nothing is sent: %s", self.name, error)
            self._tell("unfit", why=str(error))
            self._events.put_nowait(ev.NothingToSend(str(error)))
            return
        except TrainerError as error:
            raise TrainerError(f"Device {self.name!r}: {error}") from error
        key = next(self._keys)
        self._made[key] = made
        self._tell("trained", version=announcement.version, seconds=seconds)
        failpoint("update.trained")
        self._events.put_nowait(ev.Trained(made.update, key))

    def _killed(self, why: str) -> None:
        """What the training was at is lost, and nothing else."""
        self.killed += 1
        log.warning("%s: %s; it is tried again after a while.", self.name, why)
        self._tell("killed_training", why=why, killed=self.killed)
        self._events.put_nowait(ev.Killed(why))

    async def _report(self, parameters: Parameters, announcement: Announcement) -> None:
        """Evaluate on our own data, where it is time for that, and tell the numbers."""
        try:
            report = await self._evaluating.report(parameters, announcement, time.monotonic())
        except Exception as error:
            error.add_note(f"(raised by evaluate() of device {self.name!r})")
            raise
        if report is not None:
            self._tell("evaluated", version=report.version, examples=report.examples, metrics=dict(report.metrics))
            self._send(self.topics.report(self.name), self._identity.frame(report))

    async def _trained(self, parameters: Parameters, plan: Plan) -> Fit:
        """What the trainer makes of it; an error of its own is raised as it is, with the device's name."""
        try:
            if inspect.iscoroutinefunction(self._train):
                fit = await self._train(parameters, plan)
            else:
                fit = await asyncio.to_thread(self._train, parameters, plan)
        except Exception as error:
            error.add_note(f"(raised by train() of device {self.name!r})")
            raise
        if not isinstance(fit, Fit):
            raise TrainerError(
                f"Device {self.name!r}: train() returned {type(fit).__name__}; "
                "it must return midge.Fit(parameters, examples=n)."
            )
        return fit

    def _tell(self, event: str, **fields: Any) -> None:
        if self._listener is not None:
            self._listener({"event": event, "device": self.name, "time": time.time(), **fields})


def _hello_of(payload: bytes) -> Hello | None:
    with suppress(WireError):
        return messages.decode(Hello, payload)[0]
    return None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error behind a group that a TaskGroup made of it; one of the broker only where there is no other."""
    _, others = group.split(BrokerError)
    error: BaseException = others or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
