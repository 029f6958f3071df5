"""What is said where TLS does not come about: what is wrong, and what to do; over real sockets."""

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from paho.mqtt.client import WebsocketConnectionError

from midge.broker import BrokerRefused, BrokerUnreachable, Endpoint, Tls, connector
from midge.broker.mqtt.paho_errors import unreachable
from tests.broker.worlds import options
from tests.waiting import LAST_RESORT

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Pki:
    """An authority, and certificates of it, in a folder."""

    def __init__(self, folder: Path, *, now: datetime = NOW - 4000 * DAY, days: int = 8000) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        self.ca = folder / "ca.pem"
        made = self._begin(self.name, self.key, now, days)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.ca.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def _begin(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
    ) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder(self.name, name, key.public_key(), x509.random_serial_number())
        return made.not_valid_before(now).not_valid_after(now + days * DAY)

    def leaf(self, name: str, host: str = "127.0.0.1", *, now: datetime = NOW - DAY, days: int = 30) -> Tls:
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._begin(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, now, days)
        known: x509.GeneralName = x509.DNSName(host)
        with suppress(ValueError):
            known = x509.IPAddress(ipaddress.ip_address(host))
        made = made.add_extension(x509.SubjectAlternativeName([known]), critical=False)
        certificate, keyfile = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        keyfile.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Tls(self.ca, certificate, keyfile)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "ours")


@asynccontextmanager
async def serving(own: Tls, *, wants: Path | None = None) -> AsyncIterator[int]:
    """A server that speaks TLS and then hangs up; the port. With blocking sockets: asyncio's drops its last alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert own.certfile is not None
    context.load_cert_chain(own.certfile, own.keyfile)
    if wants is not None:
        context.load_verify_locations(wants)
        context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listening.accept()
                with plain, suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(1)

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        serving.join(LAST_RESORT)


async def said(url: str, tls: Tls | None, *kinds: type[Exception]) -> str:
    with pytest.raises(kinds or (BrokerRefused,)) as told:
        async with connector(Endpoint.parse(url, tls=tls))(options(timeout=LAST_RESORT)):
            pass
    return str(told.value)


async def test_an_expired_certificate_shows_both_times_and_says_renew(pki: Pki) -> None:
    async with serving(pki.leaf("old", now=NOW - 90 * DAY, days=30)) as port:
        words = await said(f"mqtts://127.0.0.1:{port}", Tls(pki.ca))
    assert f"to {NOW - 60 * DAY:%Y-%m-%d}" in words and f"says {NOW:%Y-%m-%d}" in words
    assert "Renew the broker's certificate" in words and "cafile" not in words


async def test_one_that_is_not_yet_good_says_look_at_the_clock(pki: Pki) -> None:
    """It once had the advice to name an authority: the board's clock was at 1970."""
    async with serving(pki.leaf("new", now=NOW + 90 * DAY)) as port:
        words = await said(f"mqtts://127.0.0.1:{port}", Tls(pki.ca))
    assert f"from {NOW + 90 * DAY:%Y-%m}" in words and f"clock says {NOW:%Y-%m-%d}" in words
    assert "Set the clock" in words and "cafile" not in words


async def test_a_clock_that_was_never_set_is_named_even_where_the_certificate_has_run_out(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(pki.leaf("old", now=NOW - 90 * DAY, days=30)) as port:
        monkeypatch.setattr("midge.broker.mqtt.tls.time.time", lambda: 1000.0)
        assert "1970-01-01 00:16 UTC. Set the clock" in await said(f"mqtts://127.0.0.1:{port}", Tls(pki.ca))


async def test_an_authority_that_has_run_out_is_told_from_the_certificate(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "old", now=NOW - 90 * DAY, days=30)
    async with serving(pki.leaf("leaf")) as port:
        words = await said(f"mqtts://127.0.0.1:{port}", Tls(pki.ca))
    assert "the authority that signed it is out of its time" in words


async def test_another_name(pki: Pki) -> None:
    async with serving(pki.leaf("leaf", host="broker.example")) as port:
        words = await said(f"mqtts://127.0.0.1:{port}", Tls(pki.ca))
    assert "made for another name" in words and "cafile" not in words


async def test_another_authority(pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    async with serving(pki.leaf("leaf")) as port:
        assert f"no authority in {other.ca} signed it" in await said(f"mqtts://127.0.0.1:{port}", Tls(other.ca))
        assert "as cafile" in await said(f"mqtts://127.0.0.1:{port}", None)


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_a_plain_port(scheme: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()  # as Mosquitto does with what is no CONNECT

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        words = await said(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, BrokerUnreachable)
    assert "does not answer in TLS" in words and "Name the port that serves TLS" in words


async def test_a_port_of_tls_without_tls(pki: Pki) -> None:
    async with serving(pki.leaf("leaf")) as port:
        assert "mqtts://" in await said(f"mqtt://127.0.0.1:{port}", None, BrokerUnreachable)
    error = unreachable(Endpoint.parse("ws://broker.example"), options(), WebsocketConnectionError("handshake"))
    assert "wss://" in str(error)


async def test_a_link_local_address_needs_its_interface() -> None:
    assert "[fe80::1%25eth0]" in await said("mqtt://[fe80::1]:1883", None, BrokerUnreachable)
    assert "'none9' an interface" in await said("mqtt://[fe80::1%25none9]:1883", None, BrokerUnreachable)


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_a_client_certificate_that_is_asked_for(scheme: str, pki: Pki) -> None:
    async with serving(pki.leaf("leaf"), wants=pki.ca) as port:
        words = await said(f"{scheme}://127.0.0.1:{port}", Tls(pki.ca), BrokerRefused)
    assert "certificate required" in words and "give certfile and keyfile" in words


async def test_our_certificate_that_has_run_out(pki: Pki) -> None:
    ours = pki.leaf("pump", now=NOW - 90 * DAY, days=30)
    async with serving(pki.leaf("leaf"), wants=pki.ca) as port:
        words = await said(f"mqtts://127.0.0.1:{port}", ours, BrokerRefused)
    assert f"does not take our certificate {ours.certfile} (certificate expired)" in words


async def test_our_certificate_of_an_authority_that_the_broker_does_not_know(pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    ours = other.leaf("pump")
    async with serving(pki.leaf("leaf"), wants=pki.ca) as port:
        words = await said(f"mqtts://127.0.0.1:{port}", Tls(pki.ca, ours.certfile, ours.keyfile), BrokerRefused)
    assert "does not take our certificate" in words and "unknown ca" in words


async def test_a_protocol_is_offered_in_tls(pki: Pki) -> None:
    """AWS IoT Core takes MQTT on port 443 from whoever offers x-amzn-mqtt-ca."""
    chosen: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not chosen.done():
            chosen.set_result(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = pki.leaf("leaf")
    assert own.certfile is not None
    context.load_cert_chain(own.certfile, own.keyfile)
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        await said(f"mqtts://127.0.0.1:{port}?alpn=x-amzn-mqtt-ca", Tls(pki.ca), BrokerUnreachable)
        assert await chosen == "x-amzn-mqtt-ca"
