"""Nothing useful that comes is told within ten seconds and then hourly, with counts, wherever one looks."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.commands.device_status import lines
from midge.commands.gateway import gateway
from midge.iot_client.data import csv_source
from midge.iot_client.data.intake import AGAIN, SOON, Intake, IntakeWatch
from midge.iot_client.data.samples import Samples
from midge.wire import messages
from midge.wire.messages import Hello
from tests.federation.live import Log, device, serving
from tests.iot_client.test_gateway import parse
from tests.iot_client.test_inputs import server

pytestmark = pytest.mark.virtual


def test_the_counts_are_a_sentence_with_the_first_line() -> None:
    intake = Intake("air.csv")
    for line in range(2, 9473):
        intake.read += 1
        intake.drop("C6H6(GT) is no number", "C6H6(GT) is '11,9', no number", "10/03/2004;2,6;11,9", line)
    assert intake.words() == "air.csv: 9,471 rows read, 0 kept: C6H6(GT) is '11,9', no number (line 2)"
    assert intake.packed()["dropped"]["C6H6(GT) is no number"] == {
        "count": 9471, "line": 2, "first": "10/03/2004;2,6;11,9", "why": "C6H6(GT) is '11,9', no number",
    }  # fmt: skip
    assert intake.reason() == "C6H6(GT) is no number", "without a value"


def test_reasons_are_bounded() -> None:
    intake = Intake("s")
    for number in range(1000):
        intake.drop(f"reason {number}", "why", "line")
    assert len(intake.dropped) <= 51 and intake.lost == 1000


def test_a_watch_warns_soon_and_hourly_while_nothing_useful_comes_and_tells_when_it_does() -> None:
    intake, held = Intake("s"), 0
    watch = IntakeWatch({"s": intake}, lambda: held)

    def seen(now: float) -> tuple[bool, bool]:
        useless, news = watch.look(now)
        return bool(useless), news

    assert seen(SOON - 1) == (False, False)
    assert seen(SOON) == (True, True), "none came at all"
    assert seen(2 * SOON) == (False, False)
    assert seen(SOON + AGAIN) == (True, True)
    intake.read, intake.kept, held = 5, 3, 3
    assert seen(2 * SOON + AGAIN) == (False, True), "rows come at last"
    assert seen(3 * SOON + AGAIN) == (False, False)
    assert seen(SOON + 2 * AGAIN) == (False, True)
    assert seen(SOON + 3 * AGAIN) == (False, True), "a source that rests, with rows of before"
    intake.read = 9
    assert seen(SOON + 4 * AGAIN) == (True, True), "rows that are of no use"


def test_a_number_too_long_for_text_costs_itself() -> None:
    samples = Samples(None, ["a"], "y")
    assert not samples.observe([10**5000], 1) and samples.observe([1], 2)
    assert samples.received()[0]["dropped"]["no feature has a number"]["count"] == 1


def test_each_source_has_counts_of_its_own() -> None:
    samples = Samples(None, ["a"], "y")
    samples.observe([1], 2)
    samples.observe({"a": 1, "y": "x"})
    samples.observe([1], None)
    found = samples.received()
    assert [(each["source"], each["read"], each["kept"]) for each in found] == [("observe", 3, 1)]
    assert {reason: each["count"] for reason, each in found[0]["dropped"].items()} == {"y is no number": 1, "no y": 1}


def said(twin: Twin, topic: str) -> dict[str, Any]:
    """What the retained status of a device says that it is."""
    (message,) = twin.router._retained_on(topic)
    return dict(messages.decode(Hello, message.payload)[0].capabilities)


BAD = "speed,heat,power\n" + "1,2,1 of 3\n" * 40


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("bad.csv", BAD, "40 rows read, 0 kept: power is '1 of 3', no number (line 2)"),
        ("none.csv", None, "there is no file"),
        ("empty.csv", "", "is empty"),
        ("names.csv", "speed,heat,power\n", "has no row yet"),
        ("folder", "/", "cannot be read"),
    ],
)
async def test_a_source_of_no_use_is_told_in_the_log_the_events_and_the_status(
    name: str, text: str | None, says: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    caplog, monkeypatch = request.getfixturevalue("caplog"), request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(csv_source, "EVERY", 0.5)
    path = tmp_path / name
    if text == "/":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    twin, log = Twin(), Log()
    what = ["--csv", str(path), "--label", "power", "--features", "speed,heat", "--outbox", str(tmp_path / "a.outbox")]
    app = gateway(parse(*what, "--broker", "mqtt://localhost", "--federation", "f", "--name", "a"))
    app.config = replace(app.config, connector=twin.connect, on_event=log)
    async with serving(server(twin, tmp_path, log), app):
        began = asyncio.get_running_loop().time()
        await log.until(lambda: log.of("intake", useless=True))
        assert asyncio.get_running_loop().time() - began <= SOON + 1
        assert "no useful row comes" in caplog.text and says in caplog.text
        (event,) = log.of("intake")
        assert says in event["sources"][0]["words"]
        figures: dict[str, Any] = app._runtime.figures()  # type: ignore[union-attr]
        assert figures["intake"] == event["sources"]
        running = {**figures, "waits": app._parts.waits}
        nothing: dict[str, Any] = {"outbox": "a", "identity": "0", "disk": 0, "held": [], "next": 1, "lost": 0}
        nothing |= {"verified": {}, "predicts": None, "samples": None, "month": None, "hindered": [], "consent": True}
        shown = lines({**nothing, "running": running})
        assert any(line.startswith("rows") and says in line for line in shown)
        assert says.rsplit(": ", maxsplit=1)[-1].split(" (", maxsplit=1)[0] in app._parts.waits, (
            "why it waits says it too"
        )
        if name == "bad.csv":
            await log.until(lambda: "rows_why" in said(twin, app.topics.status("a")))
            told = said(twin, app.topics.status("a"))
            assert (told["rows_read"], told["rows_kept"], told["rows_why"]) == (40, 0, "power is no number")
            path.write_text("speed,heat,power\n" + "1,2,3\n" * 400)
            await log.until(lambda: log.of("intake", useless=False))


@pytest.mark.virtual
async def test_the_status_says_how_many_rows_have_expired() -> None:
    """Seen to fail: "120 rows read, 120 kept" above "0 bytes of rows on disk"."""
    twin, log, now = Twin(), Log(), [2e9]
    samples = Samples(None, ["speed"], "power", expire=60.0, wall=lambda: now[0])
    for row in range(120):
        samples.observe([row], row)
    app = device(twin, "a", log, samples=samples)
    nothing: dict[str, Any] = {"outbox": "a", "identity": "0", "disk": 0, "held": [], "next": 1, "lost": 0}
    nothing |= {"verified": {}, "predicts": None, "samples": None, "month": None, "hindered": [], "consent": True}

    def shown() -> list[str]:
        figures: dict[str, Any] = app._runtime.figures()  # type: ignore[union-attr]
        return lines({**nothing, "running": {**figures, "waits": app._parts.waits}})

    async with serving(app):
        await log.until(lambda: log.of("connected"))
        assert not any("expired" in line for line in shown())
        now[0] += 61
        samples.expire()
        assert "expired   120 rows since the start, by age: no longer here" in shown()
