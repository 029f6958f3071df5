"""Signatures and seals: what they cover, what they do not open for, and that other libraries read them."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.iot_client.connection.identity import Identity
from midge.wire import envelopes, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Hello, Receipt, Statistics, Update
from midge.wire.signing import BadSignature, KeyUnusable
from midge.wire.topics import Topics
from tests.security import reference_hpke

KEY, OTHER = signing.new_key(), signing.new_key()
UPDATE: dict[str, Any] = {
    "outbox": 1,
    "first": 1,
    "seq": 1,
    "lineage": bytes(16),
    "generation": 0,
    "base": 1,
    "schema_hash": bytes(16),
    "codec": "float32",
    "sha256": bytes(32),
}


def p256() -> signing.PrivateKey:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return signing.read_private(pem)


@pytest.mark.parametrize("key", [KEY, p256()], ids=["ed25519", "p256"])
def test_a_signature_is_good_for_its_purpose_context_and_data_alone(key: signing.PrivateKey) -> None:
    signature = key.sign(signing.RECEIPT, "f/a", b"data")
    assert len(signature) == signing.SIGNATURE
    assert key.public.verifies(signature, signing.RECEIPT, "f/a", b"data")
    assert not key.public.verifies(signature, signing.DEVICE, "f/a", b"data")
    assert not key.public.verifies(signature, signing.RECEIPT, "f/b", b"data")
    assert not key.public.verifies(signature, signing.RECEIPT, "f/a", b"dat")
    assert not key.public.verifies(signature[:-1], signing.RECEIPT, "f/a", b"data")
    assert not key.public.verifies(bytes(64), signing.RECEIPT, "f/a", b"data")
    assert not OTHER.public.verifies(signature, signing.RECEIPT, "f/a", b"data")


def test_no_two_things_that_can_be_signed_are_the_same_bytes() -> None:
    """A purpose or a context that ran into what follows would let one signature stand for another message."""
    assert signing.signed_bytes("a", "bc", b"") != signing.signed_bytes("ab", "c", b"")
    assert signing.signed_bytes("a", "b", b"cd") != signing.signed_bytes("a", "bc", b"d")


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (Update(**UPDATE, size=3), b"abc"),
        (Update(**UPDATE, size=0), b""),
        (Update(**UPDATE, size=10**6, kind="offer", parts=4), b""),
        (Statistics(lineage=bytes(16), names=(("x", 2),)), bytes(48)),
        (Statistics(lineage=bytes(16), names=(("x", 2),), sealed="hpke"), bytes(96)),
        (Hello(state=messages.DeviceState.READY, outbox=1), b""),
        (Receipt(outbox=1, hi=3), b""),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_signed_frame_reads_as_it_did_and_its_signature_is_found_again(message: Any, body: bytes) -> None:
    plain = frames.encode(message)
    signed = signing.sign_frame(KEY, signing.DEVICE, "f/a", plain, body)
    read, whole = messages.decode(type(message), signed) if message.kind != "offer" else messages.decode_update(signed)
    assert read == message
    own, signature = signing.split(read, whole)
    assert own == body
    assert KEY.public.verifies(signature, signing.DEVICE, "f/a", signing.head_of(signed, whole))
    own, signature = signing.split(message, memoryview(body))
    assert (bytes(own), bytes(signature)) == (body, b"")


def test_a_chunk_has_no_signature_whatever_it_holds() -> None:
    chunk = Chunk(outbox=1, first=1, seq=1, part=0)
    own, signature = signing.split(chunk, memoryview(bytes(63)))
    assert (bytes(own), bytes(signature)) == (bytes(63), b"")


def test_keys_are_read_in_every_form_that_an_operator_has() -> None:
    for data in (KEY.public_pem(), KEY.public.encoded, KEY.public.raw):
        assert signing.read_public(data) == KEY.public
    assert signing.read_private(KEY.pem()).public == KEY.public


@pytest.mark.parametrize("data", [b"", b"not a key", KEY.public_pem()])
def test_what_is_no_private_key_is_named(data: bytes) -> None:
    with pytest.raises(KeyUnusable, match=r"pump\.key"):
        signing.read_private(data, "pump.key")


def test_a_p256_key_is_read_as_it_is_stored_and_other_curves_are_refused() -> None:
    key = p256()
    assert signing.read_public(key.public.raw) == key.public and len(key.seed) == 32
    assert (key.public.kind, KEY.public.kind) == ("p256", "ed25519")
    curve = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(KeyUnusable, match="P-256"):
        signing.read_private(curve)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ModuleNotFoundError, match=r"midge\[security\]"):
        signing.read_private(KEY.pem())


# ------------------------------------------------------------------------ seals

PRIVATE = sealing.derive(KEY)
PUBLIC = sealing.public(PRIVATE)


@given(st.binary(max_size=300), st.binary(max_size=60))
@settings(max_examples=20, deadline=None)
def test_what_was_sealed_is_opened_by_its_key_as_what_it_was_alone(body: bytes, info: bytes) -> None:
    sealed = sealing.seal(body, PUBLIC, info)
    assert len(sealed) == len(body) + sealing.OVERHEAD
    assert sealing.unseal(sealed, PRIVATE, info) == body
    wrong = bytearray(sealed)
    wrong[secrets.randbelow(len(wrong))] ^= 1 << secrets.randbelow(7)  # of bit 255 of a u-coordinate X25519 is blind
    for data, private, about in (
        (bytes(wrong), PRIVATE, info),
        (sealed[:-1], PRIVATE, info),
        (sealed, sealing.derive(OTHER), info),
        (sealed, PRIVATE, info + b"x"),
        (b"", PRIVATE, info),
    ):
        with pytest.raises(WireError):
            sealing.unseal(data, private, about)


VECTORS = [
    {name: bytes.fromhex(value) for name, value in vector.items()}
    for vector in json.loads(Path(__file__).with_name("golden").joinpath("sealed.json").read_text())
]
"""Made by the sealing that Midge had before `cryptography` had HPKE."""


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{len(vector['body'])} bytes")
def test_what_earlier_versions_sealed_is_opened(vector: dict[str, bytes]) -> None:
    pem = Ed25519PrivateKey.from_private_bytes(vector["seed"]).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    private = sealing.derive(signing.read_private(pem))
    assert (private, sealing.public(private)) == (vector["private"], vector["public"])
    assert sealing.unseal(vector["sealed"], private, vector["info"]) == vector["body"]
    again = reference_hpke.seal(vector["body"], vector["public"], vector["info"], vector["ephemeral"])
    assert again == vector["sealed"], "the reference is not what made the vectors"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{len(vector['body'])} bytes")
def test_what_is_sealed_earlier_versions_open(vector: dict[str, bytes]) -> None:
    sealed = sealing.seal(memoryview(vector["body"]), vector["public"], vector["info"])
    assert len(sealed) == len(vector["sealed"])
    assert reference_hpke.unseal(sealed, vector["private"], vector["info"]) == vector["body"]


def test_a_library_without_hpke_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from cryptography.hazmat import primitives

    monkeypatch.delattr(primitives, "hpke", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.hpke", None)
    for sealing_at_all in (
        sealing.required,
        lambda: sealing.seal(b"x", PUBLIC, b""),
        lambda: Identity(Topics("f"), release_key=KEY.public_pem()),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"47 or newer.* is installed here.*midge\[security\]"):
            sealing_at_all()


def test_a_key_of_zeros_seals_nothing() -> None:
    """With such a point the shared secret would be known to everybody (RFC 7748, section 6.1)."""
    with pytest.raises(WireError):
        sealing.seal(b"x", bytes(32), b"")
    with pytest.raises(WireError):
        sealing.unseal(bytes(32) + bytes(30), PRIVATE, b"")


def test_a_seal_belongs_to_a_device_and_a_base_and_not_to_a_number() -> None:
    update = Update(**UPDATE, size=3)
    about = sealing.about("f", "a", update)
    assert about == sealing.about("f", "a", update.model_copy(update={"seq": 9, "outbox": 7, "first": 3, "size": 99}))
    for other in (
        sealing.about("g", "a", update),
        sealing.about("f", "b", update),
        *(
            sealing.about("f", "a", update.model_copy(update=fields))
            for fields in ({"base": 2}, {"codec": "int8"}, {"tensors": (1,)}, {"generation": 1}, {"lineage": b"l" * 16})
        ),
    ):
        assert other != about


def test_an_unsigned_link_leads_nowhere() -> None:
    succession = messages.Succession(federation="f", number=1, key=OTHER.public.raw, since=0.0)
    link = envelopes.sign_succession(KEY, succession)
    assert envelopes.read_succession(link, "f", [KEY.public]) == succession
    for federation, keys in (("f", [OTHER.public]), ("g", [KEY.public])):
        with pytest.raises(BadSignature):
            envelopes.read_succession(link, federation, keys)
