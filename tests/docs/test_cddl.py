"""docs/midge.cddl: made from the models, read by zcbor, and true of the golden vectors."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import msgpack
import pytest
import zcbor

from midge.wire.kinds import KINDS
from midge.wire.names import NAMES
from tests.docs.scripts import ROOT, script

GOLDEN = ROOT / "tests" / "wire" / "golden"
VECTORS = sorted(
    path.stem.removeprefix("v1-")
    for path in GOLDEN.glob("v1-*.bin")
    if not path.stem.removeprefix("v1-").startswith(("delta-", "schema")) and not path.stem.endswith("-named")
)


def test_it_is_made_from_the_models() -> None:
    """Seen to fail on a field that was added."""
    cddl = script("cddl")
    assert cddl.page() == cddl.PAGE.read_text(), "run: python docs/cddl.py"


@cache
def types() -> Any:
    return zcbor.DataTranslator.from_cddl((ROOT / "docs" / "midge.cddl").read_text(), 16).my_types


def header(payload: bytes) -> dict[Any, Any]:
    length = int.from_bytes(payload[:2], "little")
    found: dict[Any, Any] = msgpack.unpackb(payload[2 : 2 + length], strict_map_key=False)
    return found


def rule_of(fields: dict[Any, Any]) -> str:
    kind = fields.get(0)
    return "envelope" if kind is None else NAMES[kind] if isinstance(kind, int) else kind


@cache
def order(rule: str) -> list[Any]:
    """The keys of a rule as they stand; zcbor wants those of a map in this order, which CDDL does not."""
    text = (ROOT / "docs" / "midge.cddl").read_text()
    body = text.split(f"\n{rule} = {{\n")[1].split("\n}")[0]
    keys = [re.match(r'\s*(?:\? )?(?:(\d+)|"(\w+)"):', line) for line in body.splitlines()]
    return [int(key[1]) if key[1] else key[2] for key in keys if key]


def ordered(rule: str, fields: dict[Any, Any]) -> dict[Any, Any]:
    inner = {"settled": "settled", "grants": "grant", "moments": "moment", "plan": "plan", "status": "aggregator"}
    found = {}
    for key in sorted(fields, key=lambda key: order(rule).index(key) if key in order(rule) else 999):
        value, name = fields[key], inner.get(NAMES[key] if isinstance(key, int) and key < len(NAMES) else str(key))
        if name and isinstance(value, dict):
            value = ordered(name, value)
        elif name and isinstance(value, list):
            value = [ordered(name, each) for each in value]
        found[key] = value
    return found


def valid(rule: str, fields: dict[Any, Any]) -> bool:
    try:
        types()[rule].validate_str(cbor2.dumps(ordered(rule, fields)))
    except zcbor.CddlValidationError:
        return False
    return True


@pytest.mark.parametrize("name", VECTORS)
def test_it_is_true_of_every_vector(name: str) -> None:
    fields = header((GOLDEN / f"v1-{name}.bin").read_bytes())
    assert valid(rule_of(fields), fields)
    if rule_of(fields) == "envelope":
        inside = header(fields[NAMES.index("body")])
        assert valid(rule_of(inside), inside)


@pytest.mark.parametrize(
    ("field", "value"), [("outbox", 1.0), ("outbox", 2**63), ("seq", 0), ("lineage", "0" * 16), ("sha256", b"short")]
)
def test_it_is_false_of_what_the_aggregator_drops(field: str, value: object) -> None:
    fields = header((GOLDEN / "v1-update.bin").read_bytes())
    assert valid("update", fields)
    assert not valid("update", {**fields, NAMES.index(field): value})
    assert not valid("update", {key: each for key, each in fields.items() if key != NAMES.index(field)})


def test_fields_of_a_later_version_are_passed_over() -> None:
    fields = header((GOLDEN / "v1-hello.bin").read_bytes())
    assert valid("hello", {**fields, len(NAMES) + 3: b"x", "zest": [1]})


def test_every_kind_has_a_rule() -> None:
    assert set(KINDS) | {"snapshot", "step", "envelope", "schema"} <= set(types())
    assert Path(script("cddl").PAGE).name == "midge.cddl"
