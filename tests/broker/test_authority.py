"""Certificates: who may show which, and what another implementation says of them."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import load_pem_x509_crl

from midge.broker.provisioning.certificates import (
    Authority,
    Issued,
    SecurityMissing,
    issue,
    make_authority,
    make_release_key,
    make_request,
    require_cryptography,
    revocation_list,
)
from tests import needs
from tests.broker.fleets import openssl

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("plant", NOW)


def shake(server: Issued, client: Issued | None, authority: Authority, host: str, directory: Path) -> None:
    """A TLS handshake in memory: both sides trust the authority."""
    (directory / "ca").write_bytes(authority.certificate)
    contexts = []
    for name, side, issued in (("s", ssl.PROTOCOL_TLS_SERVER, server), ("c", ssl.PROTOCOL_TLS_CLIENT, client)):
        context = ssl.SSLContext(side)
        context.load_verify_locations(directory / "ca")
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
        if issued is not None:
            (directory / f"{name}.crt").write_bytes(issued.certificate)
            (directory / f"{name}.key").write_bytes(issued.key)
            context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
        contexts.append(context)
    serving, asking = contexts
    serving.verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = serving.wrap_bio(up, down, server_side=True)
    client_side = asking.wrap_bio(down, up, server_hostname=host)
    left = [client_side, server_side]
    for _ in range(10):
        for side_ in list(left):
            try:
                side_.do_handshake()
                left.remove(side_)
            except ssl.SSLWantReadError:
                pass
        if not left:
            return
    raise AssertionError("no handshake")


def test_a_device_and_the_broker_trust_each_other(authority: Authority, tmp_path: Path) -> None:
    server = issue(authority, "broker", NOW, use="server", hosts=["mqtt.lan", "10.0.0.7", "fd00::7"])
    client = issue(authority, "dev0001", NOW, use="client")
    for host in ("mqtt.lan", "10.0.0.7", "fd00::7"):
        shake(server, client, authority, host, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(server, client, authority, "other.lan", tmp_path)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN"):
        shake(server, None, authority, "mqtt.lan", tmp_path)


def test_no_device_poses_as_the_broker_nor_the_broker_as_a_device(authority: Authority, tmp_path: Path) -> None:
    server = issue(authority, "broker", NOW, use="server", hosts=["mqtt.lan"])
    device = issue(authority, "mqtt.lan", NOW, use="client", hosts=["mqtt.lan"])
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(device, device, authority, "mqtt.lan", tmp_path)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(server, server, authority, "mqtt.lan", tmp_path)


def test_another_authority_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    server = issue(authority, "broker", NOW, use="server", hosts=["mqtt.lan"])
    foreign = issue(make_authority("plant", NOW), "dev0001", NOW, use="client")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(server, foreign, authority, "mqtt.lan", tmp_path)


@needs.openssl
def test_a_clock_that_stands_at_1970_trusts_them(authority: Authority, tmp_path: Path) -> None:
    leaf = issue(authority, "dev0001", NOW, use="client", days=30)
    (tmp_path / "ca").write_bytes(authority.certificate)
    (tmp_path / "crt").write_bytes(leaf.certificate)

    def verified(at: datetime) -> bool:
        seconds = str(int(at.timestamp()))
        done = openssl("verify", "-attime", seconds, "-x509_strict", "-CAfile", tmp_path / "ca", tmp_path / "crt")
        return done.returncode == 0

    assert verified(datetime(1970, 1, 2, tzinfo=UTC)) and verified(NOW + timedelta(days=29))
    assert not verified(NOW + timedelta(days=31))
    assert leaf.not_after == NOW + timedelta(days=30)


def test_nothing_outlives_its_authority() -> None:
    short = make_authority("plant", NOW, days=10)
    assert issue(short, "dev0001", NOW, use="client", days=100).not_after == NOW + timedelta(days=10)


@needs.openssl
def test_the_revocation_list(authority: Authority, tmp_path: Path) -> None:
    good, bad = (issue(authority, name, NOW, use="client") for name in ("good", "bad"))
    crl = revocation_list(authority, {bad.serial: NOW}, 7, NOW)
    for name, content in (("ca", authority.certificate), ("crl", crl), ("g", good.certificate), ("b", bad.certificate)):
        (tmp_path / name).write_bytes(content)

    def verify(name: str, at: datetime) -> str:
        files = ("-CAfile", tmp_path / "ca", "-CRLfile", tmp_path / "crl", tmp_path / name)
        done = openssl("verify", "-crl_check", "-attime", str(int(at.timestamp())), *files)
        return done.stdout + done.stderr

    assert "OK" in verify("g", NOW) and "OK" in verify("g", datetime(1970, 1, 2, tzinfo=UTC))
    assert "certificate revoked" in verify("b", NOW)
    ends = load_pem_x509_crl(crl).next_update_utc
    assert ends is not None and ends > NOW + timedelta(days=19 * 365)
    (tmp_path / "crl").write_bytes(revocation_list(authority, {}, 8, NOW, days=5))
    assert "CRL has expired" in verify("g", NOW + timedelta(days=6))


@needs.openssl
def test_a_request_for_another_authority(tmp_path: Path) -> None:
    key, request = make_request("pump-17")
    (tmp_path / "csr").write_bytes(request)
    (tmp_path / "key").write_bytes(key)
    told = openssl("req", "-in", tmp_path / "csr", "-noout", "-text", "-verify")
    assert "CN = pump-17" in told.stdout and "TLS Web Client Authentication" in told.stdout
    same = [
        openssl("req", "-in", tmp_path / "csr", "-noout", "-pubkey"),
        openssl("pkey", "-in", tmp_path / "key", "-pubout"),
    ]
    assert same[0].stdout == same[1].stdout != ""


def test_the_release_key_signs() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    private, public = make_release_key()
    signer, verifier = load_pem_private_key(private, None), load_pem_public_key(public)
    assert isinstance(signer, Ed25519PrivateKey) and isinstance(verifier, Ed25519PublicKey)
    verifier.verify(signer.sign(b"model"), b"model")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.x509", None)
    with pytest.raises(SecurityMissing, match=r"midge\[security\]"):
        require_cryptography()
