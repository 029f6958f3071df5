"""Dating and signing of the aggregator's announcements and receipts.

Chunks of the model are not signed, because the announced digest covers them. The aggregator's status is signed for its
token; a device obeys the state of an unsigned one as well. A forged status can make the device hold back its updates or
send its status again, which anyone who can forge it can also achieve by dropping messages.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from midge.aggregator.ingress.sealing_keys import SealingKeys
from midge.aggregator.publish.dating import Dating
from midge.storage.files import PRIVATE, atomic_rename, atomic_write
from midge.wire import envelopes, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import (
    AggregatorStatus,
    Announcement,
    Claim,
    Envelope,
    ModelAlias,
    Receipt,
    SiteValues,
    Succession,
    Trouble,
    Vouch,
)
from midge.wire.signing import KeyUnusable, MacKey, PrivateKey
from midge.wire.topics import Channel, Frames, Topics

LIFETIME = 86_400.0
"""Validity of an announcement: a broker can withhold newer ones unnoticed for that long."""
_AGAIN = 0.25
"""Fraction of the lifetime after which the announcement is reissued."""
_LINKS = 16


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """The signing keys, each from some time on, and the chain of successions from the first to the last."""

    keys: tuple[tuple[float, PrivateKey], ...]
    chain: tuple[bytes, ...] = ()
    links: tuple[float, ...] = ()
    """When each succession takes effect."""
    companion: PrivateKey | None = None
    """Signs as well, for devices that can verify only P-256."""

    def at(self, when: float) -> PrivateKey:
        """The key in force."""
        in_force = self.keys[0][1]
        for since, key in self.keys:
            if since <= when:
                in_force = key
        return in_force

    def chain_at(self, when: float) -> tuple[bytes, ...]:
        """The successions up to the key in force: earlier ones were signed by earlier keys."""
        return self.chain[: sum(since <= when for since in self.links)]


def load_release_keys(path: Path) -> ReleaseKeys:
    """Read `release.key`, and beside it `release.key.chain` and the earlier `release.key.1`, `.2` … if they exist.

    Raises:
        KeyUnusable: a file is missing or invalid.
    """
    newest = _read_key(path)
    chain_file, beside = path.with_name(path.name + ".chain"), path.with_name(f"{path.name}.{signing.P256}")
    companion = _read_key(beside) if beside.exists() else None
    if companion is not None and companion.public.kind != signing.P256:
        raise KeyUnusable(f"{beside} is no P-256 key: make one with midge release-key new {beside} --type p256.")
    if not chain_file.exists():
        return ReleaseKeys(((0.0, newest),), companion=companion)
    try:
        chain: tuple[bytes, ...] = tuple(frames.unpack(chain_file.read_bytes(), items=_LINKS))
        links = [messages.decode(Succession, messages.decode(Envelope, bytes(link))[0].body)[0] for link in chain]
        if not links:
            raise WireError("it is empty")  # noqa: TRY301
    except (OSError, TypeError, WireError) as error:
        raise KeyUnusable(
            f"{chain_file} cannot be read ({error}): restore it, devices follow it to the key."
        ) from error
    keys: list[tuple[float, PrivateKey]] = []
    for number, link in enumerate(links, start=1):
        earlier = path.with_name(f"{path.name}.{number}")
        if earlier.exists():  # otherwise it is out of force, and bodies sealed to it can no longer be read
            keys.append((links[number - 2].since if number > 1 else 0.0, _read_key(earlier)))
        elif link.since > time.time():
            raise KeyUnusable(f"{earlier} is missing, and signs until its successor does: restore it.")
    following = path.with_name(path.name + ".new")
    if links[-1].key != newest.public.raw and following.exists():
        atomic_rename(following, path)  # a power cut while the successor was made
        newest = _read_key(path)
    if links[-1].key != newest.public.raw:
        raise KeyUnusable(f"{chain_file} leads to another key than {path}: restore the one that belongs to it.")
    since = tuple(link.since for link in links)
    return ReleaseKeys((*keys, (since[-1], newest)), chain, since, companion)


def _read_key(path: Path) -> PrivateKey:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KeyUnusable(
            f"The release key {path} cannot be read ({error.strerror}): make one with midge release-key new {path}."
        ) from error
    return signing.read_private(data, str(path))


def succeed(path: Path, federation: str, since: float) -> ReleaseKeys:
    """Make a new key that signs from some time on; the old one signs the succession and is kept as `release.key.1` etc.

    Raises:
        KeyUnusable: the current key cannot be read, or has had 16 successors.
        OSError: a file cannot be written.
    """
    now = load_release_keys(path)
    if len(now.chain) >= _LINKS:
        raise KeyUnusable(f"{path} has had {_LINKS} successors: begin with a new key, and pin it on every device.")
    if since < now.keys[-1][0]:
        raise KeyUnusable("A successor cannot sign before the key that vouches for it does: name a later time.")
    old = now.keys[-1][1]
    new = signing.new_key(old.public.kind)
    number = len(now.chain) + 1
    succession = Succession(federation=federation, number=number, key=new.public.raw, since=since)
    chain = (*now.chain, envelopes.sign_succession(old, succession))
    write_secret(path.with_name(f"{path.name}.{number}"), old.pem())
    write_secret(path.with_name(path.name + ".new"), new.pem())
    write_secret(path.with_name(path.name + ".chain"), frames.pack(list(chain)))
    atomic_rename(path.with_name(path.name + ".new"), path)
    return load_release_keys(path)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read. When this returns it survives a power cut.

    Raises:
        OSError: it cannot be written.
    """
    atomic_write(path, data, mode=PRIVATE)


