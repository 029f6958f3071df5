"""Files that survive a power cut: written under a temporary name, synced, renamed, and the folder synced.

Without the sync of the file, the rename may reach the disk before the content: after a power cut the name leads to an
empty file. Without the sync of the folder, the rename may not be on the disk at all.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from midge.storage.failpoints import failpoint

Content = bytes | bytearray | memoryview
PRIVATE, PRIVATE_FOLDER = 0o600, 0o700
"""Modes that let only the owner read. They are the default: most files hold names, deltas, rows or keys, and the umask
of most systems lets every local user read a new file."""
PUBLIC = 0o666
"""The mode of a file that others may read as far as the umask allows, such as a public key."""

_PIECE = 2**20
"""Bytes copied at a time."""


def atomic_write(path: Path, data: Content, *, mode: int = PRIVATE) -> None:
    """Replace a file. When this returns, the new content survives a power cut; if it raises, the file is unchanged.

    At any moment the path leads to the complete old or the complete new content. A path has one writer at a time: the
    temporary name is derived from it.

    Args:
        path: the file. Its folder must exist.
        data: its content.
        mode: its permissions from the first moment on; the umask narrows `PUBLIC`, as for any new file.

    Raises:
        OSError: it cannot be written; the temporary file is removed.
    """
    atomic_write_all(path.parent, {path.name: data}, mode=mode)


def atomic_write_all(folder: Path, contents: Mapping[str, Content], *, mode: int = PRIVATE) -> None:
    """Replace files of one folder, by name, with a single sync of the folder, since a sync takes milliseconds.

    Each file is replaced as by `atomic_write`. A power cut before this returns may leave some of them new and some old.

    Raises:
        OSError: one cannot be written; it and those after it are unchanged.
    """
    temporaries = {folder / f".{name}.tmp": folder / name for name in contents}  # hidden from any glob for a name
    try:
        for temporary, data in zip(temporaries, contents.values(), strict=True):
            temporary.unlink(missing_ok=True)  # a file left by a power cut keeps its old mode
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
                if mode != PUBLIC:
                    os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        failpoint("file.synced")
        for temporary, path in temporaries.items():
            temporary.replace(path)
        sync_folder(folder)
    except OSError:
        for temporary in temporaries:  # on a full disk they would take up the room that is left
            temporary.unlink(missing_ok=True)
        raise


def replace_secret(path: Path, data: Content) -> None:
    """Replace a private file like `atomic_write`, and overwrite its old content on the disk before this returns.

    What a killed process left is overwritten by the next call. A flash disk may keep old blocks whatever is written.

    Raises:
        OSError: it cannot be written; the file is unchanged, or its old content was not overwritten yet.
    """
    aside = path.with_name(f".{path.name}.old")
    _overwrite(aside, path)
    if path.exists():
        os.link(path, aside)
    atomic_write(path, data)
    failpoint("secret.replaced")
    _overwrite(aside, path)


def _overwrite(aside: Path, path: Path) -> None:
    """Overwrite a file with zeros and remove it, unless it is still the one at `path`: then only its second name."""
    if not aside.exists():
        return
    if not (path.exists() and path.samefile(aside)):
        with aside.open("r+b") as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())
    aside.unlink()
    sync_folder(path.parent)


def copy_file(source: BinaryIO, path: Path, size: int | None = None) -> tuple[int, str]:
    """Copy an open file, or its first `size` bytes, to a new file. When this returns, the copy is on the disk.

    The name is not: sync the folder once all of its files are there.

    Returns the copy's size and its SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be written; a partial copy stays.
    """
    digest, left = hashlib.sha256(), size
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
        source.seek(0)
        while piece := source.read(_PIECE if left is None else min(_PIECE, left)):
            file.write(piece)
            digest.update(piece)
            left = None if left is None else left - len(piece)
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()


def atomic_rename(source: Path, target: Path) -> None:
    """Rename a file on the disk over another one in its folder; when this returns, that survives a power cut.

    Raises:
        OSError: it cannot be renamed.
    """
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk: new files, renames and removals.

    Raises:
        OSError: it cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Make a folder and its parents, and sync them, so that a power cut does not remove them.

    Args:
        folder: the folder; nothing happens if it exists.
        mode: the permissions of those that are made.

    Raises:
        OSError: it cannot be made, or is no folder.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, mode)
    folder.mkdir(mode, exist_ok=True)
    folder.chmod(mode)  # whatever the umask
    sync_folder(folder.parent)


def make_private_file(path: Path) -> None:
    """Make sure that a file exists and that only its owner reads it, for a library that makes files by the umask.

    A file of another owner, or on a read-only disk, keeps its mode.

    Raises:
        OSError: it does not exist and cannot be made.
    """
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
    narrow(path)


def narrow(path: Path) -> None:
    """Remove the permissions of others from a file; nothing happens if it does not exist or is not ours."""
    with suppress(OSError):
        if path.stat().st_mode & 0o777 != PRIVATE:
            path.chmod(PRIVATE)
