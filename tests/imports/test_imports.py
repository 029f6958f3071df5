"""What is loaded by whom: a device stays light, and a user's file must not hide ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "aiomqtt", "safetensors", "sklearn", "scipy", "rich", "aggregator", "sensor_fleet")


def loaded(program: str, *, cwd: Path | None = None) -> set[str]:
    """The top-level modules that a program has loaded when it ends."""
    ending = "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program + ending], cwd=cwd, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "program",
    [
        "import iot_client",
        "import iot_client.device",
        "import midge; midge.Device; midge.Fit; midge.Plan; midge.Moments",
    ],
)
def test_a_device_loads_neither_torch_nor_the_server(program: str) -> None:
    assert loaded(program).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "program",
    [
        "import iot_client.device, iot_client.identity, wire.sealing, wire.signing",
        "import midge, iot_client.identity as i, wire.topics as t; midge.Device; i.Identity(t.Topics('f'))",
    ],
)
def test_a_device_without_keys_loads_no_cryptography(program: str) -> None:
    assert "cryptography" not in loaded(program)


def test_the_names_of_the_package_are_all_there() -> None:
    import midge

    for name in midge.__all__:
        if name != "torch_trainer":
            assert getattr(midge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Client'"):
        midge.Client  # noqa: B018


@pytest.mark.parametrize("name", ["aggregator.py", "wire.py", "storage.py", "broker/__init__.py"])
def test_a_file_of_the_users_that_hides_ours_is_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    (tmp_path / "script.py").write_text("import midge\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert str(path.parent if path.name == "__init__.py" else path) in last and "rename" in last
