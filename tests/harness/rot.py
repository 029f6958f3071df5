"""A nemesis for files: a federation of real processes that are killed, and whose files rot before they start again.

At each kill several faults are tried on copies of the process's files, each opened as its next start would. The last of
them then befalls the files themselves, if it changes nothing or is refused: what is refused, the operator puts back. A
fault that is refused is salvaged too, and the model then lacks exactly what was said. At the end the books balance.

    python -m tests.harness.rot --seconds 60 --seed 1
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from midge.aggregator.store import consistency
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.salvage import salvage
from midge.broker.local.local_broker import local_broker
from tests.harness import opened
from tests.harness.faults import Fault, draw, strike
from tests.harness.ledger import Books, audit
from tests.harness.opened import Opened
from tests.harness.processes import Actor, aggregator, fleet

DEVICES, IN_PROCESS = 4, 2
PACE = 0.2
"""Seconds that a training takes."""
TRIES = 8
"""Faults that are tried at each kill."""
FEWEST = 10
"""Faults that are tried however short the play is."""
DRAIN = 120.0
"""Seconds within which everything must be settled in the end."""
_SPARED = (".lock", "-shm", ".jsonl", ".tmp")
_SPARED_NAMES = ("lock", "ballast")
"""What nothing reads, SQLite makes again at each start, or is the ledger's."""

Kind = Literal["same", "mended", "refused", "silent"]


@dataclass(slots=True)
class Outcome:
    """What became of the faults."""

    seed: int
    broker: str = ""
    kills: int = 0
    tried: int = 0
    live: int = 0
    """Of these, how many befell the files of a process that then started."""
    same: int = 0
    mended: int = 0
    refused: int = 0
    silent: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    drained: bool = False
    wrong: list[str] = field(default_factory=list)
    """Faults that changed something without a word or with a wrong count, and ends of processes without a cause."""

    @property
    def good(self) -> bool:
        return self.drained and not (self.silent or self.lost or self.doubled or self.wrong)


class Rot:
    """One play, in a directory of its own."""

    def __init__(self, seconds: float, seed: int, directory: Path) -> None:
        self._seconds, self._directory, self._random = seconds, directory, Random(seed)
        self._books = Books(
            devices=DEVICES, updates=max(20, int(seconds / PACE)), federation="rot", checkpoint=60, pause=100
        )
        self._older: dict[str, Path] = {}
        """A copy of each process's files from one of its earlier ends."""
        self._kinds: Counter[str] = Counter()
        self._untold = 0
        self.outcome = Outcome(seed)

    async def run(self) -> Outcome:
        """Play it to its end.

        Raises:
            BrokerUnreachable: there is none to be had.
        """
        async with local_broker("auto", directory=self._directory) as broker:
            self.outcome.broker = broker.kind
            url = f"mqtt://127.0.0.1:{broker.endpoint.port}"
            until = time.time() + self._seconds
            server = aggregator(self._books, url, self._directory)
            options = ("--until", str(until), "--pace", str(PACE), "--patience", "0.5")
            fleets = [
                fleet(self._books, url, self._directory, range(first, first + IN_PROCESS), *options)
                for first in range(0, DEVICES, IN_PROCESS)
            ]
            try:
                for actor in (server, *fleets):
                    await actor.start()
                while time.time() < until or self.outcome.tried < FEWEST:
                    await asyncio.sleep(self._random.uniform(0.5, 2.5))
                    await self._befall(self._random.choice([server, server, *fleets]), server)
                await self._drain(server, fleets)
            finally:
                for actor in (server, *fleets):
                    await actor.kill()
        if self.outcome.drained:
            found = await asyncio.to_thread(audit, self._directory / "model.safetensors", self._directory / "devices")
            self.outcome.accepted, self.outcome.lost, self.outcome.doubled = found[:3]
        self.outcome.kinds = dict(self._kinds.most_common())
        return self.outcome

    async def _befall(self, actor: Actor, server: Actor) -> None:
        """Kill a process, have its files rot, and start it again."""
        if not actor.running:
            code = await actor.ended()
            if code == 0:
                return
            self.outcome.wrong.append(f"{actor.name} ended with {code}: {actor.tail(4)}")
        await actor.kill()
        self.outcome.kills += 1
        folder = self._directory / ("store" if actor is server else "devices")
        if folder.is_dir():
            await asyncio.to_thread(self._try, actor, folder, server=actor is server)
        await actor.start()

    def _try(self, actor: Actor, folder: Path, *, server: bool) -> None:
        scratch = self._directory / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        names = [] if server else [f"device-{number}.outbox" for number in self._numbers(actor)]
        good = _copied(folder, scratch / "good", names)
        try:
            right = self._looked(_copied(good, scratch / "right", names), names)
            if any(each.refusal for each in right.values()):
                self.outcome.wrong.append(f"{actor.name} is refused without a fault: {right}"[:600])
                return
            # Committed when the kill came, and not noted yet: of these no device was told.
            self._untold = 0 if names else _noted(scratch / "right") - _noted(good)
            last = None
            for _ in range(TRIES):
                last = self._tried(good, scratch, names, right, self._older.get(actor.name)) or last
            if last is not None:
                fault, harmless = last
                if harmless:
                    strike(fault, folder, self._older.get(actor.name))
                self.outcome.live += 1
            if actor.name not in self._older or self._random.random() < 0.3:
                kept = self._directory / f"older-{actor.name}"
                shutil.rmtree(kept, ignore_errors=True)
                self._older[actor.name] = _copied(good, kept, names)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _numbers(actor: Actor) -> range:
        first, last = map(int, actor.name.removeprefix("devices ").split("-"))
        return range(first, last + 1)

    def _tried(
        self, good: Path, scratch: Path, names: list[str], right: dict[str, Opened], older: Path | None
    ) -> tuple[Fault, bool] | None:
        """One fault on a copy, and whether nothing is lost by it."""
        bad = _copied(good, scratch / "bad", names)
        fault = draw(self._random, bad, sorted(path.name for path in bad.iterdir()), older)
        if fault is None:
            return None
        strike(fault, bad, older)
        rotten = _copied(bad, scratch / "rotten", names)  # opening changes it, and it may be salvaged
        try:
            found = self._looked(bad, names)
            kind, why = _compared(right, found)
            harmless = all(found[name].content == wanted.content for name, wanted in right.items())
            if kind == "refused" and not names:
                why = self._salvaged(rotten, scratch / "salvaged", right[""], found[""])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no sentence
            kind, why, harmless = "silent", f"{type(error).__name__}: {error}", False
        self.outcome.tried += 1
        self._kinds[f"{'device' if names else 'store'} {fault.kind} {kind}"] += 1
        setattr(self.outcome, kind, getattr(self.outcome, kind) + 1)
        if why:
            self.outcome.wrong.append(f"{fault}: {why}"[:600])
        return fault, harmless

    def _looked(self, folder: Path, names: list[str]) -> dict[str, Opened]:
        if not names:
            return {"": opened.store(self._books, folder)}
        return {name: opened.outbox(folder / name) for name in names}

    def _salvaged(self, rotten: Path, target: Path, right: Opened, found: Opened) -> str:
        """What is wrong with what was said of the loss; empty if nothing is."""
        shutil.rmtree(target, ignore_errors=True)
        try:
            loss = salvage(rotten, target, "operator").loss
        except StoreError:
            return ""  # nothing can be made of it, and that is said
        made = opened.store(self._books, target)
        if made.refusal:
            return f"what was salvaged is refused: {made.refusal}"
        missing = right.applied - made.applied
        if not missing - self._untold <= loss.updates <= (missing if loss.exact else loss.updates):
            return f"a salvage that lacks {missing} updates says {loss.updates}"
        # More may be at stake than is lost in the end: a salvage reads what SQLite does not believe.
        if found.counts and max(found.counts) < missing - self._untold:
            return f"{missing} updates are lost, and it says {found.counts}: {found.refusal}"
        return ""

    async def _drain(self, server: Actor, fleets: list[Actor]) -> None:
        """Wait until all devices have settled everything, then end the aggregator in order."""
        try:
            async with asyncio.timeout(DRAIN):
                for actor in fleets:
                    while (code := await actor.ended()) != 0:
                        self.outcome.wrong.append(f"{actor.name} ended with {code}: {actor.tail(4)}")
                        await actor.start()
                server.send(signal.SIGTERM)
                while (code := await server.ended()) != 0:
                    if code != -signal.SIGTERM:  # a start was just under way, and nothing took the signal yet
                        self.outcome.wrong.append(f"{server.name} ended with {code}: {server.tail(4)}")
                    before = len(server.events("connected"))
                    await server.start()
                    while len(server.events("connected")) == before:  # noqa: ASYNC110 - another process writes them
                        await asyncio.sleep(0.05)
                    server.send(signal.SIGTERM)
                self.outcome.drained = True
        except TimeoutError:
            running = [actor for actor in (server, *fleets) if actor.running]
            self.outcome.wrong += [f"{actor.name} does not end: {actor.tail(3)}"[:900] for actor in running]


