"""The updates of the outbox in the form in which they are sent: sealed to the newest key."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from midge.iot_client.connection.identity import Identity
from midge.iot_client.state.memory_outbox import AnyOutbox
from midge.iot_client.state.outbox import OutboxFull
from midge.iot_client.training.update_encoder import EncodedUpdate, cut
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Update

log = logging.getLogger("iot_client")


@dataclass(frozen=True, slots=True)
class SealedForm:
    """An update, sealed."""

    to: bytes
    """The public key."""
    header: Update
    body: bytes


class SealedUpdates:
    """Seals updates when they are sent, and again once the aggregator names another key.

    A form stays until its update is settled, so that an interrupted transfer goes on. To an aggregator that names no
    key of the day, which is of an earlier version, an update is sealed once, in the outbox: its receipt names those
    bytes.

    An update that was never sent may have been trained at another site. The values of that site's tensors, if they are
    not taken here, are cut off.

    Args:
        identity: of the device.
        outbox: holds the updates as they were trained.
        announcement: the newest announcement.
        made: updates that are about to be stored.
    """

    def __init__(
        self,
        identity: Identity,
        outbox: AnyOutbox,
        announcement: Callable[[], Announcement | None],
        made: Mapping[int, EncodedUpdate],
    ) -> None:
        self._identity, self._outbox, self._announcement = identity, outbox, announcement
        self._made = made
        self._forms: dict[int, SealedForm] = {}
        """By the update's number."""
        self._told = ""

    def outgoing(self, update: Update) -> Update | None:
        """The header of an update as it is sent now; None while it must wait for a key to seal it to."""
        foreign = update.site_size not in {0, self._identity.site_size}
        if not update.awaits_seal:
            return self._shortened(update) if foreign and not update.sealed else update
        key = self._identity.key_for_updates(self._announcement())
        if key is None:
            return None
        form = self._forms.get(update.number)
        if form is None or form.to != key.public:
            unstored = next((made.body for made in self._made.values() if made.update.number == update.number), None)
            plain = self._outbox.body(update.seq) if unstored is None else unstored
            header = update
            if foreign:
                plain = plain[: len(plain) - update.site_size]
                header = cut(update, plain, 0)
            try:
                header, body = self._identity.sealed(header, plain, key)
            except (WireError, ModuleNotFoundError) as error:
                if str(error) != self._told:
                    self._told = str(error)
                    log.warning("An update cannot be sealed, and waits: %s", error)
                return None
            form = self._forms[update.number] = SealedForm(key.public, header, body)
            if not key.daily and unstored is None:
                self._outbox.replace(header, body)
        return form.header.model_copy(update={"outbox": update.outbox, "seq": update.seq, "first": update.first})

    def _shortened(self, update: Update) -> Update | None:
        """An update that is not sealed, in the outbox without the values of another site's tensors."""
        if any(made.update.sha256 == update.sha256 for made in self._made.values()):
            return update  # it is about to be stored, and its site has changed this moment
        body = self._outbox.body(update.seq)[: update.size - update.site_size]
        shorter = cut(update, body, 0)
        try:
            self._outbox.replace(shorter, body)
        except OutboxFull:
            return None
        return shorter

    def stored(self, update: Update, body: bytes) -> tuple[Update, bytes]:
        """Header and body of a new update as the outbox keeps it: sealed only if it was sealed once and for all."""
        form = self._forms.get(update.number)
        return (update, body) if form is None or form.header.key else (form.header, form.body)

    def body(self, update: Update) -> bytes:
        """The body of an update whose header is `outgoing`."""
        form = self._forms.get(update.number)
        return self._outbox.body(update.seq) if form is None else form.body

    def piece(self, update: Update, start: int, size: int) -> bytes:
        """A slice of it."""
        form = self._forms.get(update.number)
        return self._outbox.piece(update.seq, start, size) if form is None else form.body[start : start + size]

    def forget(self, through: int) -> None:
        """Drop the forms of settled updates."""
        self._forms = {number: form for number, form in self._forms.items() if form.header.seq > through}

    def renewed(self) -> None:
        """Drop all forms: the outbox has other numbers."""
        self._forms.clear()
