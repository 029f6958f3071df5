"""What a federation owes devices that can do little: at most once, any slot, short client ids."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.iot_client.connection.connection_loop import client_id
from midge.wire import messages
from midge.wire.messages import Plan, Update
from tests.federation.live import STRATEGY, Log, aggregator, device, overheard, serving

pytestmark = pytest.mark.virtual


class AtMostOnce(Twin):
    """Devices send at QoS 0 and on any slot, and each third update is lost on its way."""

    sent = 0

    def publish(self, client_id: str, message: RoutedMessage) -> None:
        if "-aggregator-" not in client_id:
            topic = message.topic
            if "/update/" in topic:
                self.sent += 1
                if self.sent % 3 == 0:
                    return
                before, _, name = topic.rsplit("/", 2)
                topic = f"{before}/{self.sent % 64:02}/{name}"
            message = replace(message, topic=topic, qos=0)
        super().publish(client_id, message)


async def test_devices_that_send_at_most_once_lose_nothing(tmp_path: Path) -> None:
    twin, log = AtMostOnce(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: len(log.of("settled", device="a")) > 10 and len(log.of("settled", device="b")) > 10)
    assert not log.of("trouble")
    for name in ("a", "b"):
        taken = [each["seq"] for each in log.of("update", device=name, verdict="accepted")]
        assert taken == list(range(1, len(taken) + 1)), "each once, in order"


async def test_a_microcontroller_among_others_uses_its_own_codec_and_holds_one_update(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    seen, strategy = overheard(twin), replace(STRATEGY, plan=Plan())
    server = aggregator(twin, tmp_path / "store", log, strategy=strategy)
    async with serving(server, device(twin, "board", log, micro=True), device(twin, "pi", log)):
        await log.until(lambda: len(log.of("update", verdict="accepted", device="board")) > 2)
        await log.until(lambda: len(log.of("update", verdict="accepted", device="pi")) > 2)
        assert server.devices["board"].capabilities["class"] == "micro"
    updates = [decoded(message) for message in seen if "/update/" in message.topic]
    assert {codec for name, codec in updates if name == "board"} == {"int8:256"}
    assert {codec for name, codec in updates if name == "pi"} == {"uq:4|rice"}


@pytest.mark.parametrize("micro", [True, False])
async def test_in_a_fleet_of_microcontrollers_each_holds_one_update(tmp_path: Path, micro: bool) -> None:
    twin, log = Twin(), Log()
    plan = Plan(codec="float32").micro() if micro else Plan(codec="float32")
    server = aggregator(twin, tmp_path / "store", log, strategy=replace(STRATEGY, plan=plan, release_floor=1))
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a", verdict="accepted"))
        twin.copies = lambda _client, message: int("/receipt/a" not in message.topic)
        await asyncio.sleep(2)
        twin.copies = lambda _client, _message: 1
        begun = len(log.events)
        await log.until(lambda: any(each["event"] == "settled" for each in log.events[begun:]))
    held, most = 0, 0
    for event in log.events:
        if event.get("device") == "a" and event["event"] in ("stored", "settled"):
            held = held + 1 if event["event"] == "stored" else 0
            most = max(most, held)
    assert (most == 1) is micro


def decoded(message: RoutedMessage) -> tuple[str, str]:
    update, _ = messages.decode(Update, message.payload)
    return message.topic.rsplit("/", 1)[-1], update.codec


def test_a_client_id_has_128_bytes_at_most() -> None:
    assert client_id("plant", "pump-17", 5) == "midge-plant-pump-17-0000000000000005", "as it always was"
    ids = {client_id("f" * 64, "d" * 64, outbox, "-0011aabb") for outbox in (1, 2)}
    ids |= {client_id("g" * 64, "d" * 64, 1, "-0011aabb"), client_id("f" * 64, "e" * 64, 1, "-0011aabb")}
    assert len(ids) == 4
    assert max(map(len, ids)) <= 128
