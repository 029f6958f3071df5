"""docs/configuration.md: its tables are those of the code, and its example is right."""

import re
from pathlib import Path

import pytest

from midge.__main__ import main
from tests.docs.scripts import script


def test_its_example_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", script("configuration").PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "midge.toml").write_text(example)
    assert main(["config", "check", str(tmp_path / "midge.toml")]) == 0
    assert "federation 'pumps', a model of 4 values" in capsys.readouterr().out
