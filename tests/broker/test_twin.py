"""The faults that the twin can be told to have, beside the contract."""

import asyncio

import pytest

from midge.broker import BrokerUnreachable, ConnectionLost, PacketTooLarge, Will
from midge.broker.embedded.in_memory import Twin
from tests.broker.worlds import options, take


async def test_messages_are_lost_and_doubled_by_a_predicate() -> None:
    twin = Twin()
    twin.copies = lambda client, message: {b"lost": 0, b"twice": 2}.get(message.payload, 1) if client == "a" else 1
    async with twin.connect(options("a")) as a, twin.connect(options("b")) as b:
        await b.subscribe("t")
        for payload in (b"lost", b"twice", b"once"):
            await a.publish("t", payload)
        await b.publish("t", b"lost")
        assert [each.payload for each in b.waiting()] == [b"twice", b"twice", b"once", b"lost"]


async def test_a_dropped_client_loses_its_connection_and_leaves_its_will() -> None:
    twin = Twin()
    async with twin.connect(options("watcher")) as watcher:
        await watcher.subscribe("will")
        async with twin.connect(options("a", will=Will("will", b"lost"))) as connection:
            twin.drop("a")
            with pytest.raises(ConnectionLost, match="broke"):
                await connection.publish("t", b"")
        twin.drop("a")
        twin.drop("nobody")
        assert [each.payload for each in watcher.waiting()] == [b"lost"]


async def test_a_killed_broker_forgets_and_is_unreachable_until_restarted() -> None:
    twin = Twin()
    async with twin.connect(options()) as connection:
        await connection.publish("t", b"retained", retain=True)
        twin.kill()
    with pytest.raises(BrokerUnreachable):
        async with twin.connect(options()):
            pass
    twin.restart()
    async with twin.connect(options()) as connection:
        await connection.subscribe("t")
        assert connection.waiting() == ()


async def test_a_packet_larger_than_it_takes() -> None:
    async with Twin(maximum_packet_size=1000).connect(options()) as connection:
        assert connection.limits.maximum_packet_size == 1000
        with pytest.raises(PacketTooLarge):
            await connection.publish("t", bytes(1000))
        await connection.publish("t", bytes(900))


def test_a_thousand_devices_on_any_loop() -> None:
    async def scenario() -> int:
        twin = Twin()
        async with twin.connect(options("aggregator", receive_maximum=65535)) as aggregator:
            await aggregator.subscribe("update/+")

            async def device(number: int) -> None:
                async with twin.connect(options(f"device{number}")) as connection:
                    await connection.publish(f"update/{number}", b"")

            async with asyncio.TaskGroup() as group:
                for number in range(1000):
                    group.create_task(device(number))
            return len(await take(aggregator, 1000))

    loop = asyncio.SelectorEventLoop()
    try:
        assert loop.run_until_complete(scenario()) == 1000
    finally:
        loop.close()
