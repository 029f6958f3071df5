"""`midge clean` on brokers that show what is retained to any subscription, and on those that do not."""

from pathlib import Path
from types import MethodType
from typing import Any

import pytest

from midge.aggregator.registry.policy import RegistryPolicy
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage, Router
from midge.broker.mqtt.federation_view import clear_federation
from midge.wire.topics import Topics
from tests.federation.live import Log, aggregator, device, serving

TOPICS = Topics("f")


def blinded(twin: Twin) -> None:
    """Give nothing that is retained to subscriptions with wildcards, as RabbitMQ does."""
    retained_on = Router._retained_on

    def exactly(router: Router, topic_filter: str) -> list[RoutedMessage]:
        return [] if set("+#") & set(topic_filter) else retained_on(router, topic_filter)

    twin.router._retained_on = MethodType(exactly, twin.router)  # type: ignore[method-assign]


@pytest.mark.virtual
@pytest.mark.parametrize("blind", [False, True])
async def test_nothing_is_left_of_a_federation(tmp_path: Path, blind: bool) -> None:
    """On RabbitMQ it once said 0, and left all; later it left chunks that no announcement or name stands for."""
    twin, log, rules = Twin(), Log(), RegistryPolicy(every=1.0)
    server = aggregator(twin, tmp_path / "store", log, registry=rules)
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: len(log.of("release")) > 3 and server.core.registry.champion)
    there: dict[str, Any] = twin.router._retained
    for topic in (TOPICS.part(2, 0, 0, "serve"), TOPICS.part(2, 0, 0, "registered")):  # left by one that was killed
        there[topic] = RoutedMessage(topic, b"x", 1, retain=True)
    count = sum(topic.startswith(TOPICS.prefix) for topic in there)
    if blind:
        blinded(twin)
    cleared = await clear_federation(twin.connect, TOPICS, ["a", "b"] if blind else [])
    assert not [topic for topic in there if topic.startswith(TOPICS.prefix)]
    assert (cleared.removed, cleared.blind) == (count, blind)


@pytest.mark.virtual
async def test_brokers_that_send_a_few_retained_messages_at_a_time(tmp_path: Path) -> None:
    """Seen on rumqttd, which sends 200 at QoS 0; at QoS 1 it stops answering, and `midge demo` ended 60 s late."""
    twin, log = Twin(), Log()
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: len(log.of("release")) > 3)
    retained_on = Router._retained_on

    def few(router: Router, topic_filter: str) -> list[RoutedMessage]:
        return retained_on(router, topic_filter)[:3]

    count = sum(topic.startswith(TOPICS.prefix) for topic in twin.router._retained)
    assert count > 9
    twin.router._retained_on = MethodType(few, twin.router)  # type: ignore[method-assign]
    cleared = await clear_federation(twin.connect, TOPICS)
    assert not [topic for topic in twin.router._retained if topic.startswith(TOPICS.prefix)]
    assert (cleared.removed, cleared.blind) == (count, False)


@pytest.mark.virtual
async def test_devices_that_are_not_named_are_what_may_be_left(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: log.of("release"))
    blinded(twin)
    assert (await clear_federation(twin.connect, TOPICS)).blind
    assert {topic for topic in twin.router._retained if topic.startswith(TOPICS.prefix)} == {
        TOPICS.status("a"),
        TOPICS.status("b"),
    }
