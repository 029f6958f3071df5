"""Renewal of credentials over MQTT: a device's request and its authority's answer, both signed frames.

A request is signed with the device's current key, so that neither the broker nor an aggregator can substitute another
key. An answer is signed by an authority that the device trusts, and so is a list of authorities, which can introduce
the next one.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from midge.wire import frames, messages, signing
from midge.wire.messages import Message
from midge.wire.messages.fields import U63, Sentence
from midge.wire.signing import BadSignature, PrivateKey, PublicKey

Der = Annotated[bytes, Field(max_length=4096)]
Digest = Annotated[bytes, Field(max_length=16)]


class RenewalRequest(Message):
    """A device's request, retained until it is answered. Without `csr`, it only reports whom the device trusts."""

    kind: Literal["renew"] = "renew"
    csr: Der = b""
    """A PKCS #10 request (RFC 2986) over the new key, DER."""
    certificate: Der = b""
    """The certificate of the key that signs this, DER; empty if the device has a password."""
    password: Annotated[str, Field(max_length=256)] = ""
    """The hash of the next password, as in the broker's file, for a device with a password."""
    trusts: Digest = b""
    """`digest` of the authorities that the device trusts."""


class RenewalAnswer(Message):
    """The answer, retained until the device removes its request."""

    kind: Literal["renewed"] = "renewed"
    request: Digest
    """`digest` of the whole request."""
    certificate: Der = b""
    """The certificate, DER; empty for a password, which is in force from now on, and if the request is refused."""
    why: Sentence = ""
    """Why it is refused; empty if it is not."""


class Authorities(Message):
    """Whom to trust from now on, retained for all; signed by an authority that was trusted before."""

    kind: Literal["authorities"] = "authorities"
    number: U63
    """Counts up: an older list is ignored."""
    authorities: Annotated[bytes, Field(min_length=1, max_length=16 * 1024)]
    """Certificates, PEM, one after the other."""
    signer: Digest = b""
    """`digest` of the certificate, PEM, of the authority that signs now: a device with a certificate by another one
    requests a new one."""


def digest(data: frames.Buffer) -> bytes:
    """Digest that names a request, or a list of authorities."""
    return hashlib.sha256(data).digest()[:16]


def signed(key: PrivateKey, context: str, message: Message) -> bytes:
    """A message as it is published. `context` is `signing.of_device`, or the federation's name for messages to all."""
    return signing.sign_frame(key, signing.RENEWAL, context, frames.encode(message))


def read(model: type[frames.M], payload: frames.Buffer) -> frames.M:
    """Read a message before its signature is verified: the key is in it.

    Raises:
        WireError: it is none of this kind.
    """
    return messages.decode(model, payload)[0]


def verify(payload: frames.Buffer, context: str, keys: Iterable[PublicKey]) -> None:
    """Verify that one of the keys signed a payload.

    Raises:
        BadSignature: none did.
        WireError: it is no frame.
    """
    _, signature = frames.decode(payload)
    head = signing.head_of(payload, signature)
    if not any(key.verifies(signature, signing.RENEWAL, context, head) for key in keys):
        raise BadSignature("the renewal is not signed by a trusted key")
