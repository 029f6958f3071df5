"""Writes the tables of docs/configuration.md, from the models of the settings files: python docs/configuration.py."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from marks import put
from pydantic_core import PydanticUndefined

from midge.commands.config import model
from midge.configuration.aggregator_file import FIXED, RELOADED
from midge.configuration.listing import KeyRow, differing, is_tag, kinds, rows, toml
from midge.configuration.toml_file import inside

PAGE = Path(__file__).with_name("configuration.md")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "must be given"
    return "" if value is None else f"`{_cell(toml(value))}`"


def table(found: Iterable[KeyRow]) -> list[str]:
    """Keys as a table."""
    lines = [f"| `{row.name}` | {_cell(row.kind)} | {_default(row.default)} | {_cell(row.text)} |" for row in found]
    return ["| key | value | default | what |", "|---|---|---|---|", *lines] if lines else []


def listed(above: Any, path: tuple[str, ...]) -> list[str]:
    """One table of a file, with its kinds and the tables in it."""
    variants = kinds(above, path[-1])
    text = above.model_fields[path[-1]].description or ""
    lines = [f"#### [{'.'.join(path)}]", "", text, ""]
    first = next(iter(variants.values()))
    several = " or ".join(f'"{name}"' for name in variants)
    lines += table(replace(row, kind=several) if is_tag(row) and len(variants) > 1 else row for row in rows(first))
    for name, variant in list(variants.items())[1:]:
        word = next(row.name for row in rows(variant) if is_tag(row))
        more = differing(variant, first)
        gone = [row.name for row in rows(first) if row.name not in variant.model_fields]
        lines += ["", f'`{word} = "{name}"`: {(variant.__doc__ or "").strip()}']
        lines[-1] += f" Without {', '.join(f'`{each}`' for each in gone)}." if gone else ""
        lines += ["", *table(more)] if more else []
    below: dict[str, Any] = {}
    for variant in variants.values():
        for name, field in variant.model_fields.items():
            if any(True for _ in inside(field.annotation)):
                below.setdefault(name, variant)
    for name, variant in below.items():
        lines += ["", *listed(variant, (*path, name))]
    return lines


def keys(kind: str) -> str:
    """All tables of a file."""
    found = model(kind)
    return "\n\n".join("\n".join(listed(found, (name,))) for name in found.model_fields)


def reloaded() -> str:
    """What SIGHUP changes, and what it does not."""
    return "\n".join(
        [
            f"It changes {', '.join(f'`{name}`' for name in RELOADED)}. Of these it refuses:",
            "",
            *(f"- `{name}`: {why}." for name, why in FIXED.items()),
        ]
    )


def parts() -> dict[str, str]:
    """All generated parts of the page."""
    return {"aggregator": keys("aggregator"), "device": keys("device"), "reloaded": reloaded()}


def main() -> None:
    """Put all of them into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
