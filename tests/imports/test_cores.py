"""Events in, actions out: nothing outside a core writes to what it holds."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = (
    "aggregator",
    "iot_client",
    "dashboard",
    "mask_helper",
    "gateway",
    "sensor_fleet",
    "midge",
    "benchmarks",
    "broker",
)
OWN = {"aggregator/core/core.py", "iot_client/session/session.py"}
CORES = ("core", "_core")
SESSIONS = ("session", "_session")
"""Of a device; a broker's sessions are another thing."""


def _written(source: str, names: tuple[str, ...]) -> Iterator[int]:
    """Lines that assign to an attribute of something that is called by one of these names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        flat = [each for target in targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])]
        for target in flat:
            if isinstance(target, ast.Attribute) and set(_owners(target.value)) & set(names):
                yield node.lineno


def _owners(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute):
        yield node.attr
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("self._core.steering.live += 1", True),
        ("core.paused = why", True),
        ("a, core.full = 1, None", True),
        ("self.core = core", False),
        ("core.handle(event, now)", False),
    ],
)
def test_writes_are_found(line: str, written: bool) -> None:
    assert bool(list(_written(line, CORES))) is written


def test_no_core_is_written_from_outside() -> None:
    found = []
    for folder in PRODUCT:
        names = CORES if folder == "broker" else (*CORES, *SESSIONS)
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            if place not in OWN:
                found += [f"{place}:{line}" for line in _written(path.read_text(), names)]
    assert not found, "tell it by an event"