class AnnouncementSigner:
    """Signs messages if there is a key, and adds time of issue and expiry."""

    def __init__(
        self,
        topics: Topics,
        keys: ReleaseKeys | None = None,
        *,
        lifetime: float = LIFETIME,
        sealed: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not lifetime > 0:
            raise ValueError(f"announcement_lifetime is {lifetime}: it must be a number of seconds above 0.")
        self._topics, self._keys = topics, keys
        self._lifetime, self._clock = lifetime, clock
        self.dating = Dating(lambda: self._clock())  # noqa: PLW0108 - a test may set another
        self._sealed = sealed
        self.epoch = 0
        """Set from the store."""
        self.helper = b""
        """The mask helper's statement of its keys, for devices that mask their updates."""
        self.site, self.certificate = "", b""
        """Of a gateway: its site, and the release key's statement of the key that signs here."""
        self.token = 0
        """The fencing token of this start."""
        self.daily: SealingKeys | None = None
        """The keys of the day; None until the store is open, and without a release key."""
        self.verifies: Mapping[str, str] = {}
        """Signature schemes that devices request in their status, by device."""
        self.secret: Callable[[str], MacKey | None] = lambda _device: None
        """The secret that a device shares with us."""
        self.announced: dict[Channel, bytes] = {}
        """Each channel's newest announcement as published, for devices that cannot verify its signature."""
        self._issued: dict[Frames, float] = {}
        self._signer: PrivateKey | None = None
        self._last: Announcement | None = None
        self._parent = b""

    @property
    def federation(self) -> str:
        return self._topics.federation

    @property
    def signs(self) -> bool:
        return self._keys is not None

    @property
    def newest_key(self) -> PrivateKey | None:
        """The last of the keys, in force or not; None if nothing is signed."""
        return None if self._keys is None else self._keys.keys[-1][1]

    @property
    def seals(self) -> bool:
        """Whether devices are asked to seal."""
        return self._sealed

    @property
    def seal_keys(self) -> tuple[bytes, ...]:
        """Private keys of the announced keys that devices may have sealed to, the newest first."""
        return () if self._keys is None else tuple(sealing.derive(key) for _, key in reversed(self._keys.keys))

    def announcement(self, announcement: Announcement | ModelAlias) -> bytes:
        """An announcement, or a name of a registered version, as published: issued now, valid for the lifetime."""
        issued = self.dating.issue()
        if isinstance(announcement, ModelAlias):
            return self._alias(announcement, issued)
        dated = announcement.model_copy(
            update={"issued": issued, "expires": issued + self._lifetime, "epoch": self.epoch}
        )
        self._issued[announcement.channel] = issued
        train = announcement.channel == "train"
        if train:
            dated = dated.model_copy(update={"parent": self._follow(announcement)})
        if self._keys is None:
            return self._record_announced(dated.channel, messages.encode_announcement(dated))
        self._signer = self._keys.at(issued)
        if train and self._sealed:
            key = sealing.public(sealing.derive(self._signer))
            helper = self.helper
            dated = dated.model_copy(update={"seal_key": key, "confides": True, "hides": True, "helper": helper})
        chain, companion = self._keys.chain_at(issued), self._keys.companion
        federation = self._topics.federation
        signed = envelopes.sign_announcement(self._signer, federation, dated, chain, companion=companion)
        return self._record_announced(dated.channel, signed)

    def _alias(self, alias: ModelAlias, issued: float) -> bytes:
        self._issued["registered"] = issued
        alias = alias.model_copy(update={"issued": issued, "expires": issued + self._lifetime, "epoch": self.epoch})
        if self._keys is None:
            return messages.encode_announcement(alias)
        key = self._keys.at(issued)
        return envelopes.sign_alias([key] if self._keys.companion is None else [key, self._keys.companion], alias)

    def _record_announced(self, channel: Channel, payload: bytes) -> bytes:
        self.announced[channel] = payload
        return payload

    def _follow(self, announcement: Announcement) -> bytes:
        """The digest of the version before this one, if known."""
        last, self._last = self._last, announcement
        if last is not None and _order(last) != _order(announcement):
            follows = _order(announcement) == (last.lineage, last.generation, last.version + 1)
            self._parent = last.digest if follows else b""
        return self._parent

    @property
    def overdue(self) -> list[Frames]:
        """Channels whose announcements must be reissued, because of their age or because another key signs now."""
        now = self.dating.now()
        if self._keys is not None and self._signer is not None and self._keys.at(now) is not self._signer:
            return list(self._issued)
        return [name for name, issued in self._issued.items() if not 0 <= now - issued < _AGAIN * self._lifetime]

    def receipt(self, device: str, receipt: Receipt) -> bytes:
        """A receipt as published."""
        return self._to(device, receipt.model_copy(update={"token": self.token}) if self.token else receipt)

    def trouble(self, device: str, trouble: Trouble) -> bytes:
        """A `trouble` as published."""
        return self._to(device, trouble)

    def vouches(self, device: str) -> list[bytes]:
        """Confirmations of the newest announcements, for a device that can verify only its shared secret."""
        if self.verifies.get(device) != signing.HMAC or self.secret(device) is None:
            return []
        envelopes = [messages.decode(Envelope, payload)[0] for payload in self.announced.values()]
        digests = [hashlib.sha256(envelope.body).digest()[:16] for envelope in envelopes]
        return [self._to(device, Vouch(digest=digest)) for digest in digests]

    def _to(self, device: str, answer: Receipt | Trouble | Vouch) -> bytes:
        head = frames.encode(answer)
        if self.verifies.get(device) == signing.HMAC and (secret := self.secret(device)) is not None:
            context = signing.of_device(self._topics.federation, device)
            return signing.sign_frame(secret, signing.RECEIPT, context, head)
        if self._keys is None:
            return head
        # The announcement's key, which the device knows. Old devices accept only one signature.
        key = self._signer or self._keys.at(self.dating.now())
        if self._keys.companion is not None and self.verifies.get(device) == signing.P256:
            key = self._keys.companion
        return signing.sign_frame(key, signing.RECEIPT, signing.of_device(self._topics.federation, device), head)

    def deposit(self, head: bytes, body: bytes) -> bytes:
        """A message to the mask helper, as published; there must be a key."""
        assert self._keys is not None
        key = self._signer or self._keys.at(self.dating.now())
        return signing.sign_frame(key, signing.DEPOSIT, self._topics.federation, head, body)

    def site_values(self, message: SiteValues, values: bytes) -> bytes:
        """The values of the site's tensors, as published."""
        head = frames.encode(message)
        if self._keys is None:
            return head + values
        key = self._signer or self._keys.at(self.dating.now())
        return signing.sign_frame(key, signing.SITE_VALUES, self._topics.federation, head, values)

    def own_message(self, message: AggregatorStatus | Claim) -> bytes:
        """A message of the aggregator about itself, as published; a status names the key of the day."""
        if isinstance(message, AggregatorStatus) and self.daily is not None:
            message = message.model_copy(update={"seal_key": self.daily.public, "number": self.daily.number})
        head = frames.encode(message)
        if self._keys is None:
            return head
        key = self._signer or self._keys.at(self.dating.now())
        return signing.sign_frame(key, signing.AGGREGATOR, self._topics.federation, head)

    def is_own_message(self, payload: bytes) -> bool:
        """Whether such a message was signed by one of our keys; always true without keys.

        Raises:
            WireError: it is no frame.
        """
        if self._keys is None:
            return True
        return signing.signs_for_federation(
            (key.public for _, key in self._keys.keys), self._topics.federation, payload
        )

    def ordered(self, payload: bytes) -> bool:
        """Whether one of our keys signed an operator's command; always false without keys.

        Raises:
            WireError: it is no frame.
        """
        keys = () if self._keys is None else self._keys.keys
        public = (key.public for _, key in keys)
        return signing.signs_for_federation(public, self._topics.federation, payload, signing.OPERATOR)

    def is_ours(self, payload: bytes) -> bool:
        """Whether an announcement was signed by one of our keys; always true without keys.

        Raises:
            WireError: it is no announcement.
        """
        if self._keys is None:
            return True
        envelope, _ = messages.decode(Envelope, payload)
        public = [key.public for _, key in self._keys.keys]
        return envelopes.signed_by(envelope, signing.ANNOUNCEMENT, self._topics.federation, public) is not None


def _order(announcement: Announcement) -> tuple[bytes, int, int]:
    return announcement.lineage, announcement.generation, announcement.version
