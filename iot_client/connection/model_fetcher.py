"""Fetching a model: frames in chunks from retained topics, reassembled, applied, and verified by digest.

Chunks are requested by exact topics, a few at a time, never by wildcard: a wildcard on a slow or breaking link fills
the broker's queue for us, and what does not fit there is dropped silently.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from midge.broker.mqtt.connection import Connection, ConnectionLost, PublishRefused, SubscribeRefused
from midge.wire import frames, lineage, messages, sharing
from midge.wire.chunks import Assembly, part_size
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import Announcement, FrameInfo, Part
from midge.wire.topics import Frames, Topics

WINDOW = 8
"""Most chunks that are requested at once; it begins with two, and adapts to how many arrive within `PATIENCE`."""
PATIENCE = 5.0
"""Seconds without any chunk before the aggregator is asked for the missing ones; up to `LONGEST` on a slow link."""
LONGEST = 120.0


class FetchError(Exception):
    """The model could not be fetched; with `start_over`, the held model is useless too."""

    def __init__(self, message: str, *, start_over: bool = False) -> None:
        super().__init__(message)
        self.start_over = start_over


class Fetcher:
    """The fetches of one device. Every message on a chunk topic must be passed to `deliver`."""

    def __init__(
        self,
        topics: Topics,
        device: str,
        *,
        channel: Frames = "train",
        limit: int = 2**30,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        finished: Callable[[FrameInfo, memoryview], None] = lambda _frame, _data: None,
    ) -> None:
        self._topics, self._device, self._channel = topics, device, channel
        self._progress = progress
        """Called with the number of bytes received, and of all requested ones."""
        self._finished = finished
        """Called with each fetched frame, in a thread."""
        self._window, self._patience = 2, PATIENCE
        self._most = WINDOW
        """Most chunks that are requested at once; fewer where the broker takes fewer subscriptions."""
        self._limit = limit
        """Most bytes of a frame that is accepted."""
        self._expected: dict[str, tuple[FrameInfo, int]] = {}
        self._assemblies: dict[tuple[int, int], Assembly] = {}
        self._announcement: Announcement | None = None
        self._arrival: asyncio.Event | None = None
        """Set on each arrival during a fetch; None otherwise."""
        self._next_at = 0.0
        """When more may be requested, by the loop's clock."""

    def expects(self, topic: str) -> bool:
        return topic in self._expected

    def deliver(self, topic: str, payload: bytes) -> None:
        """Process a chunk; an invalid one is treated as missing."""
        frame, index = self._expected.get(topic, (None, 0))
        if frame is None or self._announcement is None or not payload:
            return
        with suppress(WireError):
            part, body = messages.decode(Part, payload)
            wanted = (self._announcement.lineage, frame.version, frame.span, index, frame.parts)
            if (part.lineage, part.version, part.span, part.part, part.parts) != wanted:
                return
            assembly = self._assemblies.get((frame.version, frame.span))
            if assembly is None:
                size = part_size(frame.size, frame.parts)
                assembly = Assembly(frame.size, size, part.sha256, limit=self._limit)
                self._assemblies[frame.version, frame.span] = assembly
            assembly.add(index, body)
            if self._arrival is not None:
                self._arrival.set()

    async def fetch(
        self, connection: Connection, announcement: Announcement, way: Sequence[FrameInfo], held: State | None
    ) -> State:
        """Fetch the frames and return the resulting state.

        Raises:
            FetchError: a chunk is missing, or the result does not have the announced digest.
            ConnectionLost: the connection ended; received chunks are kept and not requested again.
        """
        if self._announcement is None or self._announcement.lineage != announcement.lineage:
            self._assemblies.clear()
        self._announcement = announcement
        cut = {(frame.version, frame.span): (frame.size, frame.parts) for frame in way}
        self._assemblies = {
            name: assembly
            for name, assembly in self._assemblies.items()
            if cut.get(name) == (assembly.size, assembly.parts)  # otherwise not needed, or cut differently since
        }
        for frame in way:
            if frame.size > self._limit:
                raise FetchError(f"a frame of {frame.size} bytes is over this device's limit of {self._limit}")
        await self._collect(connection, way)
        try:
            return await asyncio.to_thread(self._apply, announcement, way, held)
        except WireError as error:
            raise FetchError(f"what was fetched cannot be used: {error}", start_over=True) from error
        finally:
            self._assemblies.clear()

    async def _collect(self, connection: Connection, way: Sequence[FrameInfo]) -> None:
        waiting = [(frame, index) for frame in way for index in range(frame.parts) if self._misses(frame, index)]
        waiting.reverse()
        asked: set[str] = set()
        self._arrival = asyncio.Event()
        try:
            while waiting or self._expected:
                new = [waiting.pop() for _ in range(min(self._window - len(self._expected), len(waiting)))]
                topics = {self._topic(frame, index): (frame, index) for frame, index in new}
                if topics:
                    await self._keep_pace(sum(part_size(frame.size, frame.parts) for frame, _ in new))
                    self._expected |= topics
                    # A packet each: a broker with one thread copies everything that one packet requests before it
                    # serves others.
                    answers = (connection.subscribe(topic, qos=1) for topic in topics)
                    said = await asyncio.gather(*answers, return_exceptions=True)
                    waiting += self._refused(dict(zip(topics, said, strict=True)))
                began = asyncio.get_running_loop().time()
                came = await self._arrived()
                self._adapt(len(came), asyncio.get_running_loop().time() - began)
                if came:
                    self._progress(sum(map(self._here, way)), sum(frame.size for frame in way))
                    for topic in came:
                        del self._expected[topic]
                    await connection.unsubscribe(*came)
                elif asked >= self._expected.keys():
                    raise FetchError(f"{len(self._expected) + len(waiting)} chunks of the model do not come")
                else:
                    asked |= self._expected.keys()
                    await self._ask(connection)
        finally:
            left = list(self._expected)
            self._expected.clear()
            self._arrival = None
            if left:
                with suppress(ConnectionLost):
                    await connection.unsubscribe(*left)

    def _refused(self, said: Mapping[str, BaseException | None]) -> list[tuple[FrameInfo, int]]:
        """Chunks to request later, because the broker takes no further subscriptions; from now on fewer at once.

        Raises:
            FetchError: it takes none at all.
        """
        refused = {topic: error for topic, error in said.items() if isinstance(error, SubscribeRefused)}
        for error in said.values():
            if error is not None and not isinstance(error, SubscribeRefused):
                raise error
        later = [self._expected.pop(topic) for topic in refused]
        if refused:
            self._most = self._window = max(1, len(self._expected))
            if not self._expected:
                raise FetchError(str(next(iter(refused.values()))))
        return later

    async def _keep_pace(self, size: int) -> None:
        """Wait until `size` more bytes may be requested: one device must not use the whole fleet's rate."""
        assert self._announcement is not None
        loop = asyncio.get_running_loop()
        began = max(self._next_at, loop.time())
        self._next_at = began + size / sharing.pace(self._announcement.byte_rate, self._announcement.devices)
        if began > loop.time():
            await asyncio.sleep(began - loop.time())

    def _topic(self, frame: FrameInfo, index: int) -> str:
        return self._topics.part(frame.version, frame.span, index, self._channel)

    def _misses(self, frame: FrameInfo, index: int) -> bool:
        assembly = self._assemblies.get((frame.version, frame.span))
        return assembly is None or assembly.misses(index)

    def _here(self, frame: FrameInfo) -> int:
        assembly = self._assemblies.get((frame.version, frame.span))
        return 0 if assembly is None else assembly.received

    def _adapt(self, came: int, seconds: float) -> None:
        """Adapt the window to the measured rate; a longer wait on slow links avoids duplicates."""
        if not came:
            self._window, self._patience = max(1, self._window // 2), min(2 * self._patience, LONGEST)
            return
        each = seconds / came
        self._window = (
            min(self._most, self._window + came) if self._window * each < PATIENCE else max(1, self._window - 1)
        )
        self._patience = min(max(PATIENCE, 4 * each * self._window), LONGEST)

    async def _arrived(self) -> list[str]:
        """Topics whose chunks have arrived; none if nothing arrived for a while."""
        assert self._arrival is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while True:
                    came = [topic for topic, (frame, index) in self._expected.items() if not self._misses(frame, index)]
                    if came:
                        return came
                    self._arrival.clear()
                    await self._arrival.wait()
        return []

    async def _ask(self, connection: Connection) -> None:
        """Ask the aggregator for chunks that the broker does not have: it retains nothing, or was restarted."""
        assert self._announcement is not None
        missing: dict[tuple[int, int], list[int]] = {}
        for frame, index in self._expected.values():
            missing.setdefault((frame.version, frame.span), []).append(index)
        for (version, span), parts in missing.items():
            asking = messages.Fetch(
                lineage=self._announcement.lineage,
                version=version,
                span=span,
                parts=tuple(sorted(parts)),
                channel=self._channel,
            )
            try:
                await connection.publish(self._topics.update(self._device), frames.encode(asking), qos=1)
            except PublishRefused as error:
                raise FetchError(str(error)) from error

    async def frame(self, connection: Connection, announcement: Announcement, frame: FrameInfo) -> bytes:
        """Fetch one frame as it is, without applying it.

        Raises:
            FetchError: a chunk is missing.
            WireError: the chunks are not of one frame.
            ConnectionLost: the connection ended.
        """
        self._announcement = announcement
        self._assemblies.clear()
        await self._collect(connection, (frame,))
        return bytes(self._assemblies[frame.version, frame.span].finish())

    def _finish(self, frame: FrameInfo) -> memoryview:
        data = self._assemblies[frame.version, frame.span].finish()
        self._finished(frame, data)
        return data

    def _apply(self, announcement: Announcement, way: Sequence[FrameInfo], state: State | None) -> State:
        state = lineage.follow(way, self._finish, state)
        if state is None or state.schema.hash != announcement.schema_hash or state.digest() != announcement.digest:
            raise WireError("the model's digest is not the announced one")
        return state
