"""Data as loggers and sensors in the field write them: read rightly, or left out and said; nothing ends the device.

Each test was seen to fail before its mend: rows that were dropped, swapped or half missing without a word in the log,
and `csv.Error` and `OverflowError` that ended the device at each start.
"""

import asyncio
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from midge.iot_client.board.conditions import enough_new, every_feature
from midge.iot_client.data.csv_inspection import no_features
from midge.iot_client.data.csv_source import CsvError, CsvRows
from midge.iot_client.data.mqtt_source import SensorTopic
from midge.iot_client.data.samples import Samples
from midge.iot_client.data.values import Classes, number

pytestmark = pytest.mark.virtual

ROWS = [(20.5, 7.25, 100.0), (21.0, 8.5, 101.5), (22.75, 9.0, 99.0)]


def read(
    path: Path, data: str | bytes, *, label: str = "y", classes: tuple[str, ...] = (), into: Samples | None = None
) -> Samples:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    samples = (
        into
        if into is not None
        else Samples(
            None, ["a", "b"], label, kind="classification" if classes else "regression", clip=None, rows=20_000
        )
    )
    source = CsvRows(path, classes=classes)
    try:
        while source.read(samples):
            pass
    finally:
        source.close()
    return samples


def kept(samples: Samples) -> list[tuple[float, ...]]:
    x, y = samples.arrays(take=False)
    return [(*map(float, values), float(label)) for values, label in zip(x, y, strict=True)]


def lines(delimiter: str, form: str, *, head: str = "a{0}b{0}y", tail: str = "") -> str:
    rows = [delimiter.join(form.format(value) for value in row) + tail for row in ROWS]
    return "\n".join([head.format(delimiter), *rows, ""])


# ---------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("11,9", 11.9),
        ("-0,5", -0.5),
        ("1,5e3", 1500),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1,234,567", 1_234_567),
        ("1.234.567", 1_234_567),
        ("ON", 1),
        ("False", 0),
        (" yes ", 1),
        (True, 1),
        ("1,234", math.nan),
        ("1,2,3", math.nan),
        ("21.5 °C", math.nan),
        ("12:30", math.nan),
        ("", math.nan),
        (10**400, math.nan),
        ("9" * 5000, math.nan),
    ],
)
def test_a_number_is_read_or_is_none_and_never_a_wrong_one(text: object, value: float) -> None:
    assert number(text) == pytest.approx(value, nan_ok=True)


@given(st.floats(-1e12, 1e12).map(lambda value: round(value, 3)))
def test_both_decimal_marks_say_the_same(value: float) -> None:
    text = f"{value:.3f}"
    assert number(text.replace(".", ","), decimal_comma=True) == number(text) == value
    assert number(f"{value:,.3f}") == value
    assert number(f"{value:,.3f}".translate(str.maketrans(",.", ".,")), decimal_comma=True) == value


@given(st.one_of(st.text(max_size=30), st.integers(), st.none(), st.binary(max_size=9), st.lists(st.integers())))
def test_no_value_raises(value: object) -> None:
    assert math.isnan(number(value)) or math.isfinite(number(value))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("commas", ["all", "inputs"])
def test_a_decimal_comma_is_one_where_commas_do_not_separate(tmp_path: Path, delimiter: str, commas: str) -> None:
    text = lines(delimiter, "{:.2f}").replace(".", ",")
    if commas == "inputs":
        text = "\n".join(
            delimiter.join([*line.split(delimiter)[:2], line.split(delimiter)[2].replace(",", ".")])
            for line in text.strip().split("\n")
        )
    samples = read(tmp_path / "r.csv", text + "\n")
    assert kept(samples) == ROWS and not samples.missing


def test_words_are_numbers_in_a_file_as_on_a_topic(tmp_path: Path) -> None:
    samples = read(tmp_path / "r.csv", "a,b,y\nTrue,off,1\nFALSE,On,2\n")
    assert kept(samples) == [(1, 0, 1), (0, 1, 2)]


