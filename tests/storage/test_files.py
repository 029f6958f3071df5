"""What is written is synced, renamed and its folder synced, in that order; and a failed write leaves nothing behind."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.model import export
from midge.aggregator.publish.announcement_signer import load_release_keys, succeed, write_secret
from midge.aggregator.store import pausing
from midge.aggregator.store.device_erasure import ask
from midge.broker.provisioning.bundles import pack, write_bundle, write_private
from midge.iot_client.board.usage_budget import Budget, Costs
from midge.iot_client.state.local_tensors import LocalTensors
from midge.iot_client.state.outbox import Outbox
from midge.storage.files import atomic_write, make_folder
from midge.wire import signing
from midge.wire.schema import Schema, Tensor
from tests.aggregator.rig import rig
from tests.iot_client.test_session import made


class Recording:
    """The calls of the operating system that decide what a power cut leaves, in order and by file name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        fsync, replace = os.fsync, os.replace

        def synced(descriptor: int) -> None:
            self.calls.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
            fsync(descriptor)

        def replaced(source: Path, target: Path) -> None:
            self.calls.append(("rename", f"{source} {target}"))
            replace(source, target)

        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "replace", replaced)

    def check(self, path: Path) -> None:
        """See that the newest content of a file was on the disk before its name, and its name before the end."""
        renames = [place for place, (call, what) in enumerate(self.calls) if call == "rename" and _ends(what, path)]
        assert renames, f"{path.name} was not renamed into its place"
        before, after = self.calls[: renames[-1]], self.calls[renames[-1] + 1 :]
        source = self.calls[renames[-1]][1].removesuffix(f" {path}")
        synced = ("fsync", source) in before
        in_its_place = any(call == "rename" and _ends(what, source) for call, what in before)  # `release.key.new` is
        assert synced or in_its_place, f"{path.name} was renamed before it was synced"
        assert ("fsync", str(path.parent)) in after, f"the folder of {path.name} was not synced"


def _ends(renaming: str, target: Path | str) -> bool:
    return renaming.endswith(f" {target}")


def release_key(folder: Path) -> list[Path]:
    write_secret(folder / "release.key", signing.new_key().pem())
    return [folder / "release.key"]


def release_key_command(folder: Path) -> list[Path]:
    assert main(["release-key", "new", str(folder / "release.key")]) == 0
    return [folder / "release.key", folder / "release.key.pub"]


def succession(folder: Path) -> list[Path]:
    release_key(folder)
    succeed(folder / "release.key", "f", 100.0)
    return [folder / name for name in ("release.key", "release.key.1", "release.key.chain", "release.key.new")]


def recovered_succession(folder: Path) -> list[Path]:
    """The power went after the chain named the new key, before the key had its place."""
    release_key(folder)
    old = (folder / "release.key").read_bytes()
    succeed(folder / "release.key", "f", 100.0)
    atomic_write(folder / "release.key.new", (folder / "release.key").read_bytes())
    atomic_write(folder / "release.key", old)
    assert len(load_release_keys(folder / "release.key").chain) == 1
    return [folder / "release.key"]


def bundle(folder: Path) -> list[Path]:
    fields = {"federation": "f", "broker": "mqtt://h", "name": "a"}
    write_bundle(folder / "a", "device.toml", fields, {"device.key": b"key"}, why="a test")
    return [folder / "a" / "device.key", folder / "a" / "device.toml", pack(folder / "a")]


def private_file(folder: Path) -> list[Path]:
    write_private(folder / "ca.key", b"secret")
    return [folder / "ca.key"]


def budget(folder: Path) -> list[Path]:
    Budget(folder / "o.usage.json", Costs()).save()
    return [folder / "o.usage.json"]


def own_tensors(folder: Path) -> list[Path]:
    personal = LocalTensors(folder / "o.local.npz", {"head": np.ones(2, np.float32)})
    schema = Schema((Tensor("head", (2,), "float32", "local"),))
    personal.keep(personal.join({}, schema), schema, 0.0)
    return [folder / "o.local.npz"]


def checkpoint(folder: Path) -> list[Path]:
    with rig(folder) as life:
        life.engine.checkpoint(life.core)
    return list(folder.glob("checkpoint-*"))


def residual(folder: Path) -> list[Path]:
    with Outbox(folder / "o") as outbox:
        outbox.store(made(outbox=outbox.identity, seq=1), b"body", b"left")
    return [folder / "o.residual-1"]


def pause(folder: Path) -> list[Path]:
    pausing.pause(folder, "why")
    return [folder / "paused"]


def withdrawal(folder: Path) -> list[Path]:
    return [ask(folder, "pump-1")]


def model(folder: Path) -> list[Path]:
    export.write_model(folder / "model.safetensors", {}, {})
    return [folder / "model.safetensors"]


@pytest.mark.parametrize(
    "write",
    [
        release_key,
        release_key_command,
        succession,
        recovered_succession,
        private_file,
        bundle,
        budget,
        own_tensors,
        checkpoint,
        residual,
        pause,
        withdrawal,
        model,
    ],
)
def test_each_durable_file_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], list[Path]]
) -> None:
    recording = Recording(monkeypatch)
    for path in write(tmp_path):
        recording.check(path)


def test_a_private_file_is_private_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    (tmp_path / ".k.tmp").write_bytes(b"left behind, and readable by all")
    (tmp_path / ".k.tmp").chmod(0o644)
    atomic_write(tmp_path / "k", b"secret", mode=0o600)
    assert [stat.S_IMODE(mode) for mode in modes if stat.S_ISREG(mode)] == [0o600]
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "k"
    atomic_write(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["k"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / ".k.tmp").symlink_to(tmp_path / "other")
    atomic_write(tmp_path / "k", b"new")
    assert (tmp_path / "other").read_bytes() == b"other"


def test_each_folder_that_is_made_is_synced_into_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(monkeypatch)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert recording.calls == [("fsync", str(tmp_path)), ("fsync", str(tmp_path / "a"))]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        make_folder(tmp_path / "file")
