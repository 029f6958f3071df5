"""Verification of everything that a device keeps on its disk, without changes, also beside a running device."""

import json
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from midge.iot_client.board.usage_budget import read_usage
from midge.iot_client.data.samples_file import examine_samples
from midge.iot_client.state import prediction
from midge.iot_client.state.alias_models import read_alias
from midge.iot_client.state.local_tensors import read_tensors
from midge.iot_client.state.model_keeper import read_kept
from midge.iot_client.state.outbox_files import OutboxFiles, examine, residual_path, strangers
from midge.iot_client.state.outbox_state import FORMAT, Strangers
from midge.iot_client.state.site_tensors import read_site
from midge.storage.checked import Rotten
from midge.wire.errors import WireError
from midge.wire.topics import ALIASES


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """One file, or several that belong together."""

    name: str
    checked: str
    """What was checked, as text."""
    damage: str = ""
    """What is damaged, as text; empty if nothing."""
    at_stake: int = 0
    """Waiting updates in it that are damaged or lost."""


def verify(path: Path) -> list[CheckedFile]:
    """Verify an outbox and the files beside it; the outbox itself comes first.

    Raises:
        OSError: a file exists and cannot be read.
        OutboxError: the same.
    """
    found = examine(path)
    parts = [_outbox(found), _witness(found), _residual(found)]
    beside: dict[str, Callable[[Path], object]] = {
        "local.npz": read_tensors,
        "site": read_site,
        "usage.json": read_usage,
        "model": prediction.read,
        "kept": read_kept,
        **dict.fromkeys(ALIASES, read_alias),
        "samples": examine_samples,
    }
    for ending, read in beside.items():
        file = path.with_name(f"{path.name}.{ending}")
        if file.exists():
            parts.append(_part(ending, file, read))
    return parts


def _part(name: str, file: Path, read: Callable[[Path], object]) -> CheckedFile:
    try:
        read(file)
    except (Rotten, WireError, sqlite3.Error, json.JSONDecodeError) as error:
        return CheckedFile(name, "", f"{error}; it is as none, and made again")
    return CheckedFile(name, f"{file.stat().st_size} bytes checked")


def _outbox(found: OutboxFiles) -> CheckedFile:
    if found.format not in (1, FORMAT):
        return CheckedFile("outbox", "", f"its format, {found.format}, is that of a newer Midge")
    try:
        known, damage = found.agreed, found.damage
    except Strangers:
        assert found.database is not None and found.witness is not None
        why = str(strangers(found.path, found.database, found.witness))
        return CheckedFile("outbox", "", why, found.database.waiting + found.witness.waiting)
    if not damage or known is None:
        return CheckedFile("outbox", f"{len(found.whole)} updates checked", damage)
    return CheckedFile("outbox", "", damage, len(found.lost(known)))


def _witness(found: OutboxFiles) -> CheckedFile:
    gone = found.witness is None and found.format == FORMAT and found.there
    if gone or found.doubtful:
        return CheckedFile("witness", "", "it is gone or damaged; it is made again at the next start")
    return CheckedFile("witness", "checked" if found.witness else "none yet")


def _residual(found: OutboxFiles) -> CheckedFile:
    state = found.database or found.witness
    if state is None or not state.residual:
        return CheckedFile("residual", "none")
    try:
        data = residual_path(found.path, state.residual).read_bytes()
    except OSError as error:
        return CheckedFile("residual", "", f"it cannot be read ({error.strerror}); it is as none")
    if zlib.crc32(data) != state.residual_crc:
        return CheckedFile("residual", "", "it is not what was written; it is as none")
    return CheckedFile("residual", f"{len(data)} bytes checked")