# ------------------------------------------------------------------ nothing is silent


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("a,b,y\n1,2,n/k\n1,2,n/k\n", "y is 'n/k', no number"),
        ("a,b,y\n1.5 C,2,3\n", "a is '1.5 C', no number"),
        ("a,b,y\n1,2,3,4\n", "a line has 4 fields, not 3"),
        ("a,b,y\n1,2\n", "a line has 2 fields, not 3"),
    ],
)
def test_what_is_not_understood_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: str, says: str
) -> None:
    samples = read(tmp_path / "r.csv", data)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert says in caplog.text and sum(samples.rejected.values()) >= 1
    waits = enough_new(samples, 2)()
    assert waits is not None and (says in waits) == (not samples.seen)


def test_it_is_said_again_after_an_hour_with_the_count(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    samples = Samples(None, ["a"], "y", clock=lambda: now)
    for now in (0.0, 10.0, 3599.0, 3601.0, 3602.0):  # noqa: B007 - the clock reads it
        samples.observe({"a": 1, "y": "broken"})
    assert [record.getMessage().split("; ")[1].split(" ")[0] for record in caplog.records] == ["1", "4"]


def test_a_value_that_is_properly_missing_is_no_word(caplog: pytest.LogCaptureFixture) -> None:
    samples = Samples(None, ["a", "b"], "y")
    for missing in ("", "nan", "unavailable", "unknown", None, math.nan):
        assert samples.observe({"a": missing, "b": 1, "y": 2})
    assert not caplog.records and not samples.rejected


def test_a_file_that_is_not_there_and_a_folder_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path, says in ((tmp_path / "no.csv", "There is no file"), (tmp_path, "cannot be read")):
        samples, source = Samples(None, ["a"], "y"), CsvRows(path)
        assert not any(source.read(samples) for _ in range(5))
        assert len([record for record in caplog.records if says in record.getMessage()]) == 1


def test_a_feature_that_never_had_a_number_holds_training_back() -> None:
    samples = Samples(None, ["a", "b"], "y")
    assert every_feature(samples)() is None, "other conditions say that there are no rows"
    samples.observe({"a": 1, "b": "°C", "y": 2})
    assert every_feature(samples)() == "no row had a number for b"
    samples.observe({"a": None, "b": 3, "y": 2})
    assert every_feature(samples)() is None


async def test_a_silent_topic_and_one_without_the_fields_are_said(caplog: pytest.LogCaptureFixture) -> None:
    for payload, says in ((None, "no message came on z/#"), (b'{"temp":1,"hum":2}', "had a, y; they have hum, temp")):
        twin, samples = Twin(), Samples(None, ["a"], "y")
        source = SensorTopic(twin.connect, "z/#")
        following = asyncio.create_task(source.follow(samples))
        if payload:
            source.take(Delivery("z/1", payload, 0, False), samples)
        await asyncio.sleep(11)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert says in caplog.text and samples.trouble is not None


async def test_a_sensor_broker_that_is_away_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    twin, samples = Twin(), Samples(None, ["a"], "y")
    twin.kill()
    following = asyncio.create_task(SensorTopic(twin.connect, "z").follow(samples))
    await asyncio.sleep(1)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# ---------------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("classes", "values"),
    [
        (("OFF", "ON"), ["ON", "on", "Off", True, False]),
        (("false", "true"), [True, "TRUE", "False", "on", False]),
        (("closed", "open"), ["OPEN", "open", "closed", "Closed"]),
        (("no", "yes"), ["Yes", "NO", "no"]),
        (("0.0", "1.0"), [1, 0, 1.0, "1", "0.0", True, "on"]),
        (("0", "1"), [1.0, "1.0", "0.00", 0, False]),
        (("normal", "Fault"), ["fault", "NORMAL", " Fault "]),
    ],
)
def test_classes_are_matched_as_they_came(classes: tuple[str, str], values: list[object]) -> None:
    second = {"on", "true", "open", "yes", "1", "1.0", "fault"}
    assert [Classes(classes).number(value) for value in values] == [
        int(str(value).strip().lower() in second) for value in values
    ]


