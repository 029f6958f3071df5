"""What peers call themselves and say is shown, and does nothing: in a terminal, a log, a page, a label."""

import contextlib
import io
import logging
from types import SimpleNamespace
from typing import Any
from unicodedata import category

from hypothesis import example, given
from hypothesis import strategies as st

from midge.aggregator.metrics.prometheus import _counts
from midge.broker.audit.results import Finding
from midge.commands import checking, device_status, explain, status
from midge.commands.telling import InWords
from midge.commands.words import sentence
from midge.sensor_fleet.report.html import _templates
from midge.wire.errors import WireError
from midge.wire.inert import LOGGERS, inert, inert_all

NASTY = st.text(max_size=80) | st.sampled_from(
    [
        "\x1b]0;title\x07\x1b[2J\x1b[31mred",
        "name\nWARNING aggregator: all is well",
        "a\r\x1b[Kb",
        "\u202egnp.exe\u2066",
        "\u2028line\u0085line",
        "\x9b31m",
        "<script>alert(1)</script>",
        '"} 1\nmidge_ready 1',
        "{{ states('lock.door') }}",
        "\ud800",
    ]
)


def drawn(text: str) -> bool:
    """Whether it shows on as many lines as were meant, and nothing in it is obeyed."""
    return not {"Cc", "Cf", "Cs", "Zl", "Zp"} & set(map(category, text))


@given(NASTY)
@example("pump-17 µ漢 °C 12\xa0kB")
def test_text_is_one_line_of_printable_characters_and_plain_text_stays(text: str) -> None:
    assert drawn(inert(text)) and len(inert(text)) == len(text)
    assert inert(text) == text or not drawn(text) or {"Co", "Cn"} & set(map(category, text))
    assert inert_all({text: [text, (text, 1)]}) == {inert(text): [inert(text), (inert(text), 1)]}


def events(text: str) -> list[dict[str, Any]]:
    return [
        {"event": "disconnected", "why": text},
        {"event": "update", "device": text, "verdict": text, "why": text},
        {"event": "held", "device": text, "verdict": text, "why": text},
        {"event": "dropped", "topic": text, "why": text},
        {"event": "features", "features": [text]},
        {"event": "unlike", "device": text, "why": text},
        {"event": "evaluation", "version": 1, "metrics": {text: 1.0}},
    ]


@given(NASTY)
def test_events_in_words(text: str) -> None:
    for event in events(text):
        assert sentence(event)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            InWords()(event)
        assert drawn(said.getvalue().removesuffix("\n"))


@given(NASTY)
def test_status_of_a_federation_and_rows_of_the_doctor(text: str) -> None:
    device = {"state": text, "version": 1, "next": 2, "first": 1, "wakes": 0.0}
    model = {"version": 1, "step": 1, "generation": 0, "lineage": text, "phase": text, "plan": {"local_steps": None}}
    found = {
        "federation": "f",
        "root": "r",
        "aggregator": {"state": text, "why": text},
        "model": model,
        "devices": {text: device},
        "answered": False,
        "unasked": text,
        "health": {
            "state": text,
            "since": 0.0,
            "accepted": 1.0,
            "why": text,
            "alarms": [text],
            "verdicts": {text: 1},
            "devices": {text: 1},
        },
    }
    shown = list(status.lines(inert_all(found)))
    assert all(drawn(line) for line in shown) and len(shown) == 7 + (text in ("ready", "paused"))
    finding = Finding("version", text, "note", text)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        checking._print(finding.name, finding.level, finding.seen or "-", finding.advice)
    assert all(drawn(line) for line in said.getvalue().split("\n"))


@given(NASTY)
def test_the_life_of_an_update(text: str) -> None:
    update = SimpleNamespace(
        device=text, seq=1, outbox=1, base=1, examples=1, size=1, codec=text, verdict="stale", why=text, lsn=1
    )
    lines = explain._words(SimpleNamespace(update=update)).split("\n")  # type: ignore[arg-type]
    assert len(lines) == 3 and all(drawn(line) for line in lines)


@given(NASTY)
def test_a_log_a_refusal_a_label_and_a_page(text: str) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    for name in LOGGERS:
        log = logging.getLogger(name)
        log.addHandler(handler)
        try:
            log.warning("%s said %s", text, text)
        finally:
            log.removeHandler(handler)
    lines = written.getvalue().split("\n")
    assert len(lines) == len(LOGGERS) + 1 and all(drawn(line) for line in lines)
    assert drawn(str(WireError(text)))
    (sample, *_) = _counts("midge_dropped", "words", "reason", {text: 1}).samples
    assert drawn(sample.labels["reason"])
    page = _templates().from_string("<p>{{ text }}</p>").render(text=text)
    assert drawn(page) and "<script" not in page


def test_every_command_that_prints_what_peers_said_goes_through_it() -> None:
    for module in (checking, device_status, explain, status):
        assert hasattr(module, "inert") or hasattr(module, "inert_all")
