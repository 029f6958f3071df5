"""Whatever stands in a settings file: it is used, or refused in words with its place; nothing else is raised."""

import math
from pathlib import Path
from typing import Any

import pytest

from midge.commands import aggregate, device
from midge.commands.config import model, parser_of
from midge.commands.guest import check_guest
from midge.commands.parts import Problem
from midge.configuration.aggregator_file import AggregatorSettings
from midge.configuration.device_file import apply_file
from midge.configuration.listing import kinds
from midge.configuration.toml_file import Key, SettingsError, TomlFile, tables_of

VALUES: tuple[Any, ...] = (
    "x",
    "",
    "none",
    -1,
    0,
    2**70,
    0.5,
    -1e308,
    math.nan,
    True,
    [],
    ["a", 1],
    {},
    {"a": {"b": 1}},
)
SETTINGS = """\
[broker]
url = "mqtt://localhost"
[federation]
name = "pumps"
features = ["a", "b"]
[model]
kind = "linear"
task = "regression"
[strategy]
preset = "balanced"
[store]
path = "store"
"""


def every_key(kind: str) -> list[Key]:
    """All tables and keys of a file."""
    found: dict[Key, None] = {}
    for table in tables_of(model(kind)):
        models = [model(kind)]
        for part in table:
            models = [inner for each in models if part in each.model_fields for inner in kinds(each, part).values()]
        found |= dict.fromkeys([table, *((*table, name) for each in models for name in each.model_fields)])
    return [*found]


def load(_name: str) -> Any:
    raise Problem("There is no such module.")


@pytest.mark.parametrize("kind", ["aggregator", "device"])
def test_any_value_of_any_key_is_used_or_refused_in_words(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "midge.toml"
    path.write_text(SETTINGS if kind == "aggregator" else "")
    parser = parser_of(aggregate, "aggregate") if kind == "aggregator" else parser_of(device, "device")
    raised: list[str] = []
    keys, used, refused = every_key(kind), 0, 0
    for key in keys:
        for value in VALUES:
            file = TomlFile(path)
            node = file.values
            for part in key[:-1]:
                node = node.setdefault(part, {})
            node[key[-1]] = value
            args = parser.parse_args([])
            try:
                if kind == "aggregator":
                    settings = AggregatorSettings(file, parser)
                    settings.apply(args)
                    assert settings.aggregator(load).config.federation
                else:
                    apply_file(file, args, parser)
                    check_guest(args)
                used += 1
            except (SettingsError, Problem) as error:
                refused += 1
                if not str(error).endswith((".", "?", "…")):
                    raised.append(f"{'.'.join(key)} = {value!r}: {error}")
            except Exception as error:  # noqa: BLE001 - that is what must not come
                raised.append(f"{'.'.join(key)} = {value!r}: {error!r}")
    assert raised == []
    assert len(keys) > 40 and used > 50 and refused > 5 * len(keys)