@pytest.mark.parametrize("value", [None, "", "maybe", 2, 0.5, True, [], "b"])
def test_what_is_of_no_class_has_none(value: object) -> None:
    assert Classes(["closed", "open", "A", "a "]).number(value) is None


@pytest.mark.parametrize("payload", [b'{"v":1,"y":"ON"}', b'{"v":1,"y":true}', b'{"v":1,"y":"on"}'])
def test_a_topics_state_is_a_class(payload: bytes) -> None:
    samples = Samples(None, ["v"], "y", kind="classification")
    SensorTopic(Twin().connect, "#", classes=["OFF", "ON"]).take(Delivery("z/plug", payload, 0, False), samples)
    assert kept(samples) == [(1, 1)]


def test_a_class_that_never_occurs_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = read(tmp_path / "r.csv", "a,b,y\n1,2,2\n1,2,bad\n", classes=("good", "poor"))
    assert not len(samples) and samples.unlabelled == 2
    assert "y is '2', none of good, poor" in caplog.text


# ---------------------------------------------------------------------------- headers


@pytest.mark.parametrize("names", [("b", "a", "y"), ("y", "b", "a"), ("a", "new", "b", "y"), ("y", "a", "b", "c", "d")])
@pytest.mark.parametrize("restart", [False, True])
def test_a_header_further_down_names_what_follows(tmp_path: Path, names: tuple[str, ...], restart: bool) -> None:
    path = tmp_path / "r.csv"
    second = [",".join(str({"a": 1, "b": 2, "y": 3}.get(name, 9)) for name in names) + "\n"]
    text = "a,b,y\n10,20,30\n" + ",".join(names) + "\n"
    samples = read(path, text)
    if not restart:
        assert kept(read(path, text + second[0])) == [(10, 20, 30), (1, 2, 3)]
        return
    again = Samples(None, ["a", "b"], "y", clip=None)
    again.marks = samples.marks
    assert kept(read(path, text + second[0], into=again)) == [(1, 2, 3)], "a restart knows the later header"


def test_a_header_that_lacks_a_column_is_told(tmp_path: Path) -> None:
    with pytest.raises(CsvError, match="no column 'b'"):
        read(tmp_path / "r.csv", "a,b,y\n1,2,3\ny,a\n3,1\n")


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(CsvError, match="two columns 'a'"):
        read(tmp_path / "r.csv", "a,b,a,y\n1,2,3,4\n")
    with pytest.raises(ValueError, match="'a' is there twice"):
        Samples(None, ["a", "b", "a"], "y")


@pytest.mark.parametrize(("delimiter", "form"), [(",", "{:.2f}"), (";", "{:.2f}"), (",", '"{:.2f}"')])
@pytest.mark.parametrize("head", ["a{0}b{0}y", "a{0}b{0}y{0}", '"a"{0} "b"{0} "y"'])
@pytest.mark.parametrize("tail", [False, True])
def test_a_separator_behind_the_last_field_is_none(
    tmp_path: Path, delimiter: str, form: str, head: str, tail: bool
) -> None:
    text = lines(delimiter, form, head=head, tail=delimiter if tail else "")
    assert kept(read(tmp_path / "r.csv", text)) == ROWS


def test_a_separator_inside_a_quoted_name_is_none(tmp_path: Path) -> None:
    samples = Samples(None, ["T, in, C", "b"], "y", clip=None)
    assert kept(read(tmp_path / "r.csv", '"T, in, C";b;y\n1,5;2;3\n', into=samples)) == [(1.5, 2, 3)]


# --------------------------------------------------------------- nothing ends a device


@pytest.mark.parametrize("rows", [10, 20_000])
def test_a_stray_quotation_mark_costs_its_line(tmp_path: Path, rows: int) -> None:
    text = "a,b,y\n" + "".join(('"' if row == 3 else "") + f"{row},1.25,2.5\n" for row in range(rows))
    samples = read(tmp_path / "r.csv", text)
    assert samples.seen == rows - 1 and samples.rejected["lines"] == 1


