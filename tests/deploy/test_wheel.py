"""What `pip install midge` brings to a device: no torch, no server, and it federates."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.device import federate, install, run
from tests import needs

NEEDED = {"midge", "msgpack", "numpy", "paho_mqtt", "pydantic"}
BROUGHT = {"annotated_types", "pydantic_core", "typing_extensions", "typing_inspection"}
"""By pydantic."""


@pytest.mark.mosquitto
@needs.mosquitto
def test_a_device_without_extras_federates_from_an_installed_wheel(tmp_path: Path) -> None:
    """The device itself asserts that neither torch nor anything of the server is loaded when it has trained."""
    python = install(tmp_path, compiled=False)
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    installed = {path.name.partition("-")[0] for path in site.glob("*.dist-info")}
    assert NEEDED <= installed <= NEEDED | BROUGHT
    assert {path.name for path in site.glob("*") if path.name in ("torch", "sklearn", "starlette", "flask")} == set()
    home = run(str(python), "-I", "-c", "import midge; print(midge.__file__)").strip()
    assert Path(home).is_relative_to(tmp_path)  # not this tree, whatever the directory
    assert asyncio.run(federate(python, tmp_path)) > 0
