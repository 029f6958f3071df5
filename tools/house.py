"""Print figures of the code's structure as one JSON line: python tools/house.py.

Everything is computed from the source tree. `tests/docs/test_structure.py` holds the bounds.
"""

import ast
import io
import json
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = (
    "wire",
    "storage",
    "broker",
    "iot_client",
    "aggregator",
    "mask_helper",
    "gateway",
    "dashboard",
    "sensor_fleet",
    "midge",
)
BOARDS = ROOT / "iot_client" / "micropython"
"""A separate program for another machine, with its own class names; its words are checked all the same."""
BANNED = r"so many|by chance|anew|of note|of before|somebody|nobody|anybody|mendable"
"""Words for which the field has its own."""
COMMENTED = (
    "aggregator/core/core.py",
    "aggregator/core/state.py",
    "aggregator/store/journal.py",
    "aggregator/processor.py",
    "aggregator/shell.py",
    "aggregator/core/step_planner.py",
    "aggregator/store/store.py",
    "aggregator/core/update_admission.py",
    "iot_client/session/session.py",
    "iot_client/session/sending.py",
    "iot_client/session/training_cycle.py",
    "iot_client/shell.py",
    "iot_client/state/outbox.py",
)
"""Files whose decisions need comments."""


def sources(*folders: str) -> dict[str, str]:
    """The text of each Python file in these folders, by its path relative to the root."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if BOARDS not in path.parents)
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def classes(files: dict[str, str]) -> Iterator[tuple[str, ast.ClassDef]]:
    """All top-level classes."""
    for place, text in files.items():
        yield from ((place, node) for node in ast.parse(text).body if isinstance(node, ast.ClassDef))


def arguments(node: ast.ClassDef) -> int:
    """Number of arguments of a hand-written `__init__`, without `self`."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return len(each.args.posonlyargs) + len(each.args.args) + len(each.args.kwonlyargs) - 1
    return 0


def _place(module: str) -> str:
    """The place of a module in the tree: `midge.wire` is the folder `wire`."""
    inside = module.removeprefix("midge.")
    return inside if inside.split(".")[0] in PRODUCT else module


def imports(files: dict[str, str]) -> dict[str, set[str]]:
    """The modules of these packages that each module imports at its top level, without `TYPE_CHECKING` blocks."""
    modules = {place.removesuffix(".py").removesuffix("/__init__").replace("/", "."): place for place in files}
    found: dict[str, set[str]] = {}
    for module, place in modules.items():
        names: set[str] = set()
        for node in ast.parse(files[place]).body:
            if isinstance(node, ast.Import):
                names |= {_place(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {_place(f"{node.module}.{alias.name}") for alias in node.names}
                names |= named if named <= modules.keys() else named | {_place(node.module)}  # modules, or their names
        found[module] = {name for name in names if name in modules} - {module}
    return found


def cycles(graph: dict[str, set[str]]) -> int:
    """Number of import cycles (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = 0

    def visit(node: str) -> None:
        nonlocal found
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            found += len(group) > 1

    for node in graph:
        if node not in order:
            visit(node)
    return found


def share_of_comments(text: str) -> float:
    """Ratio of lines with a comment to lines with code; docstrings count as neither."""
    commented, coded = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            commented.add(token.start[0])
        elif token.type in {tokenize.NAME, tokenize.OP, tokenize.NUMBER}:
            coded.add(token.start[0])
    return len(commented) / max(len(coded), 1)


def rooms(package: str, graph: dict[str, set[str]]) -> tuple[int, int]:
    """The top-level parts of a package, and the number of pairs that import each other."""

    def room(module: str) -> str:
        return module.split(".")[1]

    inside = {module: others for module, others in graph.items() if module.startswith(f"{package}.")}
    names = {room(module) for module in inside}
    pairs = {
        (room(module), room(other))
        for module, others in inside.items()
        for other in others
        if other.startswith(f"{package}.") and room(other) != room(module)
    }
    return len(names), len(pairs)


def figures() -> dict[str, object]:
    """All figures."""
    product = sources(*PRODUCT)
    everything = product | sources("tests", "benchmarks")
    graph = imports(product)
    defined: dict[str, set[str]] = defaultdict(set)
    for place, node in classes(product):
        defined[node.name].add(place)
    longest = max(classes(product), key=lambda each: (each[1].end_lineno or 0) - each[1].lineno)
    public = set(ast.literal_eval(product["midge/__init__.py"].split("__all__ = ", 1)[1].split("\n]", 1)[0] + "]"))
    others = [each for each in classes(product) if each[1].name not in public]  # functions for users
    widest = max(others, key=lambda each: arguments(each[1]))
    cases: Counter[str] = Counter()
    for text in everything.values():
        for action in ("Train", "Reply"):
            cases[action] += len(re.findall(rf"case ev\.{action}\(", text))
    texts = list(product.values()) + [path.read_text() for path in ROOT.glob("*.md")]
    texts += [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    broker_rooms, broker_arrows = rooms("broker", graph)
    return {
        "lines": sum(len(text.splitlines()) for text in product.values()),
        "files": len(product),
        "sensor_fleet_lines": sum(len(text.splitlines()) for name, text in product.items() if "sensor_fleet/" in name),
        "readme_lines": len((ROOT / "README.md").read_text().splitlines()),
        "import_cycles": cycles(graph),
        "broker_rooms": broker_rooms,
        "broker_arrows": broker_arrows,
        "device_interpreters": cases["Train"],
        "aggregator_interpreters": cases["Reply"],
        "atomic_writers": sum(len(re.findall(r"\.replace\(path\)|os\.replace\(", text)) for text in product.values()),
        "largest_class": [longest[0], longest[1].name, (longest[1].end_lineno or 0) - longest[1].lineno + 1],
        "most_arguments": [widest[0], widest[1].name, arguments(widest[1])],
        "class_names_twice": sorted(name for name, places in defined.items() if len(places) > 1),
        "banned_words": sum(len(re.findall(BANNED, text, re.IGNORECASE)) for text in texts),
        "comments": {place: round(share_of_comments(product[place]), 3) for place in COMMENTED if place in product},
    }


if __name__ == "__main__":
    print(json.dumps(figures()))  # noqa: T201
