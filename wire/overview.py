"""What an aggregator answers to a look at its federation: its status, and a row for each device, in pages."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field

from midge.wire import frames, signing
from midge.wire.errors import WireError
from midge.wire.messages import U32, U63, AggregatorStatus, Message, Metrics, Sentence, Word

ROWS = 200
"""Rows of a page: about 32 KiB, which every broker takes."""

MOST = 32 * 2**20
"""Bytes of rows in an answer: those of 200,000 devices as they are, and not of as many with long names of metrics."""

Age = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Seconds ago, by the aggregator's monotonic clock: whoever asks needs no clock that agrees with it."""


class Ask(Message):
    """What an operator wants of the aggregator: an overview, and what some devices said taken off the broker."""

    kind: Literal["ask"] = "ask"
    gone: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    """Devices that were revoked: their last status would stand for ever, for they cannot take it back."""
    revoked: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    """Devices whose waiting updates are to be dropped, and from which nothing is taken any more. Followed only if a
    release key signed it: whoever may ask for an overview could throw others' work away otherwise."""


class DeviceRow(Message):
    """One device, as its aggregator knows it since it was started."""

    name: Word
    state: Word
    """What the device said last, or `unknown`; `withdrawn` and `silent` are the aggregator's words."""
    heard: Age | None = None
    """Since its last message."""
    accepted: Age | None = None
    """Since its last update that was accepted."""
    updates: U63 = 0
    """Updates accepted."""
    refused: U63 = 0
    """Updates refused since the last one that was accepted."""
    verdict: Word = ""
    """Of the last one of these."""
    why: Sentence = ""
    """Why it was refused, why nothing is taken from the device, or what the device waits for."""
    version: U63 = 0
    """The newest version that the device is known to have."""
    behind: U63 = 0
    """Versions between it and the newest."""
    holds: U63 = 0
    """Updates in its outbox, as it said last."""
    wakes: Age = 0.0
    """Seconds since 1970, by the device's clock, at which one that sleeps wakes."""
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """What it found last on its own data."""
    metrics_version: U63 = 0
    """With which version."""


class Overview(Message):
    """One page of the answer. The body holds the rows."""

    kind: Literal["overview"] = "overview"
    status: AggregatorStatus
    page: U32 = 0
    pages: Annotated[int, Field(ge=1, le=2**20)] = 1
    """A page that is lost is one of the next answer."""
    devices: U32 = 0
    """Rows in all pages."""
    left_out: U32 = 0
    """Devices without a row: with them the answer would be too large."""


def encode_pages(
    status: AggregatorStatus, rows: Iterable[DeviceRow], devices: int, *, most: int = MOST
) -> Iterator[bytes]:
    """The answer as messages of at most `ROWS` rows each, and of `most` bytes of rows: the first of as many devices."""
    bodies: list[bytes] = []
    count = size = 0
    for some in _by_page(rows):
        body = frames.pack([row.model_dump(exclude_defaults=True) for row in some])
        size += len(body)
        if size > most:
            break
        bodies.append(body)
        count += len(some)
    for page, body in enumerate(bodies or [frames.pack([])]):
        header = Overview(
            status=status, page=page, pages=max(1, len(bodies)), devices=count, left_out=max(0, devices - count)
        )
        yield frames.encode(header, body)


def _by_page(rows: Iterable[DeviceRow]) -> Iterator[tuple[DeviceRow, ...]]:
    """Rows by pages, none made before its page is."""
    iterator = iter(rows)
    while some := tuple(islice(iterator, ROWS)):
        yield some


def decode_ask(payload: frames.Buffer) -> Ask:
    """Read a question; whatever is none asks for an overview only."""
    with suppress(WireError):
        fields, _ = frames.decode(payload)
        if fields.get("kind") == "ask":
            return frames.validate(Ask, fields)
    return Ask()


def revoking(key: signing.PrivateKey, federation: str, names: Sequence[str]) -> bytes:
    """The word of a release key that these devices are revoked."""
    head = frames.encode(Ask(gone=tuple(names), revoked=tuple(names)))
    return signing.sign_frame(key, signing.OPERATOR, federation, head)


def decode_page(payload: frames.Buffer) -> tuple[Overview, list[DeviceRow]]:
    """Read one page.

    Raises:
        WireError: it is none.
    """
    fields, body = frames.decode(payload)
    if fields.get("kind") != "overview":
        raise WireError("no overview")
    header = frames.validate(Overview, fields)
    rows: Any = frames.unpack(body, items=frames.MAX_ITEMS)
    if not isinstance(rows, tuple) or not all(isinstance(row, dict) for row in rows):
        raise WireError("an overview's body is no list of rows")
    return header, [frames.validate(DeviceRow, row) for row in rows]
