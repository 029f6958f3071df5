"""Up before the network: which devices wait for a broker that is away, and which end with a sentence."""

from pathlib import Path

import pytest

from midge.broker import BrokerRefused, BrokerUnreachable
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from tests.federation.live import Log, approach, device, serving


@pytest.mark.virtual
async def test_a_device_that_was_connected_once_waits_though_it_never_sent_an_update(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(device(twin, "a", log, tmp_path / "a")):
        await log.until(lambda: log.of("connected"))
    twin.reachable = False
    log.events.clear()
    async with serving(device(twin, "a", log, tmp_path / "a")):
        await log.until(lambda: len(log.of("disconnected")) > 3)
        twin.reachable = True
        await log.until(lambda: log.of("connected"))


@pytest.mark.virtual
async def test_a_refusal_such_as_of_a_clock_that_is_not_set_yet_is_waited_out_too(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(device(twin, "a", log, tmp_path / "a")):
        await log.until(lambda: log.of("connected"))
    log.events.clear()
    refusals = [BrokerRefused("The certificate is not trusted: it is good from 2026.")] * 3

    def connect(options):  # type: ignore[no-untyped-def]
        if refusals:
            raise refusals.pop()
        return twin.connect(options)

    config = DeviceConfig(
        connector=connect, federation="f", name="a", train=approach, outbox=tmp_path / "a", on_event=log
    )
    async with serving(Device(config)):
        await log.until(lambda: log.of("connected"))
    assert [each["refused"] for each in log.of("disconnected")] == [True] * 3


@pytest.mark.virtual
async def test_a_first_connection_ever_is_fatal_unless_it_is_to_wait(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    twin.reachable = False
    with pytest.raises(BrokerUnreachable):
        await device(twin, "a", log, tmp_path / "a").serve()
    async with serving(device(twin, "a", log, tmp_path / "a", wait=True)):
        await log.until(lambda: len(log.of("disconnected")) > 3)
        twin.reachable = True
        await log.until(lambda: log.of("connected"))
