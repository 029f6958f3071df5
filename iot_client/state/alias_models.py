"""Champion and candidate on a device: each kept in a file, so that it is used at once after a restart.

A name is kept with the message that gave it, also if it stands for no version any more: an older message of the broker
must not bring it back.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from midge.iot_client.state import model_file
from midge.iot_client.state.verified_model import VerifiedModel
from midge.storage.files import atomic_write
from midge.wire import lineage, messages
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import ModelAlias
from midge.wire.topics import ALIASES, Alias

log = logging.getLogger("iot_client")

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class AliasModel:
    """What a name stood for last, as far as this device has it."""

    alias: ModelAlias
    state: State | None
    """The values of its version; None if it stands for none."""

    @property
    def model(self) -> VerifiedModel | None:
        """As a model to predict with."""
        if self.state is None:
            return None
        told = self.alias
        return VerifiedModel("serve", told.lineage, told.version, self.state, told.features, told.generation, told.name)


class AliasModels:
    """The models that names stand for, of one device.

    Args:
        path: of the outbox; None keeps them in memory.
        device: its name.
        capabilities: what it says it is.
    """

    def __init__(
        self, path: Path | None, device: str, capabilities: Mapping[str, str | int | float | bool] | None = None
    ) -> None:
        self._path, self._device, self._capabilities = path, device, capabilities or {}
        self._kept: dict[Alias, AliasModel] = {}
        self.lineage: bytes | None = None
        """The lineage that is announced now; None if it is not known. Names of another one count no more."""
        self.written = 0
        """Bytes written to the disk, in whole pages."""

    def _file(self, name: Alias) -> Path | None:
        return None if self._path is None else self._path.with_name(f"{self._path.name}.{name}")

    def restore(self) -> None:
        """Load what was kept before a restart; a damaged file is ignored, and fetched again."""
        for name in ALIASES:
            if (file := self._file(name)) is None:
                continue
            with suppress(OSError):
                try:
                    self._kept[name] = read_alias(file)
                except WireError as error:
                    log.warning("The model in %s is not used: %s.", file, error)

    def kept(self, name: Alias) -> AliasModel | None:
        """What is kept under a name."""
        return self._kept.get(name)

    def old(self, alias: ModelAlias) -> bool:
        """Whether a message is older than the one that is kept: the broker, or whoever has it, brings it back.

        One of a lower order that was issued later is not: then the store was put back.
        """
        kept = self._kept.get(alias.name)
        if kept is None or kept.alias.lineage != alias.lineage:
            return False
        return alias.order < kept.alias.order and alias.issued <= kept.alias.issued

    def held(self, digest: bytes) -> State | None:
        """The values with this digest, if a name has them: a promoted candidate is not fetched again."""
        states = (kept.state for kept in self._kept.values())
        return next((state for state in states if state is not None and state.digest() == digest), None)

    def keep(self, alias: ModelAlias, state: State | None) -> None:
        """Keep what a name stands for now. Blocks while it is written."""
        kept = AliasModel(alias, state)
        before, self._kept[alias.name] = self._kept.get(alias.name), kept
        file = self._file(alias.name)
        # Issued again, with another date, every few hours: flash memory wears.
        if file is None or (before is not None and _same(before, kept)):
            return
        data = packed_alias(kept)
        try:
            atomic_write(file, data)
        except OSError as error:
            log.warning("The model cannot be kept in %s (%s).", file, error.strerror)
        else:
            self.written += model_file.on_disk(data)

    def in_force(self) -> list[AliasModel]:
        """The models that this device serves, the one that it uses first.

        The candidate, if the device is of the share that tries it, and the champion. None if no name stands for a
        version that is here.
        """
        found = []
        for name in reversed(ALIASES):
            kept = self._kept.get(name)
            if kept is None or kept.state is None or self.lineage not in {None, kept.alias.lineage}:
                continue
            if name == "champion" or self.tries(kept.alias):
                found.append(kept)
        return found

    def tries(self, alias: ModelAlias) -> bool:
        """Whether this device is one of those that a name is for."""
        return alias.chooses(self._device, self._capabilities)


def _same(before: AliasModel, now: AliasModel) -> bool:
    dated = {"issued": 0.0, "expires": 0.0, "devices": 0}
    return before.alias.model_copy(update=dated) == now.alias.model_copy(update=dated)


def packed_alias(kept: AliasModel) -> bytes:
    """Encode what a name stands for as the bytes of its file."""
    return model_file.encode(_FORMAT, {"alias": messages.encode_announcement(kept.alias)}, kept.state)


def read_alias(path: Path) -> AliasModel:
    """Read such a file.

    Raises:
        OSError: there is none.
        WireError: it is damaged, or of another format.
    """
    header, body = model_file.read(path, _FORMAT)
    packed = header.get("alias")
    if not isinstance(packed, bytes):
        raise WireError("the file is broken")
    alias, _ = messages.decode_alias(packed)
    state = lineage.decode_snapshot(body) if alias.version else None
    if state is not None and state.digest() != alias.digest:
        raise WireError("the file holds another version than its name stands for")
    return AliasModel(alias, state)
