"""Publishing of the federation's versions at a site: announcements and frames are passed on byte for byte."""

import math
from collections.abc import Callable, Iterator, Sequence

from midge.aggregator.model.model import Frame
from midge.aggregator.publish.model_publisher import ModelPublisher
from midge.aggregator.publish.publish_queue import Post
from midge.wire import messages
from midge.wire.messages import Announcement, FrameInfo
from midge.wire.topics import Frames


class RelayPublisher(ModelPublisher):
    """A publisher whose frames and announcement are those of the federation above."""

    want: Callable[[FrameInfo], None] = staticmethod(lambda _frame: None)
    """Asks for a frame that is announced and not here."""
    _read: tuple[bytes, Announcement] | None = None

    @property
    def announced(self) -> Announcement | None:
        """The announcement that was passed on last; None before the first."""
        envelope = self.core.site.envelope
        if not envelope:
            return None
        if self._read is None or self._read[0] is not envelope:
            self._read = envelope, messages.decode_announcement(envelope)
        return self._read[1]

    def lacking(self, frames: Sequence[FrameInfo]) -> list[FrameInfo]:
        """Those that are not in the store."""
        return [frame for frame in frames if self._engine.store.frame(frame.version, frame.span) is None]

    def passed_on(self, new: Sequence[FrameInfo], now: float) -> Iterator[Post]:
        """The posts of a version: its new frames, the announcement, and the removal of expired frames."""
        self._now = now
        self._on_offer = None
        for info in new:
            if (data := self._engine.store.frame(info.version, info.span)) is not None:
                yield from self._parts(Frame(info.version, info.span, data))
        yield self.announcement()
        yield from self._clear(now)

    def announcement(self) -> Post:
        """The announcement, with the signatures that it came with."""
        return Post(self._topics.announcement(), self.core.site.envelope)

    def everything(self) -> Iterator[Post]:
        """All messages that must be retained."""
        if self.announced is not None:
            yield from self.passed_on(self._offered(), math.inf)

    def recut(self) -> Iterator[Post]:
        """Nothing: the announcement, which is signed above, says how frames are cut."""
        yield from ()

    def reissued(self, channel: Frames) -> Iterator[Post]:  # noqa: ARG002 - as a publisher's
        """Nothing: the federation's aggregator dates its announcements."""
        yield from ()

    def missed(self, version: int, span: int, parts: Sequence[int], now: float) -> Iterator[tuple[int, int]]:
        """As for an aggregator; a frame that is announced and was never here is fetched from above."""
        for frame in self.lacking(
            [frame for frame in self._offered() if (frame.version, frame.span) == (version, span)]
        ):
            self.want(frame)
        yield from super().missed(version, span, parts, now)

    def _count(self, size: int) -> int:
        return next((frame.parts for frame in self._offered() if frame.size == size), super()._count(size))

    def _offered(self) -> list[FrameInfo]:
        announced = self.announced
        return [] if announced is None else list(announced.frames)
