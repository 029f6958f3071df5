"""Links over the broker in memory, on a virtual clock: slow, in order, doubling, breaking."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from midge.broker import Connection, ConnectionLost, Delivery, Options, Will
from midge.broker.embedded.in_memory import Twin
from midge.sensor_fleet.links import DeviceLink
from midge.sensor_fleet.world import World
from tests.demo.clock import run_virtually

CALM = World().calm()
NAME = "sensor-01"


def link_to(twin: Twin, world: World, watch: Callable[[Delivery], None] = lambda _: None) -> DeviceLink:
    population = world.population([NAME])

    def sever(_: Connection, client_id: str) -> None:
        twin.drop(client_id)

    link = DeviceLink(twin.connect, population, NAME, sever=sever, watch=watch, patient=True)
    link.begin(now())
    return link


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(connection: Connection, count: int) -> list[tuple[float, bytes]]:
    """The next payloads, each with when it came."""
    taken = []
    async for delivery in connection.messages():
        connection.ack(delivery)
        taken.append((now(), delivery.payload))
        if len(taken) == count:
            break
    return taken


def test_a_message_takes_the_latency_and_its_size_over_the_bandwidth() -> None:
    async def work() -> None:
        twin = Twin()
        link = link_to(twin, replace(CALM, bandwidth=1000.0, latency=0.5, link_spread=0.0))
        async with twin.connect(Options("sink")) as sink, link(Options(NAME)) as device:
            await sink.subscribe("t")
            began = now()
            async with asyncio.TaskGroup() as tasks:
                for number in range(3):
                    tasks.create_task(device.publish("t", bytes([number]) * 999))
                taken = await take(sink, 3)
            assert [payload[0] for _, payload in taken] == [0, 1, 2]
            assert [at - began for at, _ in taken] == pytest.approx([1.5, 2.5, 3.5])

            await device.subscribe("down")
            began = now()
            await sink.publish("down", b"x" * 996)
            await sink.publish("down", b"y" * 996)
            assert [at - began for at, _ in await take(device, 2)] == pytest.approx([1.5, 2.5])

    run_virtually(work())


def test_a_calm_link_adds_nothing() -> None:
    async def work() -> None:
        twin = Twin()
        async with twin.connect(Options("sink")) as sink, link_to(twin, CALM)(Options(NAME)) as device:
            await sink.subscribe("t")
            await device.publish("t", b"1")
            await device.publish("t", b"2", qos=0)
            assert [payload for _, payload in await take(sink, 2)] == [b"1", b"2"]
            assert now() == 0

    run_virtually(work())


def test_messages_of_qos_1_come_twice_and_the_device_does_not_know() -> None:
    async def work() -> list[bytes]:
        twin = Twin()
        async with twin.connect(Options("sink")) as sink, link_to(twin, replace(CALM, twice=1.0))(Options(NAME)) as d:
            await sink.subscribe("t")
            await d.publish("t", b"once", qos=0)
            await d.publish("t", b"twice")
            return [payload for _, payload in await take(sink, 3)]

    assert run_virtually(work()) == [b"once", b"twice", b"twice"]


def test_an_outage_breaks_the_connection_fires_the_will_and_holds_up_the_next_one() -> None:
    world = replace(CALM, online=20.0, offline=5.0)
    broken, whole = next(world.population([NAME]).outages(NAME))
    options = Options(NAME, will=Will("will", b"lost"), timeout=100)

    async def work() -> None:
        twin = Twin()
        link = link_to(twin, world)
        async with twin.connect(Options("sink")) as sink:
            await sink.subscribe("will")
            async with link(options) as device:
                stood = link.connected
                with pytest.raises(ConnectionLost, match="broke"):
                    await take(device, 1)
            assert now() == pytest.approx(broken)
            assert stood and not link.connected
            assert [payload for _, payload in await take(sink, 1)] == [b"lost"]
            async with link(options):
                assert now() == pytest.approx(whole)

    run_virtually(work())


def test_what_is_on_the_way_when_the_link_breaks_is_lost() -> None:
    async def work() -> None:
        twin = Twin()
        link = link_to(twin, replace(CALM, latency=1.0, link_spread=0.0))
        async with twin.connect(Options("sink")) as sink:
            await sink.subscribe("t")
            async with link(Options(NAME)) as device:
                await device.subscribe("down")
                await sink.publish("down", b"never read")
                sending = asyncio.create_task(device.publish("t", b"never sent"))
                await asyncio.sleep(0.5)
                link.cut()
                with pytest.raises(ConnectionLost):
                    await sending
                with pytest.raises(ConnectionLost):
                    await take(device, 1)
                with pytest.raises(ConnectionLost):
                    await device.publish("t", b"too late")
            assert not sink.waiting()

    run_virtually(work())


def test_a_goodbye_fires_no_will() -> None:
    async def work() -> None:
        twin = Twin()
        async with twin.connect(Options("sink")) as sink:
            await sink.subscribe("will")
            async with link_to(twin, CALM)(Options(NAME, will=Will("will", b"lost"))):
                pass
            assert not sink.waiting()

    run_virtually(work())


def test_a_connection_waits_for_as_long_as_an_outage_lasts() -> None:
    world = replace(CALM, online=1.0, offline=1000.0)
    broken, whole = next(world.population([NAME]).outages(NAME))
    assert whole - broken > 20

    async def work() -> None:
        link = link_to(Twin(), world)
        await asyncio.sleep(broken + 0.1)
        async with link(Options(NAME, timeout=10)):
            assert now() == pytest.approx(whole)

    run_virtually(work())


def test_devices_connect_by_turns_and_make_room_once_they_have_greeted() -> None:
    async def work() -> None:
        twin, gate = Twin(), asyncio.Semaphore(1)
        population = CALM.population(["a", "b"])
        one, other = (DeviceLink(twin.connect, population, name, gate=gate) for name in "ab")

        async def connect() -> None:
            async with other(Options("b")):
                assert one.established

        async with one(Options("a")):
            connecting = asyncio.create_task(connect())
            await asyncio.sleep(1)
            assert not one.established and not connecting.done()
            one.establish()
            await connecting

    run_virtually(work())


def test_a_device_that_is_to_end_does_not_wait_for_its_link() -> None:
    world = replace(CALM, online=1.0, offline=1000.0)

    async def work() -> None:
        link = link_to(Twin(), world)
        at = next(world.population([NAME]).outages(NAME))[0] + 0.1
        await asyncio.sleep(at)
        closing = asyncio.get_running_loop().call_later(1, link.close)
        with pytest.raises(ConnectionLost):
            async with link(Options(NAME)):
                pass
        assert now() == pytest.approx(closing.when())

    run_virtually(work())


def test_an_unreachable_broker_is_a_lost_connection_even_before_the_first() -> None:
    async def work() -> None:
        twin = Twin()
        link = link_to(twin, CALM)
        for _ in range(2):
            twin.reachable = False
            with pytest.raises(ConnectionLost):
                async with link(Options(NAME)):
                    pass
            twin.reachable = True
            async with link(Options(NAME)):
                assert link.connected
            twin.kill()

    run_virtually(work())


def test_errors_of_the_block_come_out_as_they_are() -> None:
    async def work() -> None:
        with pytest.raises(KeyError):
            async with link_to(Twin(), World(online=30.0))(Options(NAME)):
                raise KeyError

    run_virtually(work())


def test_the_watcher_sees_what_the_device_gets() -> None:
    async def work() -> list[str]:
        twin, seen = Twin(), list[str]()
        link = link_to(twin, CALM, lambda delivery: seen.append(delivery.topic))
        async with link(Options(NAME)) as device:
            await device.subscribe("mine")
            await device.publish("mine", b"x")
            await take(device, 1)
        return seen

    assert run_virtually(work()) == ["mine"]
