"""Brokers as child processes."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from midge.broker import BrokerRefused, BrokerUnreachable, Tls, connector
from midge.broker.local import local_broker as local
from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.local.mosquitto import MosquittoSettings, write_configuration
from midge.broker.local.process import SETTLED, Child
from tests import needs
from tests.broker.worlds import options, take
from tests.ports import free_port
from tests.waiting import LAST_RESORT, until

Kind = Literal["mosquitto", "embedded"]

needs_mosquitto = [
    pytest.mark.mosquitto,
    needs.mosquitto,
]
KINDS = ["embedded", pytest.param("mosquitto", marks=needs_mosquitto)]


async def exchange(broker: LocalBroker) -> None:
    async with connector(broker.endpoint)(options()) as connection:
        await connection.subscribe("t")
        await connection.publish("t", b"x")
        await take(connection, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_from_start_to_end(kind: Kind, tmp_path: Path) -> None:
    async with local_broker(kind, directory=tmp_path) as broker:
        assert broker.kind == kind
        assert str(broker.endpoint) in broker.describe()
        await exchange(broker)
        before = broker.endpoint
        broker.kill()
        assert not broker.running
        with pytest.raises(BrokerUnreachable):
            await exchange(broker)
        await broker.restart()
        assert broker.endpoint == before
        await exchange(broker)
    assert not broker.running


@pytest.mark.parametrize("kind", KINDS)
async def test_a_password(kind: Kind, tmp_path: Path) -> None:
    async with local_broker(kind, directory=tmp_path, user="anna", password="p:ss wörd") as broker:
        await exchange(broker)
        with pytest.raises(BrokerRefused):
            async with connector(replace(broker.endpoint, password="other"))(options()):
                pass
        assert "wörd" not in broker.describe()


async def test_auto_takes_our_own_where_there_is_no_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_mosquitto", lambda: None)
    async with local_broker(directory=tmp_path) as broker:
        assert broker.kind == "embedded"
    with pytest.raises(BrokerUnreachable, match="Mosquitto is not installed"):
        async with local_broker("mosquitto", directory=tmp_path):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_another_port_where_somebody_was_faster(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with taken:
        free = free_port()
        ports = iter([taken.sockets[0].getsockname()[1], free])
        monkeypatch.setattr(local, "free_port", lambda: next(ports))
        async with local_broker(kind, directory=tmp_path) as broker:
            assert broker.endpoint.port == free
            await exchange(broker)


async def test_a_slow_start_is_not_taken_for_the_server_that_has_its_port(tmp_path: Path) -> None:
    """Another server accepts at the port; the child finds that out late, as on a busy machine, and ends."""
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with taken:
        late = [sys.executable, "-c", f"import time; time.sleep({2 * SETTLED}); raise SystemExit('in use')"]
        child = Child(late, tmp_path / "log", ready="serving")
        assert not await child.serves("127.0.0.1", taken.sockets[0].getsockname()[1])
        child.kill()


def test_the_configuration(tmp_path: Path) -> None:
    lines = write_configuration(tmp_path, 1234, MosquittoSettings(max_packet_size=5000)).read_text().splitlines()
    assert {"listener 1234 127.0.0.1", "persistence false", "max_queued_messages 1000000"} <= set(lines)
    assert {"max_packet_size 5000", "allow_anonymous true"} <= set(lines)


async def test_the_embedded_broker_has_no_tls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no TLS"):
        async with local_broker("embedded", directory=tmp_path, tls=Tls()):
            pass


@needs.setpriv
@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_dies_with_its_parent(kind: Kind, tmp_path: Path) -> None:
    parent = f"""
import asyncio, os, pathlib, signal
from midge.broker.local.local_broker import local_broker
async def main():
    async with local_broker({kind!r}, directory=pathlib.Path({str(tmp_path)!r})) as broker:
        print(broker._child._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    answer = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=False, timeout=LAST_RESORT
    )
    child = int(answer.stdout)
    until("the broker outlived its parent", lambda: not alive(child))


def alive(pid: int) -> bool:
    """Whether a process is there, and is more than what its parent has not yet asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def certificates(directory: Path) -> Tls:
    """An authority that signs a certificate for 127.0.0.1."""
    needs.program("openssl", needs.OPENSSL)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (directory / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "server.pem", "-days", "2", "-extfile", "server.ext"),
    )
    return Tls(certfile=directory / "server.pem", keyfile=directory / "server.key")


@pytest.mark.mosquitto
@needs.mosquitto
async def test_tls(tmp_path: Path) -> None:
    async with local_broker("mosquitto", directory=tmp_path, tls=certificates(tmp_path)) as broker:
        trusting = replace(broker.endpoint, tls=Tls(cafile=tmp_path / "ca.pem"))
        async with connector(trusting)(options()) as connection:
            await connection.subscribe("t")
            await connection.publish("t", bytes(1_000_000))
            (delivery,) = await take(connection, 1)
            assert len(delivery.payload) == 1_000_000
        with pytest.raises(BrokerRefused, match="not trusted"):
            async with connector(broker.endpoint)(options()):
                pass
        async with connector(replace(broker.endpoint, tls=Tls(insecure=True)))(options()) as connection:
            await connection.publish("t", b"")
        plain = replace(broker.endpoint, scheme="mqtt", tls=None)
        with pytest.raises(BrokerUnreachable, match="TLS"):
            async with connector(plain)(options(timeout=1)):
                pass
