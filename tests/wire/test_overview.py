"""The answer to a look at a federation: in pages, bounded in bytes, and never made as a whole in memory."""

import itertools

from midge.wire import overview
from midge.wire.messages import AggregatorState, AggregatorStatus
from midge.wire.overview import MOST, ROWS, DeviceRow, Overview, decode_page, encode_pages

STATUS = AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=bytes(16))
ABOUT = Overview(status=STATUS, metrics={"accuracy": 0.5}, bytes_in=7, bytes_out=8)
LONG = {f"{number:02d}" * 32: 0.1 for number in range(32)}


def plain(number: int) -> DeviceRow:
    return DeviceRow(
        name=f"dev{number:06d}", state="training", heard=12.5, accepted=61.25, updates=900, version=12_345, holds=1
    )


def test_the_rows_of_a_hundred_thousand_devices_have_room() -> None:
    some = list(encode_pages(ABOUT, map(plain, range(2000)), 2000))
    read = [decode_page(page) for page in some]
    assert [header.page for header, _ in read] == list(range(10)) and {header.pages for header, _ in read} == {10}
    assert {(header.devices, header.left_out) for header, _ in read} == {(2000, 0)}
    about = [(header.metrics, header.bytes_in, header.bytes_out) for header, _ in read]
    assert about == [({"accuracy": 0.5}, 7, 8)] * 10
    assert [row.name for _, rows in read for row in rows] == [f"dev{number:06d}" for number in range(2000)]
    assert sum(map(len, some)) * 50 < MOST
    assert [decode_page(page)[1] for page in encode_pages(ABOUT, (), 0)] == [[]]


def test_what_has_no_room_is_counted_and_never_made() -> None:
    """Names of metrics are the devices' choice: 32 of 64 characters make a row forty times as long."""
    made = itertools.count()

    def row(number: int) -> DeviceRow:
        next(made)
        return plain(number).model_copy(update={"metrics": LONG})

    pages = list(encode_pages(ABOUT, map(row, range(100_000)), 100_000, most=2**21))
    assert sum(map(len, pages)) < 2**21 + len(pages) * 300
    headers = [decode_page(page)[0] for page in pages]
    assert {header.pages for header in headers} == {len(pages)}
    assert {header.devices + header.left_out for header in headers} == {100_000}
    assert next(made) <= headers[0].devices + ROWS
    assert overview.MOST == 32 * 2**20
