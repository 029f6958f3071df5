"""A device is made of one frozen value, which the command line replaces before it serves."""

import inspect
import subprocess
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

import midge
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit
from midge.public_device import BY_NAME
from tests.federation.live import Log, aggregator, serving

PLACE = {"url", "user", "password", "cafile", "certfile", "keyfile"}


def config(**changes: object) -> DeviceConfig:
    given = {
        "connector": Twin().connect,
        "federation": "f",
        "name": "a",
        "train": lambda p, _: Fit(p, 1),
        "outbox": None,
        **changes,
    }
    return DeviceConfig(**given)  # type: ignore[arg-type]


def test_the_public_device_takes_each_field_with_the_same_default() -> None:
    taken = dict(inspect.signature(midge.Device).parameters)
    assert set(taken) - PLACE == {field.name for field in fields(DeviceConfig)} - {"connector"}
    for field in fields(DeviceConfig):
        if field.name == "outbox":
            assert taken["outbox"].default == BY_NAME
        elif field.name != "connector":
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            assert taken[field.name].default == default, field.name
            assert taken[field.name].annotation == field.type, field.name


def test_a_misspelt_argument_is_an_error_for_a_type_checker_and_at_run_time(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="federatoin"):
        midge.Device("mqtt://localhost", federatoin="f")  # type: ignore[call-arg]
    program = tmp_path / "program.py"
    program.write_text(
        "import midge\n"
        "def train(parameters: midge.Parameters, plan: midge.TrainingPlan) -> midge.Fit:\n"
        "    return midge.Fit(parameters, 1)\n"
        'midge.Device("mqtt://localhost", federatoin="f", name="a", train=train, outbox=None)\n'
    )
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(program)], capture_output=True, text=True, check=False
    )
    assert 'Unexpected keyword argument "federatoin"' in found.stdout, found.stdout


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "a/b"}, "device name"),
        ({"federation": "a/b"}, "federation"),
        ({"train": 3}, "must be a function"),
        ({"sources": [midge.CsvRows("a.csv")]}, "samples=midge.Samples"),
        ({"sources": [object()]}, "it must be a list, each item an object with follow"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_said(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config(**changes)


def test_another_name_has_another_outbox_beside_the_old_one(tmp_path: Path) -> None:
    assert config(outbox=tmp_path / "a.outbox").renamed("b").outbox == tmp_path / "b.outbox"
    assert config().renamed("b").outbox is None


async def test_the_config_is_replaced_before_it_serves_and_not_later(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    device = Device(config())
    device.config = replace(device.config, connector=twin.connect, name="b", on_event=log)
    async with serving(aggregator(twin, tmp_path / "store", log), device):
        await log.until(lambda: log.of("connected", device="b"))
        with pytest.raises(RuntimeError, match="once it serves"):
            device.config = replace(device.config, name="c")
