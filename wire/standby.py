"""Messages between an aggregator and its standby, which follows its store.

Both hold the release key, from which the keys of a session are derived (HKDF-SHA256, RFC 5869): one for each direction.
The body is a random nonce of 12 bytes and ChaCha20-Poly1305 (RFC 8439) of a msgpack array, because it holds the store:
names, updates and the key of the audit log. Neither the broker nor who may read all topics sees more than sizes.
"""

import os
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from midge.wire import frames, signing
from midge.wire.errors import WireError
from midge.wire.messages import Message
from midge.wire.messages.fields import U63, Sentence, Word
from midge.wire.signing import PrivateKey

OVERHEAD: Final = 64
"""Bytes that a message adds to what it carries, at most."""
TAKEOVER: Final = 10.0
"""Seconds of silence after which a standby takes over, by default: ten heartbeats, and more than most steps take."""
_NONCE = 12

Direction = Literal["copy", "follow"]
"""From the aggregator, and from the standby."""


class StandbyMessage(Message):
    """A sealed message between an aggregator and its standby."""

    kind: Literal["standby"] = "standby"
    boot: U63 = 0
    """The session, which the standby begins: milliseconds since 1970, each higher than the one before; 0 is none."""


class StandbyState(Message):
    """The standby, as the aggregator sees it."""

    state: Word
    """`none`, `copying` (it has no current copy yet), `following`, or `away`."""
    name: Word = ""
    """Host name of the standby."""
    waits: bool = False
    """Whether receipts wait for its copy (`--sync`)."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Age of the oldest transaction that it does not have; 0 if it has all."""
    number: U63 = 0
    """Transactions that it does not have."""
    updates: U63 = 0
    """Receipted updates in these: what would be lost with this host."""
    why: Sentence = ""
    """What the operator should do about it; empty if nothing."""


class StandbyLink:
    """Seals and opens the messages of one federation.

    Args:
        key: the release key that is in force.
        federation: its name.
    """

    def __init__(self, key: PrivateKey, federation: str) -> None:
        signing.required()
        self._seed, self._federation = key.seed, federation
        self._keys: dict[tuple[int, Direction], Any] = {}

    def seal(self, session: int, way: Direction, content: list[Any]) -> bytes:
        """A message as published."""
        head = frames.encode(StandbyMessage(boot=session))
        nonce = os.urandom(_NONCE)
        sealed: bytes = self._key(session, way).encrypt(nonce, frames.pack(content), head)
        return head + nonce + sealed

    def open(self, way: Direction, payload: frames.Buffer) -> tuple[int, tuple[Any, ...]]:
        """The session and the content of a message.

        Raises:
            WireError: it is none, or was not sealed by who holds the release key.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra

        header, body = frames.decode(payload)
        if header.get("kind") != "standby":
            raise WireError("no message of a standby")
        session = frames.validate(StandbyMessage, header).boot
        head = bytes(memoryview(payload)[: len(payload) - len(body)])
        try:
            content = frames.unpack(self._key(session, way).decrypt(bytes(body[:_NONCE]), bytes(body[_NONCE:]), head))
        except (InvalidTag, ValueError) as error:
            raise WireError("it is not sealed with the release key") from error
        if not isinstance(content, tuple) or not content:
            raise WireError("it has no content")
        return session, content

    def _key(self, session: int, way: Direction) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        if (session, way) not in self._keys:
            if len(self._keys) > 8:  # a session in a header can be forged
                self._keys.clear()
            info = frames.pack([self._federation, session, way])
            derived = HKDF(SHA256(), 32, salt=b"midge/1 standby", info=info).derive(self._seed)
            self._keys[session, way] = ChaCha20Poly1305(derived)
        return self._keys[session, way]
