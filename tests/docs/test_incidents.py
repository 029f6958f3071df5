"""docs/incidents.md has a section for each alert rule, each alarm and each event that is a warning."""

import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest

from midge.__main__ import main
from midge.aggregator.core.obstacle import Obstacle
from midge.aggregator.metrics.device_activity import ALWAYS, DeviceActivity
from midge.aggregator.metrics.watchdog import SOONEST, FleetSituation, Watchdog
from midge.broker.provisioning.expiry import End
from midge.commands import ALIASES, COMMANDS
from midge.commands.arguments import CommandParser
from midge.events import EVENTS
from midge.wire.messages import Verdict
from tests import needs
from tests.docs.scripts import ROOT

PAGE = ROOT / "docs" / "incidents.md"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
PARTS = ("Look", "Do")


def sections() -> dict[str, str]:
    """Sections of the third level, by heading."""
    found = re.split(r"^### (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        title: re.split(r"^## ", text, flags=re.MULTILINE)[0]
        for title, text in zip(found[1::2], found[2::2], strict=True)
    }


def anchor(title: str) -> str:
    """As GitHub and most renderers make it of a heading."""
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def test_every_alert_rule_has_its_section_and_leads_to_it() -> None:
    """Seen to fail on a rule without a section, a section without a rule and a link to another page."""
    rules = needs.module("yaml", "yamllint").safe_load(ALERTS.read_text())["groups"][0]["rules"]
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names)) >= 8
    assert names == [title for title in sections() if title.startswith("Midge")]
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/incidents.md#{anchor(rule['alert'])}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert all(
            re.search(rf"^- {part}\b|\band {part.lower()}:", sections()[rule["alert"]], re.MULTILINE) for part in PARTS
        )


def alarms() -> list[str]:
    """One alarm of each kind, from the code that raises them."""
    activity = DeviceActivity(10)
    activity.heard("pump-1", 0.0)
    for _ in range(ALWAYS):
        activity.settled("pump-1", Verdict.NON_FINITE, "it is not", 0.0)
    end = End("The certificate a.crt", datetime(2026, 1, 1, tzinfo=UTC), "renew it")
    situation = FleetSituation(
        obstacle=Obstacle("slow", "One training of all 3 devices moves the model by about 1/8 of what they learned."),
        able=1,
        there=1,
        own=[end.alarm(end.at - timedelta(days=3))],
        unlike={"pump-2": "input 1 is other"},
        left_out=["pump-3"],
        present=4,
        keeping=3,
    )
    kinds = {"own", "unlike", "left_out", "obstacle", "keeping"}
    rest = {
        "full",
        "paused",
        "frozen",
        "able",
        "asleep",
        "waiting",
        "there",
        "interval",
        "rest",
        "present",
        "training",
        "version",
        "scheduled",
        "idle",
    }
    assert {field.name for field in fields(FleetSituation)} == kinds | rest, "does the new one raise an alarm?"
    watchdog = Watchdog(activity, 0.0)
    watchdog.look(0.0, situation)
    return [*watchdog.look(SOONEST + 1, situation).alarms, *watchdog.disconnected(SOONEST + 2).alarms]


def test_every_alarm_has_its_section() -> None:
    """By the words that it begins with, as the page quotes them. Seen to fail on another wording of an alarm."""
    raised = alarms()
    assert len(raised) == 7
    quoted = [
        quote
        for title, text in sections().items()
        if not title.startswith("Midge")
        for quote in re.findall(r'"([^"]+)"', text)
    ]
    shapes = [
        re.sub(r"\\?\b(?:VERDICT|NAMES|FILE|N|X)\b", ".+", re.escape(quote).replace("…", ".+")) for quote in quoted
    ]
    for alarm in raised:
        assert any(re.match(shape, alarm) for shape in shapes), alarm


def test_every_refusal_has_its_line() -> None:
    text = sections()["Refused every time"]
    not_of_the_device = {Verdict.ACCEPTED, Verdict.BUSY, Verdict.PAUSED, Verdict.FORGOTTEN}
    assert set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `")))
    ) == {verdict.value for verdict in Verdict if verdict not in not_of_the_device}


@pytest.mark.parametrize(("service", "title"), [("aggregator", "Of an aggregator:"), ("device", "Of a device:")])
def test_every_warning_of_the_log_has_its_line(service: str, title: str) -> None:
    text = PAGE.read_text().split("## Warnings in the log")[1].split(title)[1].split("\nOf ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {kind.name for kind in EVENTS[service].values() if kind.level != "info"}  # type: ignore[index]


def test_every_link_within_the_page_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", PAGE.read_text(), re.MULTILINE)
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE.read_text())) <= {anchor(title) for title in titles}


@pytest.mark.parametrize("page", ["incidents.md", "upgrades.md", "events.md"])
def test_every_command_on_the_pages_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="midge")
    subparsers = parser.add_subparsers()
    for command in COMMANDS:
        command.register(subparsers)
    text = re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text())
    lines = {line.split("|")[0] for line in re.findall(r"`midge ([a-z][^`]*)`", text)}
    assert lines
    for line in lines:
        words = line.split()
        assert words[0] in subparsers.choices, line
        two = words[0] in ("store", "broker", "release-key") or " ".join(words[:2]) in ALIASES
        with pytest.raises(SystemExit) as ended:
            main([*words[: 2 if two else 1], "--help"])
        assert ended.value.code == 0, line
        shown = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", line):
            assert option in shown, line
