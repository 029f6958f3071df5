"""Real processes, killed at every failpoint, the first and the second time there: nothing is lost or doubled."""

import asyncio
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from midge.broker.local.local_broker import local_broker
from midge.iot_client.state.outbox import Outbox
from midge.storage.failpoints import POINTS
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import PROGRAM, aggregator, fleet

AT_ONCE = 3
PATIENCE = 600.0
"""Seconds of one scene: the last resort where one hangs."""
DEVICES = 2
UPDATES = 60
LIVES = 7
"""How many times one federation's process is killed: many in turn, for most of the time goes into starting them."""
DEVICE_POINTS = tuple(POINTS)[tuple(POINTS).index("model.fetched") :]
ONCE = ("store.created", "recovery.replayed", "registered.stored", "alias.handed_over")
"""Points that a life comes to once, or once a second."""
MORE_HITS = {"post.acknowledged": (5, 9, 17, 33), "publish.acknowledged": (3, 5, 8), "commit.within": (11,)}
SITES = ("site.stored", "site.followed", "site.summed")
"""Of gateways (`tests/gateway/test_kills.py`)."""
STANDBY = (
    *("copy.sending", "copy.confirmed", "copy.syncing", "copy.synced", "copy.applied", "copy.settled"),
    "standby.promoted",
)
"""Of an aggregator with a standby (`tests/federation/test_standby.py`)."""
ELSEWHERE = {
    "history.within",
    "sum.opened",
    "sum.combined",
    "helper.writing",
    "helper.written",
    "helper.answered",
    "secret.replaced",
    *SITES,
    *STANDBY,
}
"""Of the history, which is rarely written (`tests/aggregator/test_history.py`), of masks, which a ledger does not use
(`tests/masking/test_kills.py`), and of keys of a day (`tests/security/test_forward_secrecy.py`)."""
CHUNKED = ("update.offered", "chunks.handed_over")
CLEARING = ("commit.after:25", "frame.cleared:1", "frame.cleared:2", "frame.withdrawn:1", "frame.withdrawn:2")
"""Frames that are no longer listed are taken back at the next connection; so the first life makes some to take back."""
LEAVING = ("residual.written:1", "residual.written:2", "outbox.storing:3", "outbox.stored:4", "residual.written:5")
"""Of devices with error feedback, where an update leaves something for the next one."""
BODIES = ("commit.bodies:1", "commit.bodies:2", "commit.bodies:3")
"""Of updates that are large enough to lie beside the journal."""
RENEWING = (("outbox.renewing:1", "outbox.renewing:2", "outbox.renewed:1"), ("outbox.renewed:1", "outbox.renewed:1"))
"""An outbox has a new identity once; the second device's time is the second one."""


@dataclass(frozen=True)
class Scene:
    """What kills which process: one failpoint for each of its lives, and then it is let live."""

    lives: tuple[str, ...]
    pad: int = 0
    codec: str = "float32"
    chunk: int = 1024
    devices: int = DEVICES
    put_back: bool = False
    """Whether the devices' outboxes are replaced by old copies after their first life."""

    @property
    def of_device(self) -> bool:
        return self.lives[-1].partition(":")[0] in DEVICE_POINTS

    @property
    def updates(self) -> int:
        """What each device makes to the end."""
        return UPDATES // 2 if self.put_back else UPDATES


def scenes() -> list[Scene]:
    apart = {
        *CHUNKED,
        *ELSEWHERE,
        "commit.bodies",
        "residual.written",
        *(wish.partition(":")[0] for wishes in (CLEARING[1:], *RENEWING) for wish in wishes),
    }
    found = [Scene(tuple(f"{point}:{hit}" for point in CHUNKED for hit in (1, 2)), pad=600)]
    found.append(Scene(CLEARING))
    found.append(Scene(BODIES, pad=9000, chunk=2**16))
    found.append(Scene(LEAVING, pad=600, codec="topk:0.01|float32"))
    found += [Scene(("receipt.followed:9", *wishes), put_back=True) for wishes in RENEWING]
    wishes = [
        (point, f"{point}:{hit}")
        for point in POINTS
        if point not in apart
        for hit in ((1,) if point in ONCE else (1, 2, *MORE_HITS.get(point, ())))
    ]
    for of_device in (False, True):
        mine = [wish for point, wish in wishes if (point in DEVICE_POINTS) is of_device]
        found += [Scene(tuple(mine[start : start + LIVES])) for start in range(0, len(mine), LIVES)]
    return found


