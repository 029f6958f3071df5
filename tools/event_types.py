"""Writes midge/event_types.pyi, the types of events, from the registry of events: python tools/event_types.py."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from midge.events import EVENTS, FIELDS, EventKind, Service

PAGE = Path(__file__).parents[1] / "midge" / "event_types.pyi"
SERVICES: tuple[Service, ...] = ("aggregator", "device")
"""Services with `on_event`."""
HEAD = """# Made from the registry in midge/events.py, by: python tools/event_types.py

from typing import Any, Literal, Required, TypeAlias, TypedDict


class _Event(TypedDict):
    time: float

class _DeviceEvent(_Event):
    device: str
"""


def named(kind: EventKind, service: Service) -> str:
    """The name of an event's type: with the service if several have an event of this name, or it is one's name."""
    several = Counter(name for each in SERVICES for name in EVENTS[each])[kind.name] > 1 or kind.name in SERVICES
    words = (service if several else "") + "_" + kind.name + "_event"
    return "".join(word.capitalize() for word in words.split("_"))


def lines(service: Service) -> Iterator[str]:
    """The types of one service, and their union."""
    base = "_DeviceEvent" if service == "device" else "_Event"
    for kind in EVENTS[service].values():
        name = named(kind, service)
        if "class" in kind.fields:  # no name of an attribute
            pairs = ", ".join(f'"{field}": {FIELDS[field].type}' for field in kind.fields)
            more = ', "device": Required[str]' if service == "device" else ""
            fixed = f'"event": Required[Literal["{kind.name}"]], "time": Required[float]{more}'
            yield f'\n{name} = TypedDict("{name}", {{{fixed}, {pairs}}}, total=False)\n'
            continue
        yield f"\n\nclass {name}({base}, total=False):"
        yield f'    event: Required[Literal["{kind.name}"]]'
        for field in kind.fields:
            if not (service == "device" and field == "device"):
                yield f"    {field}: {FIELDS[field].type}"
        yield ""
    names = " | ".join(named(kind, service) for kind in EVENTS[service].values())
    yield f"\n{service.capitalize()}Event: TypeAlias = ({names})"


def module() -> str:
    """The stub, formatted."""
    text = HEAD + "\n".join(line for service in SERVICES for line in lines(service)) + "\n"
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PAGE), "-"]
    return subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own text


def main() -> None:
    """Write the module."""
    PAGE.write_text(module())


if __name__ == "__main__":
    main()
