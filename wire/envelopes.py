"""Signed statements in envelopes: announcements, names of versions, successions of keys, certificates.

An envelope holds the exact bytes of its body, one or more signatures, each with the id of its key, and the succession
that leads to the key. So anyone can keep it, and pass it on, as it was signed.
"""

from collections.abc import Sequence
from typing import TypeVar

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Envelope, ModelAlias, SiteCertificate, Succession, SurveyRequest, decode
from midge.wire.messages.masking import HelperStatement
from midge.wire.signing import (
    ALIAS,
    ANNOUNCEMENT,
    HELPER,
    SITE,
    SUCCESSION,
    SURVEY,
    BadSignature,
    PrivateKey,
    PublicKey,
)


def sign_announcement(
    key: PrivateKey,
    federation: str,
    announcement: Announcement,
    chain: Sequence[bytes] = (),
    *,
    companion: PrivateKey | None = None,
) -> bytes:
    """An announcement in its envelope, signed.

    Args:
        key: signs first.
        federation: its name.
        announcement: the announcement.
        chain: succession from an earlier key to this one.
        companion: signs as well, for devices that cannot verify the other key's kind.
    """
    keys = (key,) if companion is None else (key, companion)
    return _enveloped(keys, ANNOUNCEMENT, federation, frames.encode(announcement), chain)


def sign_alias(keys: Sequence[PrivateKey], alias: ModelAlias) -> bytes:
    """A name of a registered version in its envelope, signed by each of the keys."""
    return _enveloped(keys, ALIAS, alias.federation, frames.encode(alias))


def sign_survey(keys: Sequence[PrivateKey], survey: SurveyRequest) -> bytes:
    """A survey's request in its envelope, signed by each of the keys."""
    return _enveloped(keys, SURVEY, survey.federation, frames.encode(survey))


def sign_statement(key: PrivateKey, statement: HelperStatement) -> bytes:
    """The mask helper's statement of its keys in its envelope, signed."""
    return _enveloped((key,), HELPER, statement.federation, frames.encode(statement))


def read_statement(payload: frames.Buffer, federation: str, keys: Sequence[PublicKey]) -> HelperStatement:
    """Read the mask helper's statement.

    Raises:
        WireError: it is none of this federation.
        BadSignature: none of these keys has signed it.
    """
    return _stated(
        payload, HELPER, federation, keys, HelperStatement, name="the mask helper's statement", signer="its key"
    )


def certify_site(key: PrivateKey, certificate: SiteCertificate) -> bytes:
    """A gateway's certificate in its envelope, signed by a release key."""
    return _enveloped((key,), SITE, certificate.federation, frames.encode(certificate))


def read_certificate(payload: frames.Buffer, federation: str, keys: Sequence[PublicKey]) -> SiteCertificate:
    """Read a gateway's certificate.

    Raises:
        WireError: it is none of this federation.
        BadSignature: none of these keys has signed it.
    """
    name = "the certificate of the site"
    return _stated(payload, SITE, federation, keys, SiteCertificate, name=name, signer="a release key")


_Statement = TypeVar("_Statement", HelperStatement, SiteCertificate)


def _stated(
    payload: frames.Buffer,
    purpose: str,
    federation: str,
    keys: Sequence[PublicKey],
    model: type[_Statement],
    *,
    name: str,
    signer: str,
) -> _Statement:
    envelope, _ = decode(Envelope, payload)
    if signed_by(envelope, purpose, federation, keys) is None:
        raise BadSignature(f"{name} is not signed by {signer}")
    statement, _ = decode(model, envelope.body)
    if statement.federation != federation:
        raise WireError(f"{name} is of another federation")
    return statement


def _enveloped(
    keys: Sequence[PrivateKey], purpose: str, federation: str, body: bytes, chain: Sequence[bytes] = ()
) -> bytes:
    signatures = tuple((each.public.id, each.sign(purpose, federation, body)) for each in keys)
    return frames.encode(Envelope(body=body, signatures=signatures, chain=tuple(chain)))


def signers(envelope: Envelope) -> set[bytes]:
    """The ids of the keys that an envelope claims to be signed by. Nothing is verified."""
    pairs = [item for item in envelope.signatures if isinstance(item, tuple) and len(item) == 2]
    return {name for name, _ in pairs if isinstance(name, bytes)}


def signed_by(envelope: Envelope, purpose: str, context: str, keys: Sequence[PublicKey]) -> PublicKey | None:
    """The key among `keys` that signed an envelope's body; None if there is none."""
    for item in envelope.signatures[:4]:
        match item:
            case (bytes() as name, bytes() as signature):
                for key in keys:
                    if key.id == name and key.verifies(signature, purpose, context, envelope.body):
                        return key
    return None


def sign_succession(old: PrivateKey, succession: Succession) -> bytes:
    """Sign the statement of a key that another one signs after it."""
    return _enveloped((old,), SUCCESSION, succession.federation, frames.encode(succession))


def read_succession(link: bytes, federation: str, keys: Sequence[PublicKey]) -> Succession:
    """Read one link of a chain, signed by one of these keys.

    Raises:
        WireError: it is no link of this federation.
        BadSignature: none of them has signed it.
    """
    envelope, _ = decode(Envelope, link)
    if signed_by(envelope, SUCCESSION, federation, keys) is None:
        raise BadSignature("the chain of keys is not signed by the key before")
    succession, _ = decode(Succession, envelope.body)
    if succession.federation != federation:
        raise WireError("the chain of keys is another federation's")
    return succession
