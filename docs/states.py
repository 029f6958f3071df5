"""Write the device's state machines into docs/design.md as Mermaid, from the code: python docs/states.py."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from marks import put

from midge.iot_client.session.session import LINKS, WORKS

PAGE = Path(__file__).with_name("design.md")


def diagram(table: Mapping[tuple[Enum, str], Enum]) -> str:
    """Return the diagram of one machine."""
    first = next(iter(table))[0].name
    lines = [f"    {state.name} --> {after.name}: {event}" for (state, event), after in table.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *lines, "```"])


def parts() -> dict[str, str]:
    """Return both diagrams as shown on the page."""
    return {"states": f"{diagram(LINKS)}\n\n{diagram(WORKS)}"}


def main() -> None:
    """Write the diagrams into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