SCENES = scenes()


async def play(
    scene: Scene, url: str, directory: Path, program: Sequence[str] = PROGRAM, patience: float = PATIENCE
) -> Audit:
    """Run the scene to its end; what the books say then."""
    directory.mkdir()  # noqa: ASYNC240 - at once
    books = Books(
        devices=scene.devices,
        updates=UPDATES,
        pad=scene.pad,
        codec=scene.codec,
        federation=directory.name,
        chunk=scene.chunk,
        checkpoint=12,
    )
    server = aggregator(books, url, directory, program)
    devices = fleet(books, url, directory, range(scene.devices), program=program)
    copies = _copies(directory) if scene.put_back else None
    victim, other = (devices, server) if scene.of_device else (server, devices)
    try:
        async with asyncio.timeout(patience):
            await other.start()
            for number, wish in enumerate(scene.lives):
                if number == 1 and copies is not None:
                    _put_back(copies, directory / "devices")
                    skip = str(UPDATES - scene.updates)
                    devices = victim = fleet(
                        books, url, directory, range(scene.devices), "--skip", skip, program=program
                    )
                await victim.start(wish)
                code = await victim.ended()
                assert code == -signal.SIGKILL, f"it never came to {wish}, and ended with {code}: {victim.tail()}"
            await victim.start()
            assert await devices.ended() == 0, devices.tail()
            server.send(signal.SIGTERM)
            assert await server.ended() == 0, server.tail()
    finally:
        await server.kill()
        await devices.kill()
    return audit(directory / "model.safetensors", directory / "devices")


def _copies(directory: Path) -> Path:
    """Outboxes as they are when they are new."""
    (directory / "devices").mkdir()
    for number in range(DEVICES):
        with Outbox(directory / "devices" / f"device-{number}.outbox"):
            pass
    copies: Path = shutil.copytree(directory / "devices", directory / "copies")
    return copies


def _put_back(copies: Path, place: Path) -> None:
    for path in place.glob("*.outbox*"):
        path.unlink()
    shutil.copytree(copies, place, dirs_exist_ok=True)


async def play_all(
    scenes: Sequence[Scene], directory: Path, program: Sequence[str] = PROGRAM, patience: float = PATIENCE
) -> list[str]:
    """Play the scenes, some at once, each as a federation of its own; what went wrong in words."""
    wrong: list[str] = []
    turns = asyncio.Semaphore(AT_ONCE)
    async with local_broker("auto", directory=directory) as broker:
        url = str(broker.endpoint)

        async def one(number: int, scene: Scene) -> None:
            async with turns:
                try:
                    found = await play(scene, url, directory / f"scene-{number}", program, patience)
                except (AssertionError, TimeoutError, ValueError) as error:
                    wrong.append(f"{scene.lives}: {type(error).__name__} {error}")
                    return
            if found.lost or found.doubled or found.accepted < scene.devices * scene.updates:
                wrong.append(f"{scene.lives}: {found}")

        async with asyncio.TaskGroup() as tasks:
            for number, scene in enumerate(scenes):
                tasks.create_task(one(number, scene))
    return wrong


def test_every_failpoint_has_its_scene() -> None:
    assert {wish.partition(":")[0] for scene in SCENES for wish in scene.lives} == set(POINTS) - ELSEWHERE


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("of_device", [False, True], ids=["aggregator", "device"])
async def test_killed_at_every_failpoint(tmp_path: Path, of_device: bool) -> None:
    wrong = await play_all([scene for scene in SCENES if scene.of_device is of_device], tmp_path)
    assert not wrong, "\n".join(wrong)
