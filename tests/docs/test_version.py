"""One version for all of the project's parts."""

import re
from pathlib import Path

import midge

ROOT = Path(__file__).parents[2]


def test_all_clients_have_the_version_of_the_distribution() -> None:
    micropython = (ROOT / "iot_client" / "micropython" / "midge" / "__init__.py").read_text()
    component = (ROOT / "iot_client" / "c" / "idf_component.yml").read_text()
    assert re.findall(r'__version__ = "(.+)"', micropython) == [midge.__version__]
    assert re.findall(r'^version: "(.+)"', component, re.MULTILINE) == [midge.__version__]
    assert f"## [{midge.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
