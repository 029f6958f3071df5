"""The format of files that keep a model on a device: a frame whose body is a snapshot, behind a checksum."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midge.storage.checked import Rotten, content, with_checksum
from midge.wire import frames, lineage
from midge.wire.errors import WireError
from midge.wire.lineage import State

_PAGE = 4096


def encode(form: int, about: Mapping[str, Any], state: State | None) -> bytes:
    """Encode a model as the bytes of its file.

    Args:
        form: the format's number.
        about: further fields of the header.
        state: the model; None leaves the body empty.
    """
    snapshot = b"" if state is None else lineage.encode_snapshot(state)
    return with_checksum(
        frames.encode({"format": form, **about, "sha256": hashlib.sha256(snapshot).digest()}, snapshot)
    )


def read(path: Path, form: int) -> tuple[dict[str, Any], memoryview]:
    """Read a file: its header, and the snapshot, which is not decoded.

    Raises:
        OSError: there is none.
        WireError: it is damaged, or of another format.
    """
    try:
        header, body = frames.decode(content(path.read_bytes()))
    except Rotten as error:
        raise WireError(str(error)) from error
    if header.get("format") != form or header.get("sha256") != hashlib.sha256(body).digest():
        raise WireError("the file is broken, or of another version of Midge")
    return header, body


def on_disk(data: bytes) -> int:
    """The bytes that writing a file costs, in whole pages."""
    return -(-len(data) // _PAGE) * _PAGE
