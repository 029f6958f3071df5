"""What a wheel carries, and what `pip install midge` brings to a device: no torch, no server, and it federates."""

import asyncio
import zipfile
from pathlib import Path

import pytest

from benchmarks.device import ROOT, build, federate, install, run
from tests import needs

NEEDED = {"midge", "msgpack", "numpy", "paho_mqtt", "pydantic"}
BROUGHT = {"annotated_types", "pydantic_core", "typing_extensions", "typing_inspection"}
"""By pydantic."""


def test_a_wheel_carries_what_is_read_beside_the_code(tmp_path: Path) -> None:
    """A page without its template, or a fleet without its profile, would fail only where Midge is installed."""
    packed = set(zipfile.ZipFile(build(tmp_path)).namelist())
    needed = [*(ROOT / "sensor_fleet").rglob("*.j2"), *(ROOT / "sensor_fleet").rglob("*.toml")]
    needed += (ROOT / "dashboard" / "static").iterdir()
    project = [*(ROOT / "midge" / "project").rglob("*.in")]
    assert len(needed) > 20 and len(project) == 10
    assert {f"midge/{path.relative_to(ROOT).as_posix()}" for path in needed} <= packed
    assert {path.relative_to(ROOT).as_posix() for path in project} <= packed
    tops = {name.partition("/")[0] for name in packed}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"midge"}, (
        "PyPI has other packages of our folders' names"
    )


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