def _copied(folder: Path, to: Path, names: list[str]) -> Path:
    """The files of a process, but for those that hold nothing."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for path in folder.iterdir():
        ours = not names or any(path.name.startswith(name) for name in names)
        if path.is_file() and ours and path.name not in _SPARED_NAMES and not path.name.endswith(_SPARED):
            shutil.copyfile(path, to / path.name)
    return to


def _noted(folder: Path) -> int:
    """Updates that a store's witness speaks of."""
    note, _ = consistency.noted(folder)
    return 0 if note is None else note.updates


def _compared(right: dict[str, Opened], found: dict[str, Opened]) -> tuple[Kind, str]:
    """What became of a fault, and what is wrong about that."""
    kinds: list[Kind] = []
    for name, wanted in right.items():
        got = found[name]
        if got.refusal:
            kinds.append("refused")
            continue
        for offer, data in got.offers.items():
            if wanted.offers.get(offer, data) != data:
                return "silent", f"frame {offer} is not what was published"
        if got.content == wanted.content:
            kinds.append("mended" if len(got.said) > len(wanted.said) else "same")
            continue
        if not name:
            return "silent", f"the store is another one: {_different(wanted.content, got.content)}; {got.said}"
        if wanted.unused and got.unused:
            kinds.append("same")
            continue
        lost = got.lost_of(wanted)
        if lost is None or not got.said or (lost and lost not in got.counts):
            return "silent", f"{name} is another one; {lost} updates are lost: {got.said}"
        kinds.append("mended")
    worst = max(kinds, key=("same", "mended", "refused", "silent").index)
    return worst, ""


def _different(one: Any, other: Any) -> str:
    """In what the contents of two stores differ."""
    (model, core), (another, found) = one, other
    parts = [f"{name}: {core[name]!r} and {found.get(name)!r}" for name in core if core[name] != found.get(name)]
    return "; ".join([*(["the model"] if model != another else []), *parts])


def main() -> int:
    """Read the options, play, and say how it ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.harness.rot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midge-rot-") as directory:
        outcome = asyncio.run(_play(args.seconds, args.seed, Path(directory)))
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 0 if outcome.good else 1


async def _play(seconds: float, seed: int, directory: Path) -> Outcome:
    return await Rot(seconds, seed, directory).run()


if __name__ == "__main__":
    sys.exit(main())
