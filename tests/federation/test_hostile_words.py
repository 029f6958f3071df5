"""No message ends a device: what is forged, recorded or said by a hostile broker. A real duplicate still does."""

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.broker.mqtt.connection import ConnectionLost, Options, PacketTooLarge
from midge.iot_client.connection.connection_loop import DuplicateDeviceName
from midge.iot_client.device import Device
from midge.iot_client.state.outbox import Outbox
from midge.wire import frames, messages
from midge.wire.inputs import MOST, sayable
from midge.wire.messages import DeviceState, Hello
from tests.federation.live import Log, aggregator, clients, device, serving
from tests.security.keys import write_keys
from tests.security.test_federation import trusting

pytestmark = pytest.mark.virtual
STATUS = "midge/1/f/status/a"
Make = Callable[..., Device]


def devices_of(twin: Twin, folder: Path, kind: str) -> tuple[Make, dict[str, Any]]:
    """How a device is made, and what the aggregator is told: without keys, with a pinned one, with one of its own."""
    if kind == "unsigned":
        return lambda name, log, outbox=None: device(twin, name, log, outbox), {}
    private, public = write_keys(folder)
    if kind == "pinned":
        return lambda name, log, outbox=None: trusting(twin, name, log, public, outbox), {"release_key": private}
    keys = folder / "devices"
    keys.mkdir()
    for name in "ab":
        _, own = write_keys(folder, name)
        (keys / f"{name}.pub").write_bytes(own.read_bytes())
    return (
        lambda name, log, outbox=None: trusting(twin, name, log, public, outbox, signing_key=folder / name),
        {"release_key": private, "device_keys": keys, "require_signed": True},
    )


KINDS = pytest.mark.parametrize("kind", ["unsigned", "pinned", "signing"])


@KINDS
async def test_a_forged_status_ends_no_device(tmp_path: Path, kind: str) -> None:
    """Retained, or said once at whatever moment: it ended the device with exit 2, and again at each start."""
    twin, log = Twin(), Log()
    make, arguments = devices_of(twin, tmp_path, kind)
    forged = [frames.encode(Hello(state=state, outbox=77)) for state in (DeviceState.READY, DeviceState.TRAINING)]
    async with twin.connect(Options("forger")) as forger:
        await forger.publish(STATUS, forged[0], retain=True)
        async with serving(aggregator(twin, tmp_path / "store", log, **arguments), make("b", log), make("a", log)):
            for _ in range(1 if kind == "unsigned" else 20):
                await asyncio.sleep(0.5)  # while it asks whether another lives
                await forger.publish(STATUS, forged[1])
            await log.until(lambda: log.of("receipt", device="a"))
            for payload in (*forged, b"", b"\0\0", frames.encode(Hello(state=DeviceState.JOINING, outbox=5, number=9))):
                await forger.publish(STATUS, payload, retain=True)
                twin.drop(clients(twin, "-f-a-")[0])
                seen = len(log.of("connected", device="a"))
                await log.until(lambda seen=seen: len(log.of("connected", device="a")) > seen)  # type: ignore[misc]
            settled = len(log.of("receipt", device="a"))
            await log.until(lambda: len(log.of("receipt", device="a")) > settled + 2)


@KINDS
async def test_a_broker_that_answers_in_its_name_ends_no_device_that_pins_a_key(tmp_path: Path, kind: str) -> None:
    """It has read the question, and says what a live device of that name would."""
    twin, log = Twin(), Log()
    make, arguments = devices_of(twin, tmp_path, kind)
    answering = True

    async def answer(evil: Any) -> None:
        async for delivery in evil.messages():
            hello, _ = messages.decode(Hello, delivery.payload)
            if hello.state is DeviceState.JOINING and answering:
                said = hello.model_copy(
                    update={"state": DeviceState.READY, "outbox": 77, "number": 0, "to": hello.number}
                )
                await evil.publish(STATUS, frames.encode(said))

    async with twin.connect(Options("broker")) as evil:
        await evil.publish(STATUS, frames.encode(Hello(state=DeviceState.READY, outbox=77)), retain=True)
        await evil.subscribe(STATUS)
        lying = asyncio.create_task(answer(evil))
        if kind == "unsigned":
            with pytest.raises(DuplicateDeviceName):  # nothing tells it from a device
                await make("a", log).serve()
        else:
            async with serving(aggregator(twin, tmp_path / "store", log, **arguments), make("b", log), make("a", log)):
                if kind == "pinned":
                    await log.until(lambda: len(log.of("disconnected", device="a")) > 2)
                    assert "no key to tell" in log.of("disconnected", device="a")[-1]["why"]
                    answering = False
                await log.until(lambda: log.of("receipt", device="a"))
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)


