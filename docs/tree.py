"""Writes the tree of docs/architecture.md, a phrase a file, from the modules' first lines: python docs/tree.py."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree -->", "<!-- /tree -->"
PACKAGES = {
    "wire": "the contract between a device and the aggregator. Pure",
    "storage": "what must survive a power cut: files, databases, failpoints",
    "broker": "the MQTT side",
    "iot_client": "the device",
    "aggregator": "the server",
    "sensor_fleet": "simulated fleets and the demonstration",
    "midge": "the names a user imports and the `midge` command; thin",
}
OTHERS = {
    "tests": "unit, contract (one suite for every broker), federation (virtual time, failpoints), acceptance",
    "benchmarks": "what is fast, measured",
    "examples": "short programs that run",
    "docs": "design, protocol, tutorial",
    "tools": "figures of the code's structure",
    "deploy": "for installing it: Mosquitto, systemd, Docker, Kubernetes; what of it was tried",
}


def phrase(path: Path) -> str:
    """The first sentence of a module, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = text.split("\n\n")[0].replace("\n", " ")
    sentence = first.split(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= 100 else sentence[:97].rsplit(" ", 1)[0] + " …"


def listing(folder: Path, depth: int = 1) -> list[str]:
    """The modules of a folder and of those below it."""
    lines = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        name = "    " * depth + path.name
        if path.is_symlink():
            continue  # a package that lies beside `midge`
        if path.is_dir() and (path / "__init__.py").exists():
            lines += [f"{name}/".ljust(34) + phrase(path / "__init__.py"), *listing(path, depth + 1)]
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(name.ljust(34) + phrase(path))
    return lines


def section() -> str:
    """The tree, as it stands on the page."""
    short = [f"{name}/".ljust(16) + text for name, text in {**PACKAGES, **OTHERS}.items()]
    long = [line for name in PACKAGES for line in (f"{name}/", *listing(ROOT / name))]
    fold = ["<details><summary>Every file, a phrase each</summary>", "", "```", *long, "```", "", "</details>"]
    return "\n".join([BEGIN, "```", *short, "```", "", *fold, END])


def main() -> None:
    """Put the tree into the page."""
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN)] + section() + text[text.index(END) + len(END) :])


if __name__ == "__main__":
    main()
