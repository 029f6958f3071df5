"""The private names of aiomqtt and paho that `aiomqtt_connection` leans on. A new version that drops one fails here."""

import asyncio
import inspect

import aiomqtt
import paho.mqtt.client


async def test_the_private_names_are_there() -> None:
    client = aiomqtt.Client("localhost")
    assert isinstance(client._client, paho.mqtt.client.Client)
    assert isinstance(client._connected, asyncio.Future)
    assert isinstance(client._disconnected, asyncio.Future)
    assert client._client.on_connect == client._on_connect
    assert client._client.on_disconnect == client._on_disconnect
    assert callable(client._client._sock_close)


def test_their_callbacks_take_what_ours_hand_on() -> None:
    expected = ["self", "client", "userdata", "flags", "reason_code", "properties"]
    assert list(inspect.signature(aiomqtt.Client._on_connect).parameters) == expected
    assert list(inspect.signature(aiomqtt.Client._on_disconnect).parameters) == expected


def test_the_version_is_one_that_was_tried() -> None:
    from importlib.metadata import version

    assert version("aiomqtt").startswith("2."), "aiomqtt 3 is another library: rewrite aiomqtt_connection"
