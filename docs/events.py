"""Writes the tables of docs/events.md from the registry in midge/events.py: python docs/events.py."""

from pathlib import Path

from marks import put

from midge.events import EVENTS, FAILED, FIELDS, LOG, EventKind

PAGE = Path(__file__).with_name("events.md")
TITLES = {
    "aggregator": "Of an aggregator",
    "device": "Of a device",
    "authority": "Of `midge broker renewals`",
    "helper": "Of `midge helper run`",
    "gateway": "Of `midge gateway run`, beside those of its device (`side` is `above`) and aggregator (`below`)",
}


def row(kind: EventKind) -> str:
    """The line of an event."""
    fields = ", ".join(f"`{name}`" for name in kind.fields)
    return f"| `{kind.name}` | {kind.level} | {fields} | {kind.meaning} |"


def in_json(annotation: str) -> str:
    """A Python type in words of JSON."""
    words = {
        "int": "integer",
        "float": "number",
        "str": "text",
        "bytes": "text, hexadecimal",
        "bool": "true or false",
        "None": "null",
    }
    return " or ".join(words.get(name, _container(name)) for name in annotation.split(" | "))


def _container(annotation: str) -> str:
    match annotation.split("["):
        case ["list", *_]:
            return "array"
        case ["dict", *_]:
            return "object"
    return "text"


def parts() -> dict[str, str]:
    """The tables, as they stand on the page."""
    lines: list[str] = []
    for service, kinds in EVENTS.items():
        lines += ["", f"## {TITLES[service]}", "", "| event | level | fields | |", "|---|---|---|---|"]
        lines += [row(kind) for kind in kinds.values()]
    lines += ["", "## Of every command", "", "| event | level | fields | |", "|---|---|---|---|", row(LOG), row(FAILED)]
    lines += ["", "## Fields", "", "| field | type | |", "|---|---|---|"]
    lines += [f"| `{name}` | {in_json(field.type)} | {field.meaning} |" for name, field in sorted(FIELDS.items())]
    return {"events": "\n".join(lines)}


def main() -> None:
    """Put the tables into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