async def test_what_a_device_had_signed_itself_and_is_said_again_ends_it_not(tmp_path: Path) -> None:
    """A status that it signed with an identity of before: signed by its key, and of another outbox."""
    twin, log, seen = Twin(), Log(), list[bytes]()
    make, arguments = devices_of(twin, tmp_path, "signing")

    def copies(_client: str, message: RoutedMessage) -> int:
        if message.topic == STATUS:
            seen.append(message.payload)
        return 1

    twin.copies = copies
    async with serving(aggregator(twin, tmp_path / "store", log, **arguments), make("b", log)):
        for outbox in ("one", "two"):
            log.events.clear()
            async with serving(make("a", log, tmp_path / outbox)):
                await log.until(lambda: log.of("receipt", device="a"))
        log.events.clear()
        async with twin.connect(Options("broker")) as evil:
            recorded = list(seen)
            async with serving(make("a", log, tmp_path / "one")):
                for payload in recorded:
                    await evil.publish(STATUS, payload)
                await log.until(lambda: log.of("receipt", device="a"))


@pytest.mark.parametrize("kind", ["unsigned", "signing"])
async def test_two_devices_of_one_name_still_are_one(tmp_path: Path, kind: str) -> None:
    twin, log = Twin(), Log()
    make, arguments = devices_of(twin, tmp_path, kind)
    async with serving(aggregator(twin, tmp_path / "store", log, **arguments), make("a", log), make("b", log)):
        await log.until(lambda: log.of("receipt", device="a"))
        with pytest.raises(DuplicateDeviceName, match="give each device its own name"):
            await make("a", Log()).serve()


@pytest.mark.parametrize("kind", ["unsigned", "signing"])
async def test_of_two_on_copies_of_one_outbox_one_ends(tmp_path: Path, kind: str) -> None:
    twin, log = Twin(), Log()
    make, arguments = devices_of(twin, tmp_path, kind)
    with Outbox(tmp_path / "one"):
        pass
    shutil.copy(tmp_path / "one", tmp_path / "two")
    async with serving(aggregator(twin, tmp_path / "store", log, **arguments), make("b", log)):
        first = asyncio.create_task(make("a", log, tmp_path / "one").serve())
        await log.until(lambda: log.of("receipt", device="a"))
        async with serving(make("a", log, tmp_path / "two")):
            with pytest.raises(DuplicateDeviceName, match="never copy"):
                await first


@KINDS
async def test_a_broker_that_says_another_has_come_ends_no_device(tmp_path: Path, kind: str) -> None:
    """With the reason code of a session that was taken over, again and again."""
    twin, log = Twin(), Log()
    make, arguments = devices_of(twin, tmp_path, kind)
    async with serving(aggregator(twin, tmp_path / "store", log, **arguments), make("b", log), make("a", log)):
        for _ in range(3):
            settled, seen = len(log.of("receipt", device="a")), len(log.of("connected", device="a"))
            await log.until(lambda settled=settled: len(log.of("receipt", device="a")) > settled)  # type: ignore[misc]
            (name,) = clients(twin, "-f-a-")
            connection = twin._connections[name]
            twin.drop(name)
            connection.lose("another client came with the same client id", taken_over=True)
            await log.until(lambda seen=seen: len(log.of("connected", device="a")) > seen)  # type: ignore[misc]


async def test_a_fetch_that_the_broker_has_no_room_for_ends_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, log = Twin(), Log()
    made = device(twin, "a", log)
    left = [2]
    from midge.iot_client.connection import model_fetcher

    real = model_fetcher.Fetcher.fetch

    async def fetch(self: Any, *arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise PacketTooLarge("a packet of 60 bytes does not fit")
        return await real(self, *arguments)

    monkeypatch.setattr(model_fetcher.Fetcher, "fetch", fetch)
    async with serving(aggregator(twin, tmp_path / "store", log), made, device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a"))
    assert len(log.of("fetch_failed")) == 2
    assert issubclass(ConnectionLost, Exception)


async def test_names_of_inputs_that_fill_an_announcement_are_not_taken(tmp_path: Path) -> None:
    """Two devices agreed on names of 60 kB, and no announcement could be written any more, after a restart either."""
    names = tuple(f"{chr(0x1F600 + number % 40) * 60}{number:04}" for number in range(MOST - 10))
    assert sayable(names) == ()
    twin, log = Twin(), Log()
    async with twin.connect(Options("forger")) as forger, serving(aggregator(twin, tmp_path / "store", log)):
        await log.until(lambda: log.of("connected"))
        for name in ("x", "y", "z"):
            hello = Hello(state=DeviceState.READY, outbox=1, features=names)
            await forger.publish(f"midge/1/f/status/{name}", frames.encode(hello))
        await log.until(partial(log.of, "device", device="z"))
        assert not log.of("features")
        async with serving(device(twin, "a", log), device(twin, "b", log)):
            await log.until(lambda: log.of("release", version=3))
