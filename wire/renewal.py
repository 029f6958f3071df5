"""Renewing credentials over MQTT: what a device asks for, and what its authority answers. Both are signed frames.

A request is signed with the key that the device is known by until then, so that neither the broker nor an aggregator
can have another key put in its place. An answer is signed by an authority that the device trusts, and so is a list of
authorities, which can bring the next one.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from midge.wire import frames, messages, signing
from midge.wire.messages import Message, Sentence
from midge.wire.signing import BadSignature, PrivateKey, PublicKey

Der = Annotated[bytes, Field(max_length=4096)]
Digest = Annotated[bytes, Field(max_length=16)]


class RenewalRequest(Message):
    """What a device asks for, retained until it has it. Without `csr`, it only says whom it trusts."""

    kind: Literal["renew"] = "renew"
    csr: Der = b""
    """A PKCS #10 request (RFC 2986) over the new key, DER."""
    certificate: Der = b""
    """The certificate of the key that signs this, DER; empty if the device has a password."""
    password: Annotated[str, Field(max_length=256)] = ""
    """Of a device with a password: the hash of the next one, as the broker's file has it."""
    trusts: Digest = b""
    """`digest` of the authorities that the device trusts."""


class RenewalAnswer(Message):
    """The answer, retained until the device takes its request back."""

    kind: Literal["renewed"] = "renewed"
    request: Digest
    """`digest` of the request, whole."""
    certificate: Der = b""
    """DER; empty for a password, which is in force from now on, and if the request is refused."""
    why: Sentence = ""
    """Why it is refused; empty if it is not."""


class Authorities(Message):
    """Whom to trust from now on, retained for all; signed by an authority that was trusted before."""

    kind: Literal["authorities"] = "authorities"
    number: messages.U63
    """Counts up: an older list is not followed."""
    authorities: Annotated[bytes, Field(min_length=1, max_length=16 * 1024)]
    """Certificates, PEM, one after the other."""
    signer: Digest = b""
    """`digest` of the certificate, PEM, of the one that signs now: who has one by another asks for a new one."""


def digest(data: frames.Buffer) -> bytes:
    """What names a request, or a list of authorities."""
    return hashlib.sha256(data).digest()[:16]


def signed(key: PrivateKey, context: str, message: Message) -> bytes:
    """A message as it is published. `context` is `signing.of_device`, or the federation's name for all."""
    return signing.sign_frame(key, signing.RENEWAL, context, frames.encode(message))


def read(model: type[frames.M], payload: frames.Buffer) -> frames.M:
    """A message whose signature is looked at later: the key is in it.

    Raises:
        WireError: it is none of this kind.
    """
    return messages.decode(model, payload)[0]


def verify(payload: frames.Buffer, context: str, keys: Iterable[PublicKey]) -> None:
    """See that one of the keys signed a payload.

    Raises:
        BadSignature: none did.
        WireError: it is no frame.
    """
    _, signature = frames.decode(payload)
    head = signing.head_of(payload, signature)
    if not any(key.verifies(signature, signing.RENEWAL, context, head) for key in keys):
        raise BadSignature("a renewal that is not signed by whom it must be")
