"""Getting a model over connections that lose chunks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.broker.mqtt.connection import Connection, ConnectionLost, Options, PublishRefused, SubscribeRefused
from midge.iot_client.connection import model_fetcher as fetching
from midge.iot_client.connection.model_fetcher import Fetcher, FetchError
from midge.wire import frames, messages
from midge.wire.lineage import State, route
from midge.wire.messages import Announcement, Fetch, FrameInfo, Part
from tests.aggregator.rig import TOPICS, Rig, rig

pytestmark = pytest.mark.virtual

MODEL = {"x": np.sin(np.arange(8000, dtype=np.float32))}


class Reached:
    """A fetcher with its connection, and the aggregator's shelf at the same broker."""

    def __init__(self, twin: Twin, life: Rig, connection: Connection) -> None:
        self.twin, self.life, self.connection = twin, life, connection
        self.fetcher = Fetcher(TOPICS, "d")
        self.asked: list[Fetch] = []
        self.published = 0
        self.now = 0.0

    def publish(self, *, but: tuple[int, ...] = ()) -> None:
        """Bring to the broker what the aggregator has for it, but for some chunks of snapshots."""
        for post in self.life.posts[self.published :]:
            if not any(post.topic.endswith(f"/0-{index}") for index in but):
                self.twin.publish("aggregator", RoutedMessage(post.topic, post.payload, 1, post.retain))
        self.published = len(self.life.posts)

    @property
    def announcement(self) -> Announcement:
        return messages.decode_announcement(self.life.shelf.announcement().payload)

    def way(self, have: int | None = None) -> tuple[FrameInfo, ...]:
        way = route(self.announcement.frames, have, self.announcement.version)
        assert way is not None
        return way

    async def fetch(self, have: int | None = None, held: State | None = None) -> State:
        return await self.fetcher.fetch(self.connection, self.announcement, self.way(have), held)

    async def read(self) -> None:
        async for delivery in self.connection.messages():
            self.fetcher.deliver(delivery.topic, delivery.payload)
            self.connection.ack(delivery)

    async def answer(self, aggregator: Connection, *, willing: bool) -> None:
        async for delivery in aggregator.messages():
            aggregator.ack(delivery)
            asked, _ = messages.decode_update(delivery.payload)
            assert isinstance(asked, Fetch)
            self.asked.append(asked)
            if willing:
                self.now += 10.0  # who asks has waited for longer than a chunk is on its way
                self.life.hear((delivery.topic, delivery.payload), now=self.now)
                self.publish()


@asynccontextmanager
async def reached(directory: Path, *, willing: bool = True) -> AsyncIterator[Reached]:
    twin = Twin()
    with rig(directory, parameters=MODEL) as life:
        async with twin.connect(Options("d")) as connection, twin.connect(Options("aggregator")) as aggregator:
            await aggregator.subscribe(TOPICS.update("d"))
            it = Reached(twin, life, connection)
            tasks = asyncio.create_task(it.read()), asyncio.create_task(it.answer(aggregator, willing=willing))
            try:
                yield it
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.05)


