"""How the package comes onto a board: by `mip`, or frozen by its manifest; and not into the Python wheel."""

import json
import shutil
import tomllib
from pathlib import Path

from tests.micropython.board import HEAP, PACKAGE, compiled, run
from tests.needs import micropython, mpy_cross

ROOT = PACKAGE.parents[1]


def _install(target: Path) -> None:
    """Do as `mip` does with the package's list of files."""
    for place, source in json.loads((PACKAGE / "package.json").read_text())["urls"]:
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / source, target / place)


def test_mip_installs_every_module() -> None:
    urls = json.loads((PACKAGE / "package.json").read_text())["urls"]
    modules = sorted(f"midge/{path.name}" for path in (PACKAGE / "midge").glob("*.py"))
    assert urls == [[name, name] for name in modules]


@micropython
def test_what_mip_installs_can_be_imported(tmp_path: Path) -> None:
    _install(tmp_path)
    assert run("-c", "import midge; print(midge.__version__)", code=tmp_path).stdout == "0.1.0\n"


@micropython
@mpy_cross
def test_it_compiles_and_its_code_alone_fits_a_board(tmp_path: Path) -> None:
    run("-c", "import midge", code=compiled(tmp_path), heap=HEAP)


def test_the_wheel_leaves_it_out() -> None:
    """It runs on no CPython; whoever wants it takes the folder."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert not [name for name in packages if "micropython" in name]


def test_its_names_are_those_of_the_wire() -> None:
    """A board may know fewer, never others: names are appended."""
    from midge.wire.names import NAMES

    found: dict[str, tuple[str, ...]] = {}
    exec((PACKAGE / "midge" / "names.py").read_text(), found)
    assert found["NAMES"] == NAMES[: len(found["NAMES"])]
