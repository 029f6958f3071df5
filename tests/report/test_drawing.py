import math
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.sensor_fleet.report import scales
from midge.sensor_fleet.report.quantities import duration, percent, score, significant, size, times
from midge.sensor_fleet.report.svg import Label, Plot, apart, thinned
from midge.wire.plurals import counted

positive = st.floats(1e-3, 1e9)


@given(st.floats(-1e6, 1e6), positive, st.booleans())
def test_linear_ticks_are_few_round_and_inside(low: float, span: float, tight: bool) -> None:
    scale = scales.linear(low, low + span, tight=tight)
    assert 1 <= len(scale.ticks) <= 12
    tolerance = 1e-6 * max(abs(scale.low), abs(scale.high))
    assert all(scale.low - tolerance <= tick <= scale.high + tolerance for tick in scale.ticks)


@given(positive, st.floats(1, 1e6))
def test_logarithmic_ticks_are_inside(low: float, ratio: float) -> None:
    scale = scales.logarithmic(low, low * ratio)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    assert scale(low) < scale(low * ratio) or ratio == 1


@given(positive, st.integers(3, 9))
def test_time_has_no_more_ticks_than_there_is_room_for(end: float, count: int) -> None:
    assert 1 <= len(scales.of_time(end, count=count).ticks) <= 2 * count + 1


@pytest.mark.parametrize(
    ("end", "unit", "ticks"),
    [(16, "seconds", "0 5 10 15"), (300, "minutes", "0 1 2 3 4 5"), (86400, "hours", "0 6 12 18 24")],
)
def test_clocks_have_round_ticks(end: float, unit: str, ticks: str) -> None:
    scale = scales.of_time(end, count=6 if end > 16 else 4)
    assert scales.unit_of_time(scale) == unit
    assert " ".join(map(scale.text, scale.ticks)) == ticks


def test_what_is_outside_is_held_at_the_edge() -> None:
    scale = scales.linear(0, 10).over(100, 200)
    assert [scale(value) for value in (-5, 0, 5, 10, 1e30)] == [100, 100, 150, 200, 200]


@given(st.lists(st.floats(0, 300), max_size=8))
def test_labels_are_moved_apart_in_their_order(places: list[float]) -> None:
    moved = apart(places, 30, 0, 300)
    assert all(after - before > 29.9 for before, after in pairwise(sorted(moved)))
    assert all(-0.1 < place < 300.1 for place in moved)
    assert [place for _, place in sorted(zip(places, moved, strict=True))] == sorted(moved)


def test_labels_with_room_stay_where_they_are() -> None:
    assert apart([200, 50, 100], 30, 0, 300) == [200, 50, 100]
    assert apart([100, 100], 30, 0, 300) == [85, 115]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float]) -> None:
    points = [(float(place), value) for place, value in enumerate(values)]
    kept = thinned(points, 300)
    assert len(kept) <= 305
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {min(values), max(values)} <= {value for _, value in kept}
    assert kept == sorted(kept)


def test_a_plot_is_well_formed_whatever_the_words() -> None:
    plot = Plot((300, 200), 'a "<&>" b', scales.of_time(10), scales.linear(0, 1), x_name="<x>", y_name="&", right=80)
    plot.line([(0, 0), (1, math.nan), (2, math.inf), (3, 1)], "fleet")
    plot.steps([(0, 0), (5, 1)], "fleet")
    plot.point(math.nan, 1, "fleet")
    plot.mark(9.9, "<mark>", "mark")
    plot.labels([Label(0.5, "<a>", "&", "fleet")])
    drawing = ET.fromstring(str(plot))
    assert drawing.get("aria-label") == 'a "<&>" b'
    assert "<mark>" in [text.text for text in drawing.iter("text")]
    assert "nan" not in str(plot)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (size(999), "999 B"),
        (size(999.7), "1.0 kB"),
        (size(6674), "6.7 kB"),
        (size(99_960), "100 kB"),
        (size(5e15), "5000 TB"),
        (size(None), "–"),
        (duration(0.05), "0.05 s"),
        (duration(8.18), "8.2 s"),
        (duration(60), "1 min"),
        (duration(200), "3 min 20 s"),
        (duration(3599.9), "1 h"),
        (duration(7500), "2 h 5 min"),
        (duration(86399), "1 d"),
        (duration(90000), "1 d 1 h"),
        (percent(0.9387), "93.9%"),
        (score(math.nan, "accuracy"), "–"),
        (score(49.23, "rmse"), "49.2"),
        (significant(1234.5), "1,234"),
        (significant(0.01234), "0.0123"),
        (significant(2e-7), "2.00e-07"),
        (times(71.6), "72"),
        (times(3.44), "3.4"),
        (counted(1, "device"), "1 device"),
        (counted(1200, "device"), "1,200 devices"),
    ],
)
def test_numbers_as_a_person_reads_them(told: str, words: str) -> None:
    assert told.replace("\N{NO-BREAK SPACE}", " ") == words


def test_values_beyond_the_axis_are_marked_at_its_edge() -> None:
    """Seen to fail: a thin line that was cut at 8, as if that had been its value."""
    plot = Plot((300, 200), "", scales.of_time(10), scales.linear(0, 1), x_name="", y_name="")
    plot.line([(1, 0.5), (2, 7.0), (2.01, 9.0), (5, 0.2), (8, -3.0)], "raw")
    marks = [path for path in ET.fromstring(str(plot)).iter("path") if path.get("class") == "beyond"]
    assert len(marks) == 2, "one above, of two that lie on each other, and one below"
    assert all(mark.find("title") is not None for mark in marks)
    plot.ranges([(9, 10, 0.5, 3.0)], "fleet faded")
    assert str(plot).count('class="beyond"') == 3, "a band that is cut as well"
    inside = Plot((300, 200), "", scales.of_time(10), scales.linear(0, 1), x_name="", y_name="")
    inside.line([(1, 0.0), (2, 1.0)], "raw")
    assert "beyond" not in str(inside)


@given(start=st.floats(1.7e9, 1.9e9), span=st.floats(1, 5e8), count=st.integers(2, 10))
def test_ticks_of_dates_are_few_round_and_differ(start: float, span: float, count: int) -> None:
    scale = scales.of_dates(start, start + span, count=count)
    assert len(scale.ticks) <= count + 1
    assert all(start <= tick <= start + span for tick in scale.ticks)
    words = [scale.text(tick) for tick in scale.ticks]
    assert len(set(words)) == len(words)


@given(seconds=st.floats(1, 1e8), multiple=st.sampled_from([10, 60, 600, 3600, 86_400]))
def test_round_intervals_hold_whole_periods(seconds: float, multiple: int) -> None:
    found = scales.round_interval(seconds, multiple)
    assert found >= seconds and found % multiple == 0
