"""An overview of a federation, as its aggregator sends it: its status, and a row for each device, in pages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from midge.wire import frames, signing
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorStatus, Message
from midge.wire.messages.fields import U32, U63, Metrics, Sentence, Word
from midge.wire.standby import StandbyState

ROWS = 200
"""Rows of a page: about 32 KiB, which every broker takes."""

MOST = 32 * 2**20
"""Most bytes of rows in an answer: enough for 200,000 devices, fewer if their metrics have long names."""

Age = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Seconds ago, by the aggregator's monotonic clock, so that the reader's clock does not matter."""


class Ask(Message):
    """An operator's request: an overview, and removal of some devices' retained messages and queued updates."""

    kind: Literal["ask"] = "ask"
    gone: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    """Revoked devices, whose last retained status must be removed for them."""
    revoked: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    """Devices whose waiting updates shall be dropped and whose messages shall be ignored from now on. Obeyed only if a
    release key signed it: otherwise anyone who may ask for an overview could discard others' work."""
    order: Annotated[bytes, Field(max_length=4096)] = b""
    """An order about registered versions, as JSON. Obeyed only if a release key signed it, and only while it is fresh.
    """


class DeviceRow(Message):
    """One device, as its aggregator has seen it since it started."""

    name: Word
    state: Word
    """The device's last reported state, or the aggregator's: `withdrawn`, `silent`, `unconfirmed` or `unknown`."""
    heard: Age | None = None
    """Age of its last message."""
    accepted: Age | None = None
    """Age of its last accepted update."""
    updates: U63 = 0
    """Updates accepted."""
    refused: U63 = 0
    """Updates refused since the last accepted one."""
    verdict: Word = ""
    """Verdict on the last of the refused updates."""
    why: Sentence = ""
    """Why it was refused, why the device's messages are ignored, or what the device waits for."""
    version: U63 = 0
    """The newest version that the device is known to have."""
    behind: U63 = 0
    """Versions between it and the newest."""
    holds: U63 = 0
    """Updates in its outbox, as last reported."""
    wakes: Age = 0.0
    """Seconds since 1970, by the device's clock, at which a sleeping device wakes."""
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """Its newest results on its own data."""
    metrics_version: U63 = 0
    """The version that they were measured with."""
    keeps: U63 = 0
    """The version that it goes on using, because a newer one is worse on its own rows; 0 if it keeps none."""
    reported: U32 = 0
    """Of a gateway: the number of its devices of whose results the metrics are the means; 0 is a device."""
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """ε that it has spent of its privacy budget; nil if the strategy is not private."""


class Overview(Message):
    """One page of the answer. The body holds the rows."""

    kind: Literal["overview"] = "overview"
    status: AggregatorStatus
    page: U32 = 0
    pages: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Number of pages in the answer. A lost page is not repeated: ask again."""
    devices: U32 = 0
    """Rows in all pages."""
    left_out: U32 = 0
    """Devices without a row, because the answer would be too large."""
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """Newest results of the aggregator's own evaluation."""
    metrics_version: U63 = 0
    """The version that they are of."""
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 by the aggregator's clock when the answer was made; 0 from an earlier version."""
    bytes_in: U63 = 0
    """Payload bytes from devices since the aggregator's start."""
    bytes_out: U63 = 0
    """Payload bytes published since then."""
    privacy: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """What the devices of a private federation have spent, by name: `budget` and `worst` (the ε of each device, and the
    largest spent one), `delta`, `accounts` (devices that have spent any), `exhausted` (devices that may give nothing
    more), `bare` (the last step without noise, whose work no figure covers; 0 if there is none)."""
    standby: StandbyState | None = None
    """The standby; nil if no release key allows one."""


def spread_of_sites(results: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Each metric by name: `least`, `median` and `largest` over the sites' results, and the number of `sites`."""
    values: dict[str, list[float]] = {}
    for metrics in results:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    return {
        name: {"least": min(each), "median": median(each), "largest": max(each), "sites": len(each)}
        for name, each in sorted(values.items())
    }


def encode_pages(about: Overview, rows: Iterable[DeviceRow], devices: int, *, most: int = MOST) -> Iterator[bytes]:
    """The answer as messages of at most `ROWS` rows each; devices beyond `most` bytes of rows are left out.

    `about` has the fields of the header that are the same on all pages.
    """
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
        numbers = {"page": page, "pages": max(1, len(bodies)), "devices": count, "left_out": max(0, devices - count)}
        header = about.model_copy(update=numbers)
        yield frames.encode(header, body)


def _by_page(rows: Iterable[DeviceRow]) -> Iterator[tuple[DeviceRow, ...]]:
    """Rows by page, made lazily."""
    iterator = iter(rows)
    while some := tuple(islice(iterator, ROWS)):
        yield some


def decode_ask(payload: frames.Buffer) -> Ask:
    """Read a request; an invalid one asks for an overview only."""
    with suppress(WireError):
        fields, _ = frames.decode(payload)
        if fields.get("kind") == "ask":
            return frames.validate(Ask, fields)
    return Ask()


def revoking(key: signing.PrivateKey, federation: str, names: Sequence[str]) -> bytes:
    """A message signed by a release key that these devices are revoked."""
    head = frames.encode(Ask(gone=tuple(names), revoked=tuple(names)))
    return signing.sign_frame(key, signing.OPERATOR, federation, head)


def ordering(key: signing.PrivateKey, federation: str, order: bytes) -> bytes:
    """An order about registered versions, signed by a release key."""
    return signing.sign_frame(key, signing.OPERATOR, federation, frames.encode(Ask(order=order)))


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
