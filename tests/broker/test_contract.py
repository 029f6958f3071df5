"""One suite for every connection: the twin, paho and aiomqtt, on the twin, the embedded broker and Mosquitto."""

import asyncio

import pytest

from midge.broker import ConnectionLost, Delivery, Will
from tests.broker.worlds import World, options, settle, take, unique


async def test_a_message_arrives_as_it_was_sent(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as sender, world.connect(options()) as receiver:
        await receiver.subscribe(topic)
        await sender.publish(topic, b"\0\xff payload")
        assert await take(receiver, 1) == [Delivery(topic, b"\0\xff payload", 1, retain=False)]


@pytest.mark.parametrize("payload", [b"bytes", bytearray(b"bytearray"), memoryview(b"a view of it")[2:6], b""])
async def test_payloads_of_any_bytes(world: World, payload: bytes | bytearray | memoryview) -> None:
    topic = unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(topic)
        await connection.publish(topic, payload)
        (delivery,) = await take(connection, 1)
        assert delivery.payload == bytes(payload)
        assert type(delivery.payload) is bytes


async def test_qos_0_is_delivered_without_acknowledgement(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(topic)
        await connection.publish(topic, b"once", qos=0)
        (delivery,) = await take(connection, 1)
        assert delivery.qos == 0


async def test_a_subscription_at_qos_0_lowers_the_delivery(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(topic, qos=0)
        await connection.publish(topic, b"")
        (delivery,) = await take(connection, 1)
        assert delivery.qos == 0


async def test_retained_comes_marked_to_a_late_subscriber_only(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as sender, world.connect(options()) as early:
        await early.subscribe(topic)
        await sender.publish(topic, b"first", retain=True)
        await sender.publish(topic, b"second", retain=True)
        assert [delivery.retain for delivery in await take(early, 2)] == [False, False]
        async with world.connect(options()) as late:
            await late.subscribe(topic)
            assert [(each.payload, each.retain) for each in await take(late, 1)] == [(b"second", True)]


async def test_an_empty_payload_clears_what_is_retained(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as connection:
        await connection.publish(topic, b"kept", retain=True)
        await connection.publish(topic, b"", retain=True)
        await connection.subscribe(topic)
        await settle(connection)
        assert connection.waiting() == ()


async def test_retained_under_a_wildcard(world: World) -> None:
    root = unique()
    async with world.connect(options()) as connection:
        for name in ("a", "b"):
            await connection.publish(f"{root}/{name}", name.encode(), retain=True)
        await connection.subscribe(f"{root}/+")
        assert {each.topic for each in await take(connection, 2)} == {f"{root}/a", f"{root}/b"}


async def test_the_will_is_published_when_the_link_breaks(world: World) -> None:
    topic, name = unique(), unique("client")
    async with world.connect(options()) as watcher:
        await watcher.subscribe(topic)
        async with world.connect(options(name, will=Will(topic, b"lost"))) as dying:
            world.break_link(dying, name)
            (will,) = await take(watcher, 1)
            assert will.payload == b"lost"
            with pytest.raises(ConnectionLost):
                await take(dying, 1)
        async with world.connect(options()) as late:
            await late.subscribe(topic)
            assert [each.retain for each in await take(late, 1)] == [True]


async def test_an_aborted_connection_says_no_goodbye_and_tells_why(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as watcher:
        await watcher.subscribe(topic)
        async with world.connect(options(will=Will(topic, b"lost"))) as dying:
            dying.abort("It stood still.")
            dying.abort("The first reason counts.")
            for ended in (dying.publish(topic, b"late"), dying.subscribe(topic), take(dying, 1)):
                with pytest.raises(ConnectionLost, match=r"It stood still\."):
                    await ended
        await watcher.publish(topic, b"marker")
        assert {each.payload for each in await take(watcher, 2)} == {b"lost", b"marker"}


async def test_no_will_after_a_goodbye(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as watcher:
        await watcher.subscribe(topic)
        async with world.connect(options(will=Will(topic, b"lost"))):
            pass
        await watcher.publish(topic, b"marker")
        assert [each.payload for each in await take(watcher, 1)] == [b"marker"]


async def test_order_is_kept_among_concurrent_publishes(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as sender, world.connect(options()) as receiver:
        await receiver.subscribe(topic)
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(sender.publish(topic, b"%d" % number))
            received = await take(receiver, 100)
        assert [int(each.payload) for each in received] == list(range(100))


async def test_unacknowledged_messages_stop_delivery_until_acknowledged(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as sender, world.connect(options(receive_maximum=3)) as receiver:
        await receiver.subscribe(topic)
        for number in range(10):
            await sender.publish(topic, b"%d" % number)
        held = await take(receiver, 3, ack=False)
        await receiver.subscribe(unique(), qos=0)
        assert receiver.waiting() == ()
        receiver.ack(held[0])
        more = await take(receiver, 1, ack=False)
        await receiver.subscribe(unique(), qos=0)
        if world.exact_window:  # Mosquitto before 2.0.13 opens the window with the first acknowledgement
            assert receiver.waiting() == ()
            for delivery in (*held[1:], *more):
                receiver.ack(delivery)
            assert [int(each.payload) for each in await take(receiver, 6)] == list(range(4, 10))
        assert [int(each.payload) for each in (*held, *more)] == [0, 1, 2, 3]


async def test_a_repeated_or_foreign_acknowledgement_is_ignored(world: World) -> None:
    topic = unique()
    async with (
        world.connect(options()) as sender,
        world.connect(options(receive_maximum=1)) as first,
        world.connect(options(receive_maximum=1)) as second,
    ):
        for receiver in (first, second):
            await receiver.subscribe(topic)
        for number in range(3):
            await sender.publish(topic, b"%d" % number)
        (ours,) = await take(first, 1, ack=False)
        (theirs,) = await take(second, 1, ack=False)
        first.ack(theirs)
        first.ack(Delivery(topic, b"", 1, retain=False))
        await first.subscribe(unique(), qos=0)
        assert first.waiting() == ()
        first.ack(ours)
        first.ack(ours)
        assert [each.payload for each in await take(first, 1, ack=False)] == [b"1"]
        await first.subscribe(unique(), qos=0)
        assert first.waiting() == ()


async def test_acknowledgements_are_sent_in_the_order_of_arrival(world: World) -> None:
    """Seen on rumqttd: it ended the connection of an aggregator that acknowledged a later message first."""
    topic = unique()
    async with world.connect(options()) as sender, world.connect(options(receive_maximum=3)) as receiver:
        await receiver.subscribe(topic)
        for number in range(6):
            await sender.publish(topic, b"%d" % number)
        first, second, third = await take(receiver, 3, ack=False)
        receiver.ack(third)
        receiver.ack(second)
        await receiver.subscribe(unique(), qos=0)
        if world.exact_window:
            assert receiver.waiting() == ()
        receiver.ack(first)
        assert [int(each.payload) for each in await take(receiver, 3)] == [3, 4, 5]


async def test_an_acknowledgement_from_before_a_reconnect_is_dropped(world: World) -> None:
    topic, name = unique(), unique("client")
    async with world.connect(options()) as sender:
        async with world.connect(options(name)) as receiver:
            await receiver.subscribe(topic)
            await sender.publish(topic, b"old")
            (old,) = await take(receiver, 1, ack=False)
        async with world.connect(options(name, receive_maximum=1)) as receiver:
            await receiver.subscribe(topic)
            await sender.publish(topic, b"new")
            await sender.publish(topic, b"newer")
            (new,) = await take(receiver, 1, ack=False)
            assert (new.payload, new.duplicate) == (b"new", False)
            receiver.ack(old)
            await receiver.subscribe(unique(), qos=0)
            assert receiver.waiting() == ()
            receiver.ack(new)
            assert [each.payload for each in await take(receiver, 1)] == [b"newer"]


async def test_a_killed_broker_is_seen_by_everybody_who_waits(world: World) -> None:
    topic = unique()
    try:
        async with world.connect(options()) as connection:
            await connection.subscribe(topic)
            await connection.publish(topic, b"before")
            await settle(connection)
            world.freeze()
            reading = asyncio.create_task(take(connection, 100, ack=False))
            publishing = [asyncio.create_task(connection.publish(topic, bytes(1000))) for _ in range(3)]
            await asyncio.sleep(0)
            world.kill()
            for each in (reading, *publishing):
                with pytest.raises(ConnectionLost):
                    await each
            for call in (connection.publish(topic, b""), connection.subscribe(topic), connection.unsubscribe(topic)):
                with pytest.raises(ConnectionLost):
                    await call
    finally:
        await world.restart()
    async with world.connect(options()) as connection:
        await connection.publish(topic, b"after")


async def test_what_arrived_before_the_loss_is_delivered_first(world: World) -> None:
    topic, name = unique(), unique("client")
    async with world.connect(options(name)) as connection:
        await connection.subscribe(topic)
        for _ in range(3):
            await connection.publish(topic, b"")
        await settle(connection)
        world.break_link(connection, name)
        assert len(await take(connection, 3)) == 3
        with pytest.raises(ConnectionLost):
            await take(connection, 1)


async def test_a_second_client_with_the_same_id_takes_over(world: World) -> None:
    name = unique("client")
    async with world.connect(options(name)) as first, world.connect(options(name)) as second:
        with pytest.raises(ConnectionLost) as lost:
            await take(first, 1)
        if world.tells_takeover:  # Mosquitto before 2.0.13 hangs up without a word
            assert lost.value.taken_over
        await second.publish(unique(), b"")


async def test_a_payload_of_a_megabyte(world: World) -> None:
    topic, payload = unique(), bytes(range(256)) * 4096
    async with world.connect(options()) as sender, world.connect(options()) as receiver:
        await receiver.subscribe(topic)
        await sender.publish(topic, payload)
        assert [each.payload for each in await take(receiver, 1)] == [payload]


async def test_a_hundred_large_publishes_at_once(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as sender, world.connect(options()) as receiver:
        await receiver.subscribe(topic)
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(sender.publish(topic, bytes([number]) * 100_000))
            received = await take(receiver, 100)
        assert [each.payload[0] for each in received] == list(range(100))


async def test_literal_and_plus_filters(world: World) -> None:
    root = unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(f"{root}/literal/x", f"{root}/update/+/y")
        for topic in ("literal/x", "literal/z", "update/1/y", "update/2/y", "update/1/2/y", "update/y"):
            await connection.publish(f"{root}/{topic}", b"")
        await settle(connection)
        topics = [each.topic.removeprefix(f"{root}/") for each in connection.waiting()]
        assert topics == ["literal/x", "update/1/y", "update/2/y"]


async def test_unsubscribe(world: World) -> None:
    topic, other = unique(), unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(topic, other)
        await connection.unsubscribe(topic)
        await connection.publish(topic, b"")
        await connection.publish(other, b"")
        assert [each.topic for each in await take(connection, 1)] == [other]


async def test_waiting_takes_what_messages_would(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(topic)
        for number in range(3):
            await connection.publish(topic, b"%d" % number)
        await settle(connection)
        (first,) = await take(connection, 1)
        rest = connection.waiting()
        assert [each.payload for each in (first, *rest)] == [b"0", b"1", b"2"]
        assert connection.waiting() == ()


async def test_nothing_of_a_session_is_left_behind(world: World) -> None:
    topic, name = unique(), unique("client")
    async with world.connect(options()) as sender:
        async with world.connect(options(name)) as receiver:
            await receiver.subscribe(topic)
        await sender.publish(topic, b"while away")
        async with world.connect(options(name)) as receiver:
            await settle(receiver)
            assert receiver.waiting() == ()


async def test_a_cancelled_publish_leaves_the_connection_usable(world: World) -> None:
    topic = unique()
    async with world.connect(options()) as connection:
        await connection.subscribe(topic)
        cancelled = asyncio.create_task(connection.publish(topic, b"maybe"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await connection.publish(topic, b"certainly")
        received = [each.payload for each in await take(connection, 1)]
        if received == [b"maybe"]:
            received = [each.payload for each in await take(connection, 1)]
        assert received == [b"certainly"]


async def test_a_topic_with_a_wildcard_is_an_error_of_the_caller(world: World) -> None:
    async with world.connect(options()) as connection:
        with pytest.raises(ValueError, match=r"(?i)topic"):
            await connection.publish("a/+", b"")
        with pytest.raises(ValueError, match=r"(?i)filter"):
            await connection.subscribe("a/#/b")
        await connection.publish(unique(), b"")
