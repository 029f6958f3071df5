"""MAC addresses, the commonest names of boards, as names of devices."""

import logging
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.broker.embedded.in_memory import Twin
from midge.wire.topics import device_name
from tests.federation.live import Log, aggregator, device, serving

MAC = "AA:BB:CC:DD:EE:0F"
EUI64 = "00:12:4b:00:1c:a1:b2:c3"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (MAC, "AA-BB-CC-DD-EE-0F"),
        (EUI64, "00-12-4b-00-1c-a1-b2-c3"),
        ("AA-BB-CC-DD-EE-0F", "AA-BB-CC-DD-EE-0F"),
        ("aabb.ccdd.ee0f", "aabb.ccdd.ee0f"),
        ("urn:dev:mac:0024befffe804ff1", "urn-dev-mac-0024befffe804ff1"),
        ("pump-17", "pump-17"),
    ],
)
def test_colons_become_hyphens(given: str, name: str) -> None:
    assert device_name(given) == name


@pytest.mark.parametrize("bad", ["", ":aa", "a/b", "a b", "a+", "x" * 65])
def test_what_is_no_name_is_none(bad: str) -> None:
    with pytest.raises(ValueError, match="cannot be a device name"):
        device_name(bad)


@pytest.mark.virtual
async def test_a_device_that_is_named_by_its_address_takes_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twin, log = Twin(), Log()
    with caplog.at_level(logging.WARNING, "iot_client"):
        named = device(twin, MAC, log, tmp_path / "a.outbox")
    assert named.name == "AA-BB-CC-DD-EE-0F"
    assert [each.getMessage() for each in caplog.records] == [
        f"The device {MAC} is called AA-BB-CC-DD-EE-0F: file names on an SD card cannot contain a colon."
    ]
    async with serving(aggregator(twin, tmp_path / "store", log)), serving(named, device(twin, "b", log)):
        await log.until(lambda: log.of("update", device="AA-BB-CC-DD-EE-0F", verdict="accepted"))


def test_commands_take_an_address_for_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    fleet = str(tmp_path / "fleet")
    assert main(["broker", "init", "--name", "f", "--out", fleet, "--device", MAC, "--host", "localhost"]) == 0
    assert f"{MAC} is called AA-BB-CC-DD-EE-0F" in capsys.readouterr().err
    assert main(["device-add", fleet, EUI64]) == 0
    made = {path.name for path in (tmp_path / "fleet" / "devices").glob("*.tar")}
    assert made == {"AA-BB-CC-DD-EE-0F.tar", "00-12-4b-00-1c-a1-b2-c3.tar"}