async def test_a_snapshot_and_then_steps(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.publish()
        state = await it.fetch()
        assert state.digest() == it.life.model.state.digest()
        for seq in range(1, 4):
            it.life.send("a", seq, np.ones(8000, np.float32))
        it.publish()
        assert [frame.span for frame in it.way(1)] == [3]
        state = await it.fetch(1, state)
        assert state.digest() == it.life.model.state.digest()
        assert it.asked == []


async def test_what_the_broker_does_not_have_is_asked_for(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.publish(but=(2, 5))
        assert (await it.fetch()).digest() == it.life.model.state.digest()
        assert {(asked.version, asked.span) for asked in it.asked} == {(1, 0)}
        assert sorted(part for asked in it.asked for part in asked.parts) == [2, 5]


async def test_what_does_not_come_is_told_and_what_came_is_kept(tmp_path: Path) -> None:
    async with reached(tmp_path, willing=False) as it:
        it.publish(but=(2, 5))
        with pytest.raises(FetchError, match="chunks of the model do not come") as error:
            await it.fetch()
        assert error.value.start_over is False
        assert len(it.asked) == 1
        missing = list(it.life.shelf.again(1, 0, (2, 5)))
        subscribed: list[str] = []
        subscribe = it.connection.subscribe

        async def noted(*filters: str, qos: int = 1) -> None:
            subscribed.extend(filters)
            await subscribe(*filters)

        it.connection.subscribe = noted  # type: ignore[method-assign]
        it.life.posts = missing
        it.published = 0
        it.publish()
        assert (await it.fetch()).digest() == it.life.model.state.digest()
        assert subscribed == [TOPICS.part(1, 0, 2), TOPICS.part(1, 0, 5)]


async def test_two_stalls_are_two_reasons_to_ask(tmp_path: Path) -> None:
    """An aggregator that answers is asked again, later in the same fetch."""
    async with reached(tmp_path) as it:
        it.life.shelf.chunk = 400  # more than two windows
        it.life.posts = list(it.life.shelf.everything())
        it.publish(but=tuple(range(16)))
        assert (await it.fetch()).digest() == it.life.model.state.digest()
        assert len(it.asked) > 1
        assert sorted(part for asked in it.asked for part in asked.parts) == list(range(16))


async def test_fewer_chunks_at_once_where_the_broker_takes_few_subscriptions(tmp_path: Path) -> None:
    """Before, the first refused subscription ended the fetch, and the next one was refused too."""
    async with reached(tmp_path) as it:
        it.life.shelf.chunk = 400
        it.life.posts = list(it.life.shelf.everything())
        it.publish()
        held: set[str] = set()
        most = 0
        subscribe, unsubscribe = it.connection.subscribe, it.connection.unsubscribe

        async def few(*filters: str, qos: int = 1) -> None:
            nonlocal most
            if len(held | set(filters)) > 3:
                raise SubscribeRefused("quota exceeded")
            held.update(filters)
            most = max(most, len(held))
            await subscribe(*filters)

        async def fewer(*filters: str) -> None:
            held.difference_update(filters)
            await unsubscribe(*filters)

        it.connection.subscribe, it.connection.unsubscribe = few, fewer  # type: ignore[method-assign]
        assert (await it.fetch()).digest() == it.life.model.state.digest()
        assert most == 3
        assert held == set()


async def test_a_frame_that_is_cut_otherwise_than_before_is_fetched_anew(tmp_path: Path) -> None:
    async with reached(tmp_path, willing=False) as it:
        it.publish(but=(2,))
        with pytest.raises(FetchError):
            await it.fetch()
        it.life.shelf.chunk = 700  # the aggregator was restarted with other chunks
        it.life.posts, it.published = list(it.life.shelf.everything()), 0
        it.publish()
        assert (await it.fetch()).digest() == it.life.model.state.digest()


async def test_a_wrong_digest_means_to_start_over(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.publish()
        state = await it.fetch()
        it.life.send("a", 1, np.ones(8000, np.float32))
        it.publish()
        other = state.advance(np.ones(8000, np.int32))
        with pytest.raises(FetchError, match="digest") as error:
            await it.fetch(1, other)
        assert error.value.start_over is True
        assert (await it.fetch(1, state)).digest() == it.life.model.state.digest()


async def test_chunks_that_lie_do_no_harm(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.publish()
        topic = TOPICS.part(1, 0, 1)
        part, body = messages.decode(Part, next(iter(it.life.shelf.again(1, 0, (1,)))).payload)
        lies = [
            b"\xff\xff",
            frames.encode(part, body[:-1]),
            frames.encode(part.model_copy(update={"part": 2}), body),
            frames.encode(part.model_copy(update={"lineage": bytes(16)}), body),
            frames.encode(part.model_copy(update={"parts": 2**20}), body),
        ]
        for lie in lies:
            it.twin.publish("liar", RoutedMessage(topic, lie, 1, retain=True))
            assert (await it.fetch()).digest() == it.life.model.state.digest()
            assert it.asked.pop().parts == (1,)


async def test_a_frame_beyond_the_limit_is_not_begun(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.fetcher = Fetcher(TOPICS, "d", limit=1000)
        with pytest.raises(FetchError, match="over this device's limit"):
            await it.fetch()


@pytest.mark.parametrize("what", ["subscribe", "publish"])
async def test_what_the_broker_refuses_is_a_failed_fetch(tmp_path: Path, what: str) -> None:
    """Its rights may be taken away, and given again: nothing else ends, and it is fetched later."""
    refusal = {"subscribe": SubscribeRefused("refused"), "publish": PublishRefused("refused", 0x87)}[what]

    async def refuse(*_: object, **__: object) -> None:
        raise refusal

    async with reached(tmp_path) as it:
        it.publish(but=(2,))
        allowed = getattr(it.connection, what)
        setattr(it.connection, what, refuse)
        with pytest.raises(FetchError, match="refused") as error:
            await it.fetch()
        assert error.value.start_over is False
        setattr(it.connection, what, allowed)
        assert (await it.fetch()).digest() == it.life.model.state.digest()


async def test_a_lost_connection_is_told(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.publish(but=(0,))
        fetching_ = asyncio.create_task(it.fetch())
        await asyncio.sleep(0)
        it.twin.drop("d")
        with pytest.raises(ConnectionLost):
            await fetching_
