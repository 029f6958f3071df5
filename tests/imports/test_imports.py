"""What is loaded by whom: a device stays light, and a user's file must not hide ours."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.device import PACKAGES

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch", "aiomqtt", "safetensors", "sklearn", "scipy", "rich", "starlette", "uvicorn", "midge.aggregator",
    "midge.dashboard", "midge.gateway", "midge.mask_helper", "midge.sensor_fleet",
)  # fmt: skip


def loaded(program: str, *, cwd: Path | None = None) -> set[str]:
    """The top-level modules that a program has loaded when it ends, and our packages."""
    ending = """
import sys, json
print(json.dumps(sorted({".".join(name.split(".")[: 1 + name.startswith("midge.")]) for name in sys.modules})))"""
    done = subprocess.run([sys.executable, "-c", program + ending], cwd=cwd, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "program",
    [
        "import iot_client",
        "import midge.iot_client.device",
        "import midge; midge.Device; midge.Fit; midge.Plan; midge.Moments",
    ],
)
def test_a_device_loads_neither_torch_nor_the_server(program: str) -> None:
    assert loaded(program).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "program",
    [
        "import midge.iot_client.device, midge.iot_client.connection.identity, midge.wire.sealing, midge.wire.signing",
        "import midge; from midge.iot_client.connection.identity import Identity; midge.Device; Identity",
    ],
)
def test_a_device_without_keys_loads_no_cryptography(program: str) -> None:
    assert "cryptography" not in loaded(program)


def test_the_names_of_the_package_are_all_there() -> None:
    import midge

    assert dir(midge) == sorted(midge.__all__)
    for name in midge.__all__:
        if name not in {"torch_evaluator", "torch_trainer"}:
            assert getattr(midge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Client'"):
        midge.Client  # noqa: B018


@pytest.mark.parametrize("name", ["aggregator.py", "wire.py", "storage.py", "broker/__init__.py"])
def test_a_file_of_the_users_with_the_name_of_a_folder_of_ours_is_no_harm(tmp_path: Path, name: str) -> None:
    """Seen to fail: PyPI has a `broker`, and installed beside our wheel it overwrote ours."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise AssertionError('a file of the user was imported')\n")
    program = "import midge; midge.balanced(); midge.Device; import midge.broker.embedded.server"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FOLDERS = PACKAGES[:-1]


def test_an_image_is_built_from_every_package() -> None:
    """Seen to fail on a package that was not in the context."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {*PACKAGES, "pyproject.toml", "README.md", "LICENSE"}


def test_our_packages_are_imported_as_those_of_midge() -> None:
    """Imported by their folders as well, each would be there twice."""
    plain = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", re.MULTILINE)
    places = [
        path
        for folder in (*FOLDERS, "tests", "benchmarks", "examples", "docs", "tools")
        for path in (ROOT / folder).rglob("*.py")
    ]
    places += (ROOT / "midge").glob("*.py")
    assert [path for path in places if plain.search(path.read_text())] == []
    for folder in FOLDERS:
        assert (ROOT / "midge" / folder).resolve() == ROOT / folder
