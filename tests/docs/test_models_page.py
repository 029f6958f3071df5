"""The commands of docs/models.md do what the page says, and its rules are rules."""

import re
import shlex
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import midge
from midge.__main__ import main
from midge.iot_client.training.numpy_models import MLP
from tests.aggregator.test_registry import Life
from tests.docs.scripts import ROOT

PAGE = (ROOT / "docs" / "models.md").read_text()
NET = MLP(3, (4,), 2)


def test_the_pages_commands_are_followed_by_an_aggregator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page, but that the numbers are those of this store."""
    monkeypatch.chdir(tmp_path)
    roles = {"input_mean": "frozen", "input_scale": "frozen"}
    life = Life(tmp_path / "store", parameters=NET.initial(), roles=roles)
    life.wall = time.time()
    commands = [each for each in re.findall(r"^    (midge model \S.*)$", PAGE, re.MULTILINE) if "mqtts:" not in each]
    assert len(commands) >= 9
    for command in commands:
        seq = life.rig.core.hi("a", 1) + 1
        life.rig.send("a", seq, np.full(life.rig.model.schema.size, 0.25, np.float32), now=life.now)
        registered = max(life.registry.versions, default=0)
        if "promote" in command and not command.endswith("12"):
            life.order("register", attempt=True)
        words = shlex.split(command.replace("/var/lib/midge/store", str(tmp_path / "store")))[1:]
        words = [str(registered) if word == "12" else word for word in words]
        codes: list[int] = []
        asking = threading.Thread(target=lambda words=words, codes=codes: codes.append(main(words)))
        asking.start()
        while asking.is_alive():
            life.look()
            asking.join(0.05)
        assert codes == [0], (command, capsys.readouterr())
    life.rig.close()
    assert (tmp_path / "pump.onnx").exists() and (tmp_path / "pump-hub" / "README.md").exists()
    assert life.registry.champion and life.rig.core.generation == 1


def test_the_pages_rules_are_rules() -> None:
    program = PAGE.split("```python\n")[1].split("```")[0]
    given: dict[str, object] = {}
    exec(program, given)
    assert given["rules"] == midge.RegistryPolicy(every=86_400.0)


def test_the_pages_numbers_are_those_of_the_code() -> None:
    from midge.aggregator.store.model_orders import LONGEST
    from midge.iot_client.connection.alias_channel import EVERY
    from midge.wire.sign_test import e_value

    rules = midge.RegistryPolicy()
    assert f"At most {rules.keep}\nare kept" in PAGE and f"from fewer than {rules.devices}" in PAGE
    assert e_value(7, 0) >= 20 > e_value(6, 0) and "seven devices of seven" in PAGE
    assert LONGEST == 86_400 and EVERY == 3600 and rules.patience == 7 * 86_400 and rules.alpha == 0.05
