"""ws:// and wss://: on a real Mosquitto as far as its websockets go, and with large messages through a bridge."""

import asyncio
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.broker import BrokerRefused, BrokerUnreachable, Endpoint, Options, Tls, Will, connector
from midge.broker.embedded.server import EmbeddedBroker
from tests.broker.fleets import device, make_fleet, needs_mosquitto, serving
from tests.broker.websocket_bridge import bridge
from tests.broker.worlds import options, settle, take, unique
from tests.ports import free_port
from tests.waiting import LAST_RESORT

SCHEMES = pytest.mark.parametrize("scheme", ["ws", "wss"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ws") / "fleet"
    make_fleet(directory)
    return directory


def trusting(fleet: Path) -> Tls:
    return Tls(fleet / "broker" / "ca.crt")


@pytest.fixture(scope="module")
def ports(fleet: Path) -> Iterator[dict[str, int]]:
    """Of a Mosquitto with a listener of each kind; one of plain TCP, for 2.0.11 does not start without."""
    broker, found = fleet / "broker", {name: free_port() for name in ("tcp", "ws", "wss", "certificates")}
    tls = f"certfile {broker}/broker.crt\nkeyfile {broker}/broker.key\n"
    text = f"allow_anonymous true\nuser root\nset_tcp_nodelay true\nlistener {found['tcp']} 127.0.0.1\n"
    text += f"listener {found['ws']} 127.0.0.1\nprotocol websockets\n"
    text += f"listener {found['wss']} 127.0.0.1\nprotocol websockets\n{tls}"
    text += f"listener {found['certificates']} 127.0.0.1\nprotocol websockets\n{tls}cafile {broker}/ca.crt\n"
    text += "require_certificate true\nuse_identity_as_username true\n"
    (fleet / "ws.conf").write_text(text)
    with serving(fleet / "ws.conf", found["tcp"]):
        yield found


class TestOnMosquitto:
    pytestmark = needs_mosquitto

    @SCHEMES
    async def test_messages_there_and_back(self, scheme: str, ports: dict[str, int], fleet: Path) -> None:
        endpoint = Endpoint.parse(f"{scheme}://localhost:{ports[scheme]}", tls=_tls(scheme, fleet))
        topic, bodies = unique(), [b"", b"small", os.urandom(130), os.urandom(16_000)]
        async with connector(endpoint)(options()) as connection:
            assert connection.limits.protocol == 5
            await connection.subscribe(topic)
            await asyncio.gather(*(connection.publish(topic, body) for body in bodies))
            assert [each.payload for each in await take(connection, len(bodies))] == bodies

    @SCHEMES
    async def test_retained_messages_and_the_last_will(self, scheme: str, ports: dict[str, int], fleet: Path) -> None:
        endpoint = Endpoint.parse(f"{scheme}://localhost:{ports[scheme]}", tls=_tls(scheme, fleet))
        topic, will, connect = unique(), unique("will"), connector(endpoint)
        leaving = Options(unique("leaving"), will=Will(will, b"gone", retain=False), timeout=LAST_RESORT)
        async with connect(options()) as connection:
            await connection.publish(topic, b"kept", retain=True)
            await connection.subscribe(topic, will)
            (kept,) = await take(connection, 1)
            assert kept.retain and kept.payload == b"kept"
            async with connect(leaving):
                pass  # with a goodbye: no will
            await settle(connection)
            assert not connection.waiting()
            await connection.publish(topic, b"", retain=True)

    async def test_a_certificate_of_the_fleet_is_asked_for(self, ports: dict[str, int], fleet: Path) -> None:
        url = f"wss://localhost:{ports['certificates']}"
        async with connector(Endpoint.parse(url, tls=device(fleet, "dev0001").endpoint.tls))(options()):
            pass
        with pytest.raises((BrokerRefused, BrokerUnreachable)):
            async with connector(Endpoint.parse(url, tls=trusting(fleet)))(options()):
                pass

    async def test_a_broker_that_is_not_trusted(self, ports: dict[str, int]) -> None:
        with pytest.raises(BrokerRefused, match="not trusted"):
            async with connector(Endpoint.parse(f"wss://localhost:{ports['wss']}"))(options()):
                pass


def _tls(scheme: str, fleet: Path) -> Tls | None:
    return trusting(fleet) if scheme == "wss" else None


@SCHEMES
@pytest.mark.parametrize("frame", [100, 4096, 1 << 20])
async def test_large_messages_in_frames_of_any_size(frame: int, scheme: str, fleet: Path) -> None:
    """Mosquitto 2.0.11 stalls on them by itself: to one who reads as they come it sends a piece an event."""
    tls = None
    if scheme == "wss":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(fleet / "broker" / "broker.crt", fleet / "broker" / "broker.key")
    bodies = [os.urandom(size) for size in (1, 70_000, 256 * 1024)]
    async with EmbeddedBroker() as broker, bridge(broker.port, frame=frame, tls=tls) as port:
        endpoint = Endpoint.parse(f"{scheme}://localhost:{port}", tls=_tls(scheme, fleet))
        async with connector(endpoint)(options()) as connection:
            await connection.subscribe("t")
            await asyncio.gather(*(connection.publish("t", body) for body in bodies))
            assert [each.payload for each in await take(connection, len(bodies))] == bodies
