"""Authentication of devices by their keys and signatures, and opening of sealed bodies."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from midge.aggregator.ingress.sealing_keys import SealingKeys
from midge.wire import chunks, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Fetch, Hello, Report, Statistics, Surveyed, Update
from midge.wire.messages.proofs import Prove
from midge.wire.signing import BadSignature, KeyUnusable, MacKey, PublicKey
from midge.wire.topics import Topics

FromDevice = Update | Chunk | Fetch | Statistics | Prove | Hello | Report | Surveyed
T = TypeVar("T")
_FILES = ("{}.pub", "{}.crt", "{}/device.crt", "{}.hmac")
DeviceKey = PublicKey | MacKey


class DeviceKeys:
    """The devices' keys by name: given, or `NAME.pub`, `NAME.crt`, `NAME/device.crt` or `NAME.hmac` in a directory.

    Files that are added, replaced or removed take effect at once.
    """

    def __init__(self, keys: Mapping[str, bytes | DeviceKey] | str | Path) -> None:
        """Read the given keys.

        Raises:
            KeyUnusable: one is invalid, or there is no such directory.
        """
        self._directory = None if isinstance(keys, Mapping) else Path(keys)
        self._keys: dict[str, DeviceKey] = {}
        self._read: dict[str, tuple[tuple[str, int], DeviceKey]] = {}
        if isinstance(keys, Mapping):
            for name, key in keys.items():
                self._keys[name] = signing.read_public(key, f"the key of {name}") if isinstance(key, bytes) else key
        elif not Path(keys).is_dir():
            raise KeyUnusable(f"device_keys is {str(keys)!r}: it must be a directory with NAME.pub or NAME.crt in it.")

    def secret(self, device: str) -> MacKey | None:
        """The secret that a device shares with us; None if it has none."""
        key = self.of(device)
        return key if isinstance(key, MacKey) else None

    def required(self, device: str) -> bool:  # noqa: ARG002 - a shard's is
        """Whether a device must sign even if there is no key of it."""
        return False

    def of(self, device: str) -> DeviceKey | None:
        """A device's key; None if it has none. The name must be valid in a topic."""
        if self._directory is None:
            return self._keys.get(device)
        for pattern in _FILES:
            path = self._directory / pattern.format(device)
            try:
                stamp = pattern, path.stat().st_mtime_ns
                known = self._read.get(device)
                if known is not None and known[0] == stamp:
                    return known[1]
                read = MacKey.read if pattern.endswith(".hmac") else signing.read_public
                key = read(path.read_bytes(), str(path))
            except OSError:
                continue
            except KeyUnusable:
                return None
            self._read[device] = stamp, key
            return key
        self._read.pop(device, None)
        return None


