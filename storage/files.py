"""Files that survive a power cut: written beside their place, synced, renamed over it, and the folder synced.

A rename without the sync of the file may be on the disk before the file's content: after a power cut the name then
leads to an empty file. A rename without the sync of the folder may not be on the disk at all.
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
"""The modes of what only its owner reads. They are the default: most of what is written holds names, deltas, rows or
keys, and the umask of most systems lets every local user read a new file."""
PUBLIC = 0o666
"""The mode of a file that others may read as far as the process's umask lets them, such as a public key."""

_PIECE = 2**20
"""Bytes that are copied at once."""


def atomic_write(path: Path, data: Content, *, mode: int = PRIVATE) -> None:
    """Replace a file. When this returns, the new content survives a power cut; otherwise the file is as it was.

    At any moment the path leads to the old content or to the new one, each of them whole. A path has one writer at a
    time: the temporary name is made from it.

    Args:
        path: the file. Its folder is there.
        data: its content.
        mode: its permissions, from the first moment on; the process's umask narrows `PUBLIC`, as for any new file.

    Raises:
        OSError: it cannot be written, and nothing is left of the attempt.
    """
    atomic_write_all(path.parent, {path.name: data}, mode=mode)


def atomic_write_all(folder: Path, contents: Mapping[str, Content], *, mode: int = PRIVATE) -> None:
    """Replace files of one folder, by name, with one sync of the folder for all: a sync takes milliseconds.

    Each file is replaced as by `atomic_write`. A power cut before this returns may leave some of them new and some old.

    Raises:
        OSError: one cannot be written; it and those after it are as they were.
    """
    temporaries = {folder / f".{name}.tmp": folder / name for name in contents}  # no glob for a name finds these
    try:
        for temporary, data in zip(temporaries, contents.values(), strict=True):
            temporary.unlink(missing_ok=True)  # what a power cut left behind has the mode that it had then
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
        for temporary in temporaries:  # on a full disk they would keep the room that is left
            temporary.unlink(missing_ok=True)
        raise


def copy_file(source: BinaryIO, path: Path, size: int | None = None) -> tuple[int, str]:
    """Copy an open file, or as many bytes of its beginning, to a new one. When this returns, the copy is on the disk.

    The name is not: sync the folder once all of its files are there.

    Returns the copy's size and its SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be written; what was stays there.
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
    """Put a file that is on the disk in the place of another in its folder; when this returns, that survives too.

    Raises:
        OSError: it cannot be done.
    """
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on the disk: the names of new files, renames, and what was removed.

    Raises:
        OSError: it cannot be done.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Make a folder, and those above it, so that a power cut does not take it away with all that is in it.

    Args:
        folder: which; nothing happens if it is there.
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
    """See that a file is there and that only its owner reads it, for a library that makes files by the umask.

    A file of another owner, or on a disk that cannot be written, stays as it is.

    Raises:
        OSError: there is none, and it cannot be made.
    """
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
    narrow(path)


def narrow(path: Path) -> None:
    """Take from others what they may do with a file; nothing happens if it is not there or not ours."""
    with suppress(OSError):
        if path.stat().st_mode & 0o777 != PRIVATE:
            path.chmod(PRIVATE)
