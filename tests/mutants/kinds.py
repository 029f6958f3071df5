"""The kinds of test that a bug is shown to. Each says what it saw, or None."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.store.store import StoreError
from midge.iot_client.state.outbox import OutboxError
from tests.aggregator.rig import Rig, rig
from tests.federation.test_exactly_once import run
from tests.federation.test_failpoints import Scene, play_all
from tests.harness.chaos import Chaos, Play
from tests.mutants.bugs import BUGS
from tests.mutants.launch import COMMAND, VARIABLE

Kind = Callable[[str, Path], str | None]
VIRTUAL_SEEDS = 8
A_FEW = (
    ("receipts.before:2", "commit.after:2", "checkpoint.entered:3", "updates.acknowledged:4", "post.acknowledged:9"),
    ("update.handed_over:3", "receipt.heard:2", "outbox.stored:2", "publish.acknowledged:8", "receipt.heard:3"),
)
CHAOS_SECONDS = 15.0


def virtual(name: str, directory: Path) -> str | None:
    """Simulated federations in virtual time, from a few seeds."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name].plant(patch.setattr)
        for seed in range(VIRTUAL_SEEDS):
            try:
                run(directory / str(seed), seed)
            except (AssertionError, OutboxError, StoreError) as error:
                return f"seed {seed}: {_first_line(error)}"
    return None


def damage(name: str, directory: Path) -> str | None:
    """A byte of the newest checkpoint is flipped: a restart must not make another model of it."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name].plant(patch.setattr)
        with rig(directory) as life:
            for seq in range(1, 6):
                life.hear(life.update("a", seq, np.ones(4, np.float32)))
                life.engine.checkpoint(life.core)
            before = life.model.digest()
        newest = max(directory.glob("checkpoint-*"))
        data = bytearray(newest.read_bytes())
        x = data.rindex(np.full(4, 5, np.float32).tobytes())
        data[x] ^= 1
        newest.write_bytes(data)
        try:
            life = Rig(directory)
        except StoreError:
            return None  # refused: no wrong model
        after = life.model.digest()
        life.close()
    return None if before == after else "another model after a restart"


def failpoints(name: str, directory: Path) -> str | None:
    """Real processes, killed where the bug hurts, or else at a few of the failpoints."""
    wishes = BUGS[name].wishes
    patience = 12.0 if wishes else 60.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, name)
        scenes = [Scene(lives, devices=BUGS[name].devices) for lives in ([wishes] if wishes else A_FEW)]
        wrong = asyncio.run(play_all(scenes, directory, COMMAND, patience))
    return _first_line(wrong[0]) if wrong else None


def chaos(name: str, directory: Path) -> str | None:
    """Real processes, broken at random."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, name)
        play = Play(seconds=CHAOS_SECONDS, seed=3, drain=20.0, program=COMMAND)
        outcome = asyncio.run(Chaos(play, directory).run())
    if outcome.good:
        return None
    seen = {"lost": outcome.lost, "doubled": outcome.doubled, "drained": outcome.drained}
    return json.dumps(seen) + (f" {_first_line(outcome.crashes[0])}" if outcome.crashes else "")


KINDS: dict[str, Kind] = {"virtual": virtual, "damage": damage, "failpoints": failpoints, "chaos": chaos}


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0][:150] or type(error).__name__