class Credentials:
    """The requirements for a message to be trusted.

    A device with a known key must sign. `require_signed` also refuses those without one.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        device_keys: DeviceKeys | None = None,
        require_signed: bool = False,
        require_sealed: bool = False,
        seal_keys: tuple[bytes, ...] = (),
        daily: SealingKeys | None = None,
    ) -> None:
        if require_signed and device_keys is None:
            raise ValueError("require_signed needs device_keys: a directory of the devices' public keys by name.")
        if require_sealed and not seal_keys:
            raise ValueError("require_sealed needs a release_key: from it the key is made that devices seal to.")
        self.topics = topics
        self._device_keys = device_keys
        self._require_signed, self._require_sealed = require_signed, require_sealed
        self._seal_keys = seal_keys
        self.daily = daily
        """The keys of the day."""

    def authenticated(self, device: str) -> bool:
        """Whether messages that pass `own_body` are certainly from this device."""
        return self._require_signed or (self._device_keys is not None and self._device_keys.of(device) is not None)

    def secret(self, device: str) -> MacKey | None:
        """The secret that a device shares with us; None if it has none."""
        return None if self._device_keys is None else self._device_keys.secret(device)

    def registered(self, device: str) -> bool:
        """Whether a device may take part: any name may, unless only known keys are trusted."""
        return not self._require_signed or (self._device_keys is not None and self._device_keys.of(device) is not None)

    def own_body(self, device: str, message: FromDevice, body: memoryview, payload: bytes) -> memoryview:
        """A message's body without its signature, which was verified.

        Chunks are not signed: the offer's signature covers the checksum of the whole. Requests for a model or
        for a proof are not signed either: the answer goes to the device alone.

        Raises:
            BadSignature: it is not signed by this device, and must be.
        """
        own, signature = signing.split(message, body)
        if isinstance(message, Chunk | Fetch | Prove) or self._device_keys is None:
            return own
        key = self._device_keys.of(device)
        if key is None:
            if self._require_signed or self._device_keys.required(device):
                raise BadSignature("the aggregator has no key of this device")
            return own
        context = signing.of_device(self.topics.federation, device)
        if not key.verifies(signature, signing.DEVICE, context, signing.head_of(payload, body)):
            raise BadSignature("it is not signed by the key that the aggregator has of this device")
        if isinstance(message, Statistics | Surveyed) or (isinstance(message, Update) and message.kind == "update"):
            self.check_whole(device, message, own)
        return own

    def check_whole(self, device: str, message: Update | Statistics | Surveyed, body: memoryview) -> None:
        """Check that a whole body is the signed one: otherwise it was replaced in transit, and settles nothing.

        Raises:
            BadSignature: it is not.
        """
        if self.authenticated(device) and not chunks.fits(body, message.sha256):
            raise BadSignature("its body is not the one that was signed")

    def must_be_sealed(self, message: Update | Statistics) -> str | None:
        """Why a message cannot be accepted sealed as it is, or unsealed; None if it can."""
        if message.sealed not in ("", sealing.NAME):
            return f"it is sealed as {message.sealed!r}, which is not known here"
        if message.sealed and not self._seal_keys:
            return "it is sealed, and this aggregator has no key to open it with"
        if self._require_sealed and not message.sealed:
            return "this federation accepts only sealed updates"
        return None

    def erased(self, message: Update) -> bool:
        """Whether an update is sealed to a key that is no longer here: its device can seal it again."""
        return bool(message.key) and (self.daily is None or self.daily.of(message.key) is None)

    def opened(self, device: str, message: Update | Statistics, body: memoryview) -> memoryview:
        """Open a body's seal.

        Raises:
            WireError: it is not sealed to a key of ours, or was changed.
        """
        if not message.sealed:
            return body
        if not chunks.fits(body, message.sha256) and isinstance(message, Update):
            raise WireError("the checksum of the sealed delta does not match")
        info = sealing.about(self.topics.federation, device, message)
        if isinstance(message, Update) and message.key:
            private = None if self.daily is None else self.daily.of(message.key)
            if private is None:
                raise WireError("the key that it is sealed to has been erased")
            return memoryview(sealing.unseal(body, private, info))
        return memoryview(self._by_a_key(lambda private: sealing.unseal(body, private, info)))

    def shown(self, device: str, message: sealing.T) -> sealing.T:
        """A message with its hidden fields; a status whose fields were not sealed to us is returned without them.

        Raises:
            WireError: the hidden fields were not sealed to us, or do not belong in such a message.
        """
        if not message.hidden:
            return message
        try:
            return self._by_a_key(lambda private: sealing.shown(self.topics.federation, device, message, private))
        except WireError:
            if isinstance(message, Hello):
                return message
            raise

    def _by_a_key(self, opened: Callable[[bytes], T]) -> T:
        """The result of our first key that opens it, the newest first."""
        keys = (*(() if self.daily is None else self.daily.private), *self._seal_keys)
        if not keys:
            raise WireError("it is sealed, and this aggregator has no key to open it with")
        for private in keys[:-1]:
            with suppress(WireError):
                return opened(private)
        return opened(keys[-1])


def plain(update: Update, body: memoryview) -> Update:
    """The header as if the update had never been sealed, except for its checksum: receipts name the body as it came."""
    return update.model_copy(update={"size": len(body), "sealed": "", "key": b""})
