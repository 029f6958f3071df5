"""Bundles: everything that one participant needs to reach its federation, in a portable folder.

A bundle is a TOML file that names the broker, the federation and the participant, with the files for TLS beside it;
their names are relative to it. Written by `broker.provisioning.create_fleet`, read by the commands for `--config`.
"""

import io
import json
import tarfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from midge.broker.mqtt.endpoint import Endpoint, Tls
from midge.storage.files import PRIVATE, atomic_write, atomic_write_all, make_folder
from midge.wire.topics import DEFAULT_ROOT, Topics, check_name


class BundleError(Exception):
    """A bundle cannot be used; the message says why."""


class _Fields(BaseModel):
    """Fields of a bundle's TOML file."""

    model_config = ConfigDict(extra="forbid")

    federation: str
    broker: str
    name: str
    root: str = DEFAULT_ROOT
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    user: str | None = None
    password_file: str | None = None
    release_key: str | None = None
    release_private_key: str | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """One participant's place in a federation."""

    topics: Topics
    name: str
    endpoint: Endpoint
    release_key: Path | None = None
    """The Ed25519 public key, PEM, whose signature a device requires."""
    release_private_key: Path | None = None
    """The private release key; at the aggregator only."""


def read_bundle(path: Path, *, broker: str | None = None) -> Bundle:
    """Read a bundle by its TOML file, or by its folder if that has only one.

    Args:
        path: the file, such as `fleet/devices/dev0001/device.toml`.
        broker: an address that replaces the bundle's; without TLS the bundle's certificate is not used.

    Raises:
        BundleError: it is none, or a file that it names does not exist.
    """
    path = bundle_file(path)
    try:
        fields = _Fields.model_validate(tomllib.loads(path.read_text()))
        topics = Topics(fields.federation, fields.root)
        check_name(fields.name)
        url = broker or fields.broker
        secure = Endpoint.parse(url).tls is not None
        tls = Tls(_beside(path, fields.cafile), _beside(path, fields.certfile), _beside(path, fields.keyfile))
        secret = _beside(path, fields.password_file)
        password = None if secret is None else secret.read_text().strip()
        endpoint = Endpoint.parse(url, user=fields.user, password=password, tls=tls if secure else None)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path} is no bundle of Midge's: {field}: {first['msg'].lower()}.") from error
    except ValueError as error:  # includes TOML's errors
        raise BundleError(f"{path} is no bundle of Midge's: {error}") from error
    public, private = (_beside(path, name) for name in (fields.release_key, fields.release_private_key))
    return Bundle(topics, fields.name, endpoint, public, private)


def bundle_file(path: Path) -> Path:
    """The TOML file of a bundle that is given by this file, or by its folder.

    Raises:
        BundleError: the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.toml"))
    if len(found) != 1:
        raise BundleError(f"{path} holds {len(found)} TOML files: name the one that is meant.")
    return found[0]


def _beside(path: Path, name: str | None) -> Path | None:
    if name is None:
        return None
    file = path.parent / name
    if not file.is_file():
        raise BundleError(f"{path} names {name}, which is not beside it: carry the whole folder.")
    return file


def write_bundle(
    folder: Path, file: str, fields: Mapping[str, str | None], files: Mapping[str, bytes], *, why: str
) -> None:
    """Write a bundle's TOML file and the files that it names, readable by their owner only.

    Args:
        folder: the bundle's folder; it is made.
        file: the TOML file's name.
        fields: its content; None is left out.
        files: contents of the files beside it.
        why: a comment at its head.
    """
    _Fields.model_validate(fields)
    make_private(folder)
    atomic_write_all(folder, {**files, file: as_toml(fields, why).encode()}, mode=PRIVATE)


def as_toml(fields: Mapping[str, str | None], why: str) -> str:
    """A bundle's file as text; `why` is a comment at its head. JSON's strings are TOML's."""
    lines = [f"# {why}", *(f"{name} = {json.dumps(value)}" for name, value in fields.items() if value is not None)]
    return "\n".join([*lines, ""])


def pack(folder: Path) -> Path:
    """Make a tar archive of a bundle, beside its folder, to carry to the device."""
    path = folder.with_name(f"{folder.name}.tar")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted(folder.iterdir()):
            content = file.read_bytes()
            member = tarfile.TarInfo(f"{folder.name}/{file.name}")
            member.size, member.mode, member.mtime = len(content), PRIVATE, int(file.stat().st_mtime)
            archive.addfile(member, io.BytesIO(content))
    write_private(path, packed.getvalue())
    return path


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter."""
    make_folder(folder)
    folder.chmod(0o700)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, atomically, because a broker may read it at any moment.

    When this returns it survives a power cut: a release key or an authority's key cannot be made again.
    """
    atomic_write(path, content, mode=PRIVATE)
