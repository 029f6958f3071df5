"""The registry of events has every event that the product emits; docs/events.md and the types are made from it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.events import EVENTS, FIELDS, Service
from tests.docs.scripts import ROOT, script

FOLDERS: dict[Service, str] = {
    "aggregator": "aggregator",
    "device": "iot_client",
    "authority": "broker/provisioning",
    "helper": "mask_helper",
    "gateway": "gateway",
}
OPEN = {"receipt", "unusual", "usual", "erased", "silent", "dropped"}
"""Events with fields that the call does not spell: `**fields`."""
ELSEWHERE = ("micropython", "referee")
"""Another listener's interface; no events."""


def _names(argument: ast.expr) -> list[str]:
    match argument:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.IfExp(body=one, orelse=other):
            return [*_names(one), *_names(other)]
    return []


def emitted(service: Service) -> Iterator[tuple[str, str, set[str], bool]]:
    """Every call that emits an event: where, its name, its fields, and whether it has more than are spelled."""
    commands = [ROOT / "midge" / "commands" / "reloading.py"] if service == "aggregator" else []
    for path in sorted([*(ROOT / FOLDERS[service]).rglob("*.py"), *commands]):
        if set(ELSEWHERE) & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if isinstance(node.args[0], ast.Dict):  # of a command: the whole event
                pairs = zip(node.args[0].keys, node.args[0].values, strict=True)
                keys = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
                for name in _names(keys["event"]) if "event" in keys else []:
                    yield str(path), name, {str(key) for key in keys} - {"event", "time"}, False
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called not in ("tell", "_tell", "_emit", "self"):
                continue
            fields = {word.arg for word in node.keywords if word.arg is not None}
            more = any(word.arg is None for word in node.keywords)
            for name in _names(node.args[0]):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name, fields, more


@pytest.mark.parametrize("service", FOLDERS)
def test_every_event_that_is_emitted_is_in_the_registry_and_no_other(service: Service) -> None:
    """Seen to fail on an event with another name, a field more, and an event of the registry that nothing emits."""
    found = list(emitted(service))
    for where, name, fields, more in found:
        assert name in EVENTS[service], f"{where}: add the event {name!r} to midge/events.py"
        declared = set(EVENTS[service][name].fields)
        assert fields <= declared, f"{where}: add {fields - declared} to {name!r} in midge/events.py"
        assert not more or name in OPEN, where
    assert {name for _, name, _, _ in found} == EVENTS[service].keys()


def test_every_field_has_a_meaning_and_none_hides_what_each_line_has() -> None:
    used = {field for kinds in EVENTS.values() for kind in kinds.values() for field in kind.fields}
    assert used == FIELDS.keys()
    assert not used & {"time", "level", "service", "event", "logger", "message", "traceback"}


def test_the_types_are_those_of_the_registry() -> None:
    """Seen to fail on another type of a field, and on an event more."""
    page = script("event_types", folder="tools")
    assert page.PAGE.read_text() == page.module(), "run: python tools/event_types.py"


def test_a_type_checker_knows_the_fields_of_an_event(tmp_path: Path) -> None:
    """Seen to fail while `on_event` took functions of a dict only."""
    program = tmp_path / "pump.py"
    program.write_text(
        "import midge\n"
        "from midge.event_types import DeviceEvent\n"
        "def listen(event: DeviceEvent) -> None:\n"
        '    if event["event"] == "receipt":\n'
        '        reveal_type(event["seq"])\n'
        '        event["sequence"]\n'
        "def plain(event: dict[str, object]) -> None: ...\n"
        "def train(values: object, plan: object) -> midge.Fit:\n"
        "    return midge.Fit({}, examples=1)\n"
        'midge.Device("mqtt://localhost", federation="f", name="a", train=train, outbox=None, on_event=listen)\n'
        'midge.Device("mqtt://localhost", federation="f", name="a", train=train, outbox=None, on_event=plain)\n'
    )
    found = subprocess.run([sys.executable, "-m", "mypy", str(program)], capture_output=True, text=True, check=False)
    assert 'Revealed type is "int"' in found.stdout.replace("builtins.", ""), found.stdout
    errors = [line for line in found.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1 and 'has no key "sequence"' in errors[0], found.stdout
