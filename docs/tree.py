"""Write the tree of docs/architecture.md, one phrase per file, from the modules' first lines: python docs/tree.py."""

import ast
from pathlib import Path

from marks import put

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = {
    "wire": "wire format shared by device and aggregator; pure",
    "storage": "durable files, databases, failpoints",
    "broker": "MQTT connections, the embedded broker, provisioning, broker audit",
    "iot_client": "the device",
    "aggregator": "the server",
    "mask_helper": "the mask helper of secure aggregation, another party's process",
    "gateway": "a site's gateway: the aggregator of its devices, and one device of the federation above",
    "dashboard": "the live page of a federation",
    "sensor_fleet": "simulated fleets and the demo",
    "midge": "public API and the `midge` command; thin",
}
OTHERS = {
    "tests": "unit, contract (one suite for every broker), federation (virtual time, failpoints), acceptance tests",
    "benchmarks": "performance and learning measurements",
    "examples": "runnable example federations",
    "docs": "design, protocol, guides, tutorial",
    "tools": "metrics of the code's structure",
    "deploy": "Mosquitto, systemd, Docker and Kubernetes files, and how they were tested",
}


def phrase(path: Path) -> str:
    """Return the first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = text.split("\n\n")[0].replace("\n", " ")
    sentence = first.split(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= 100 else sentence[:97].rsplit(" ", 1)[0] + " …"


def listing(folder: Path, depth: int = 1) -> list[str]:
    """Return lines for the modules of a folder and its subfolders."""
    lines = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        name = "    " * depth + path.name
        if path.is_symlink():
            continue  # a link to a top-level package
        if path.is_dir() and (path / "__init__.py").exists():
            lines += [f"{name}/ ".ljust(34) + phrase(path / "__init__.py"), *listing(path, depth + 1)]
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(f"{name} ".ljust(34) + phrase(path))
    return lines


def parts() -> dict[str, str]:
    """Return the tree as shown on the page."""
    short = [f"{name}/".ljust(16) + text for name, text in {**PACKAGES, **OTHERS}.items()]
    long = [line for name in PACKAGES for line in (f"{name}/", *listing(ROOT / name))]
    fold = ["<details><summary>Every file in one phrase</summary>", "", "```", *long, "```", "", "</details>"]
    return {"tree": "\n".join(["```", *short, "```", "", *fold])}


def main() -> None:
    """Write the tree into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
