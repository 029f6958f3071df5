"""The device's identity: pinned keys to verify others, its own key to sign, and sealing of what it sends."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import randbits
from typing import NamedTuple

from pydantic import BaseModel

from midge.iot_client.session.trust import Trust
from midge.iot_client.state.memory_outbox import AnyOutbox
from midge.iot_client.state.outbox import OutboxError, OutboxFull
from midge.storage.key_files import read_key
from midge.wire import chunks, clocks, frames, masking, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import (
    AggregatorStatus,
    Announcement,
    Answer,
    Hello,
    ModelAlias,
    SiteValues,
    Statistics,
    Surveyed,
    SurveyRequest,
    Update,
)
from midge.wire.signing import PrivateKey, PublicKey
from midge.wire.topics import Alias, Channel, Topics

Key = str | Path | bytes
"""A file that holds a key, or its bytes."""
_OWNER = "device"
"""Key in the outbox under which it records its owner."""
_CHANNELS: tuple[Channel, Channel] = ("train", "serve")


class UpdateKey(NamedTuple):
    """A key that updates are sealed to."""

    public: bytes
    daily: bool
    """Whether it is a key of the day; otherwise the long-term one, for an aggregator of an earlier version."""
    confides: bool
    """Whether training details are sealed too."""


class Identity:
    """One device in one federation.

    Args:
        topics: the federation's.
        release_key: the public key, or keys, of the federation's announcements: pinned, so that nothing else is
            trusted. None trusts the broker.
        signing_key: the device's own private key, to sign what it sends.

    Raises:
        KeyUnusable: a key cannot be read.
        ModuleNotFoundError: there are keys and `cryptography` is not installed, or too old to seal.
    """

    def __init__(
        self, topics: Topics, *, release_key: Key | Sequence[Key] | None = None, signing_key: Key | None = None
    ) -> None:
        given = [release_key] if isinstance(release_key, str | Path | bytes) else list(release_key or ())
        self._topics = topics
        self._pinned: list[PublicKey] = [signing.read_public(*read_key(key)) for key in given]
        if self._pinned:
            sealing.required()  # checked at the start, not after the first update was trained
        self._key: PrivateKey | None = None if signing_key is None else signing.read_private(*read_key(signing_key))
        self._name = ""
        self._trusts: dict[Channel, Trust] = {}
        self.owes_details = False
        """Whether the newest status left details out because no announcement was known."""
        self.site_size = 0
        """Bytes of a site's tensors that the aggregator takes after a delta; 0 but at a gateway."""

    def begin(self, name: str, outbox: AnyOutbox) -> None:
        """Restore what this device verified before a restart. The outbox is open.

        Raises:
            OutboxError: the outbox is another device's: its sequence numbers would count again under this name.
        """
        owner = outbox.remembered(_OWNER)
        if owner is None:  # new, or made by an earlier Midge
            outbox.pending[_OWNER] = name.encode()
        elif owner != name.encode():
            raise OutboxError(
                f"The outbox {outbox.path} is of the device {owner.decode()}, and this device is {name}: updates that "
                f"were counted for {owner.decode()} would count again. Put the outbox of {name} in its place, or name "
                f"another file (outbox=)."
            )
        self._name, self._outbox = name, outbox
        federation = self._topics.federation
        self._trusts = {
            channel: Trust(self._pinned, federation, name, outbox.remembered(f"trust.{channel}"), channel=channel)
            for channel in _CHANNELS
        }

    @property
    def doubt(self) -> str:
        """Why a clock is wrong, the device's or the aggregator's; empty if they agree."""
        return self._trusts["train"].doubt

    @property
    def verifies(self) -> str:
        """The scheme for receipts to us, if it is not the first release key: `p256`, or empty."""
        return signing.P256 if self._pinned and all(key.kind == signing.P256 for key in self._pinned) else ""

    @property
    def pinned(self) -> bool:
        """Whether only signed messages are trusted."""
        return bool(self._pinned)

    # ------------------------------------------------------------------- receiving

    def announcement(self, payload: bytes, channel: Channel, wall: float, now: float) -> Announcement:
        """Read an announcement; with a pinned key, only one that is signed, newer than what is known, and not expired.

        Raises:
            WireError: it must be ignored.
        """
        trust = self._trusts[channel]
        announcement = trust.announcement(payload, wall, now)
        if announcement.channel != channel:
            raise WireError(f"an announcement of the channel {announcement.channel!r} on that of {channel!r}")
        if not self.pinned and announcement.issued > wall + clocks.DAY >= clocks.SANE:
            announcement = announcement.model_copy(update={"issued": 0.0})  # it does not show what is newer
        if not messages.possible(announcement.generation, announcement.version):
            raise WireError(f"version {announcement.generation}.{announcement.version} cannot be")
        self._remember(channel, now)
        return announcement

    def alias(self, payload: bytes, name: Alias, wall: float, now: float) -> ModelAlias:
        """Read a name of a registered version; with a pinned key, only one that is signed and not expired.

        Raises:
            WireError: it must be ignored.
        """
        alias = self._trusts["train"].alias(payload, wall, now)
        if alias.name != name:
            raise WireError(f"the name {alias.name} on the topic of {name}")
        if not messages.possible(alias.generation, alias.version):
            raise WireError(f"version {alias.generation}.{alias.version} cannot be")
        return alias

    def survey(self, payload: bytes, wall: float, now: float) -> SurveyRequest:
        """Read the request of a survey; with a pinned key, only one that is signed.

        Raises:
            WireError: it must be ignored.
        """
        survey = self._trusts["train"].survey(payload, wall, now)
        if self.pinned and not survey.seal_key:
            raise WireError("the survey names no key to seal to")
        return survey

    def read_answer(self, payload: bytes, now: float = 0.0) -> Answer:
        """Read a receipt, a `trouble` or a proof; with a pinned key, of the first two only a signed one.

        Raises:
            WireError: it must be ignored.
        """
        answer = self._trusts["train"].read_answer(payload)
        self._remember("train", now)
        return answer

    def status(self, payload: bytes, now: float = 0.0) -> AggregatorStatus:
        """Read the aggregator's status.

        Raises:
            WireError: it is none.
        """
        status = self._trusts["train"].status(payload)
        self.site_size = status.site_size if status.name else 0
        self._remember("train", now)
        return status

    def site_values(self, payload: bytes) -> tuple[SiteValues, bytes]:
        """Read the values of the site's tensors; with a pinned key, only those that the site's gateway signed.

        Raises:
            WireError: they must be ignored.
        """
        return self._trusts["train"].site_values(payload)

    def _remember(self, channel: Channel, now: float) -> None:
        """Store what was verified, now or with the next update."""
        trust = self._trusts[channel]
        if trust.unwritten:
            self._outbox.pending[f"trust.{channel}"] = trust.packed()
        if trust.urgent(now):
            with suppress(OutboxFull):  # it stays in memory, and is written when there is room
                self._outbox.write_pending()
                self.stored(now)

    def stored(self, now: float) -> None:
        """Pending values have been written, with an update or alone."""
        for trust in self._trusts.values():
            trust.wrote(now)

    # -------------------------------------------------------------------- sending

    def frame(self, message: BaseModel, body: frames.Buffer = b"") -> bytes:
        """A message as it is published: signed if there is a key."""
        if self._key is None:
            return frames.encode(message, body)
        if isinstance(message, Update) and message.entry:
            message = masking.signed_entry(self._key, self._topics.federation, self._name, message)
        if isinstance(message, Statistics | Surveyed):
            message = message.model_copy(update={"sha256": chunks.checksum(body)})
        context = signing.of_device(self._topics.federation, self._name)
        return signing.sign_frame(self._key, signing.DEVICE, context, frames.encode(message), body)

    @property
    def signs(self) -> bool:
        """Whether the device signs what it sends."""
        return self._key is not None

    def signed_as_we_do(self, payload: bytes) -> bool:
        """Whether a status in our name was signed with our own key.

        Raises:
            WireError: it is no frame.
        """
        if self._key is None:
            return False
        _, signature = frames.decode(payload)
        context, head = signing.of_device(self._topics.federation, self._name), signing.head_of(payload, signature)
        return self._key.public.verifies(signature, signing.DEVICE, context, head)

    def to_be_sealed(self, update: Update, announcement: Announcement) -> Update:
        """The header of an update as it is stored: it gets the number that stays when it is sealed again.

        The update is sealed when it is sent (`sealed`), with the newest key. It never leaves the device otherwise.
        """
        return update.model_copy(update={"number": randbits(62) + 1}) if self.seals(announcement) else update

    def key_for_updates(self, announcement: Announcement | None) -> UpdateKey | None:
        """The key that updates are sealed to now; None while none is known."""
        daily = self._trusts["train"].daily
        if daily:
            return UpdateKey(daily, daily=True, confides=True)
        if daily is None or announcement is None or not self.seals(announcement):
            return None
        return UpdateKey(self._announced(announcement), daily=False, confides=announcement.confides)

    def objection(self) -> str | None:
        """Why updates cannot be sealed to the key of the day; None if they can."""
        try:
            sealing.required(hybrid=len(self._trusts["train"].daily or b"") == sealing.HYBRID_KEY)
        except ModuleNotFoundError as error:
            return str(error)
        return None

    def sealed(self, update: Update, body: bytes, to: UpdateKey) -> tuple[Update, bytes]:
        """An update sealed to a key.

        Raises:
            WireError: the key is invalid.
            ModuleNotFoundError: the installed library cannot seal to such a key.
        """
        name = sealing.key_id(to.public) if to.daily else b""
        header = update.model_copy(update={"sealed": sealing.NAME, "key": name})
        if to.confides:
            header, body = sealing.confide(header, body)
        body = sealing.seal(body, to.public, sealing.about(self._topics.federation, self._name, header))
        return header.model_copy(update={"size": len(body), "sha256": chunks.checksum(body)}), body

    def seal_statistics(
        self, message: Statistics, body: bytes, announcement: Announcement | None
    ) -> tuple[Statistics, bytes]:
        """Seal statistics like an update."""
        if announcement is None or not self.seals(announcement):
            return message, body
        message = self.hide(message, announcement).model_copy(update={"sealed": sealing.NAME})
        about = sealing.about(self._topics.federation, self._name, message)
        return message, sealing.seal(body, self._opened_by(announcement), about)

    def answer(self, survey: SurveyRequest, body: bytes) -> bytes:
        """The answer to a survey as it is published, sealed if the request has a key.

        Raises:
            WireError: the key is invalid.
            ModuleNotFoundError: there is one, and the library to seal is not installed.
        """
        message = Surveyed(to=survey.number)
        if survey.seal_key:
            about = sealing.about(self._topics.federation, self._name, message)
            message, body = (
                message.model_copy(update={"sealed": sealing.NAME}),
                sealing.seal(body, survey.seal_key, about),
            )
        return self.frame(message.model_copy(update={"size": len(body)}), body)

    def hide(self, message: sealing.T, announcement: Announcement | None) -> sealing.T:
        """A message whose details are sealed, if the announcement has a key for that and is trusted.

        Before a first announcement they are left out: it is not known yet whether they must be sealed.
        """
        if not self.pinned:
            return message
        if isinstance(message, Hello):
            self.owes_details = announcement is None
        if announcement is None or self._trusts["train"].daily is None:
            return sealing.withheld(message)
        if not (self.seals(announcement) and announcement.hides):
            return message
        try:
            return sealing.hide(self._topics.federation, self._name, message, self._opened_by(announcement))
        except (WireError, ModuleNotFoundError):  # a bad key, or one that the library here cannot use
            return sealing.withheld(message)

    def seals(self, announcement: Announcement) -> bool:
        """Whether messages under this announcement are sealed. The key of an unsigned announcement is not used."""
        return self.pinned and len(announcement.seal_key) == sealing.KEY

    def _opened_by(self, announcement: Announcement) -> bytes:
        """The key that messages are sealed to: that of the day, otherwise the announced one."""
        return self._trusts["train"].daily or self._announced(announcement)

    def _announced(self, announcement: Announcement) -> bytes:
        """The long-term key: the gateway's at a site, otherwise that of the announcement."""
        site = self._trusts["train"].site
        return announcement.seal_key if site is None else site.seal_key
