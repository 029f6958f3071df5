"""A listener on every kind of broker and transport that an endpoint can name."""

import asyncio
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest

from midge.broker import Endpoint, Options, Tls, connector
from midge.broker.embedded.server import EmbeddedBroker
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.aiomqtt_client import listener
from tests import needs
from tests.broker.test_local import certificates
from tests.broker.websocket_bridge import bridge
from tests.waiting import LAST_RESORT


async def hears(endpoint: Endpoint) -> bool:
    """Whether it gets what is published and retained; payloads may be large."""
    async with connector(endpoint)(Options("sender")) as sender, listener(endpoint, "test") as client:
        await sender.publish("t", bytes(200_000), retain=True)
        await client.subscribe("t")
        async with asyncio.timeout(LAST_RESORT):
            async for message in client.messages:
                return message.payload == bytes(200_000) and message.retain
    return False


async def test_a_broker_with_a_password() -> None:
    async with EmbeddedBroker(users={"anna": "right"}) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        assert await hears(Endpoint.parse(url, user="anna", password="right"))
        with pytest.raises(aiomqtt.MqttError, match="user name or password"):
            async with listener(Endpoint.parse(url, user="anna", password="wrong"), "test"):
                pass


async def test_websockets() -> None:
    async with EmbeddedBroker() as broker, bridge(broker.port, frame=4096) as port:
        assert await hears(Endpoint.parse(f"ws://localhost:{port}"))


@pytest.mark.mosquitto
@needs.mosquitto
async def test_tls(tmp_path: Path) -> None:
    async with local_broker("mosquitto", directory=tmp_path, tls=certificates(tmp_path)) as broker:
        assert await hears(replace(broker.endpoint, tls=Tls(cafile=tmp_path / "ca.pem")))
        with pytest.raises(aiomqtt.MqttError, match="CERTIFICATE_VERIFY_FAILED"):
            async with listener(broker.endpoint, "test"):
                pass
