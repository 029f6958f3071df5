"""Messages about the ledger of releases: a device asks for the proof of an update, and the aggregator answers."""

from typing import Annotated, Literal

from pydantic import Field

from midge.wire.messages.fields import BODY_DIGEST, U63, Finite, Message, Sentence, Seq

_Hash = Annotated[bytes, Field(min_length=32, max_length=32)]
_Path = Annotated[tuple[_Hash, ...], Field(max_length=64)]


class Prove(Message):
    """A device asks for the proof that an update of it is in a release."""

    kind: Literal["prove"] = "prove"
    outbox: U63
    seq: Seq
    entries: U63
    """Of the log whose announced head the device has verified."""
    earlier: U63 = 0
    """Entries of a log whose head it verified before; 0 for none."""


class Proof(Message):
    """The answer: paths in the Merkle tree over the first `entries` entries of the log (RFC 9162, section 2.1)."""

    kind: Literal["proof"] = "proof"
    outbox: U63
    seq: Seq
    entries: U63
    why: Sentence = ""
    """Why there is no proof; the other fields are those of one otherwise."""
    body: Annotated[bytes, Field(max_length=BODY_DIGEST)] = b""
    """The digest of the body that was taken, as in a receipt."""
    base: U63 = 0
    weight: Finite = 0.0
    """In its step."""
    salt: Annotated[bytes, Field(max_length=16)] = b""
    place: U63 = 0
    """Of its entry, from 0."""
    path: _Path = ()
    generation: U63 = 0
    version: U63 = 0
    """The release."""
    step: U63 = 0
    digest: Annotated[bytes, Field(max_length=16)] = b""
    """Of the published state of that version."""
    updates: U63 = 0
    """Updates in the release."""
    release: U63 = 0
    """The place of its entry."""
    release_path: _Path = ()
    since: _Path = ()
    """The proof of consistency with the first `earlier` entries."""