@pytest.mark.parametrize(
    "line", [b'"' + b"x" * 200_000, b"1,\r2,3", b"1\r,2,3\r", b"\0" * 512, b"\xff\xfe1,2", b'""",,"']
)
def test_a_line_that_cannot_be_read_is_counted(tmp_path: Path, line: bytes) -> None:
    samples = read(tmp_path / "r.csv", b"a,b,y\n1,2,3\n" + line + b"\n4,5,6\n")
    assert kept(samples) == [(1, 2, 3), (4, 5, 6)] and samples.rejected == {"lines": 1}


@given(junk=st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line), max_size=6))
def test_no_line_ends_the_device_and_the_good_ones_are_read(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes]
) -> None:
    data = b"a,b,y\n1,2,3\n" + b"".join(line + b"\n4,5,6\n" for line in junk)
    found = kept(read(tmp_path_factory.mktemp("junk") / "r.csv", data))
    assert found.count((4, 5, 6)) >= len(junk) and (1, 2, 3) in found


def test_utf16_is_read(tmp_path: Path) -> None:
    assert kept(read(tmp_path / "r.csv", "a,b,y\r\n1,2,3\r\n".encode("utf-16"))) == [(1, 2, 3)]


@pytest.mark.parametrize("value", [b"9" * 400, b"1e999", b"-1e999", b"[1,2]", b"null", b'"' + b"9" * 5000 + b'"'])
def test_no_number_on_a_topic_ends_the_device(value: bytes) -> None:
    samples = Samples(None, ["a", "b"], "y", clip=None)
    source = SensorTopic(Twin().connect, "#")
    for payload in (b'{"a":' + value + b',"b":1,"y":2}', b'{"a":1,"b":1,"y":' + value + b"}", b'{"a":3,"b":1,"y":2}'):
        source.take(Delivery("z", payload, 0, False), samples)
    assert kept(samples)[-1] == (3, 1, 2)


# ------------------------------------------------------------------- columns and topics


def test_columns_that_are_no_inputs_by_their_look(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "r.csv"
    with path.open("w") as file:
        print("time,unix,down,site,fan,heat,speed,y", file=file)
        for row in range(40):
            heat, speed = rng.normal(size=2).round(3)
            print(
                f"2026-03-29 02:{row:02d},{1700000000.0 + row},{-row},hall,0,{heat},{speed},{heat + speed}", file=file
            )
    found = no_features(path, "y")
    assert set(found) == {"time", "unix", "down", "site", "fan"}
    path.write_text("time,heat,y\n1,2,3\n")
    assert no_features(path, "y") == {}, "one row says nothing"


def topics(*messages: tuple[str, bytes]) -> Samples:
    samples = Samples(None, ["a", "b"], "y", clip=None)
    source = SensorTopic(Twin().connect, "#")
    for topic, payload in messages:
        source.take(Delivery(topic, payload, 0, False), samples)
    return samples


def test_of_two_sensors_that_say_the_same_field_each_row_has_its_own(caplog: pytest.LogCaptureFixture) -> None:
    samples = topics(("z/1", b'{"a":1}'), ("z/2", b'{"a":2}'), ("z/1", b'{"b":5,"y":7}'), ("z/2", b'{"b":6,"y":8}'))
    assert kept(samples) == [(1, 5, 7), (2, 6, 8)] and not caplog.records


def test_whose_value_it_is_that_two_sensors_say_is_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    samples = topics(("z/1", b'{"a":1}'), ("z/2", b'{"a":2}'), ("z/3", b'{"b":5,"y":7}'))
    ((a, *rest),) = kept(samples)
    assert math.isnan(a) and rest == [5, 7]
    assert "a comes on z/1 and on z/2" in caplog.text


def test_values_in_a_list_are_named_by_their_place() -> None:
    samples = Samples(None, ["ENERGY.Power.0", "ENERGY.Power.1"], "y", clip=None)
    payload = b'{"ENERGY":{"Power":[230,117]},"y":2}'
    SensorTopic(Twin().connect, "#").take(Delivery("tele/x/SENSOR", payload, 0, False), samples)
    assert kept(samples) == [(230, 117, 2)]
