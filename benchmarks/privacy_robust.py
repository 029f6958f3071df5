"""Rows of `benchmarks.privacy` for liars under secure aggregation: what sums of groups protect from, and what not.

No single update is known, so a liar can put anything into the ring. The rows compare one sum a step, whose length is
bounded, with the median of five groups, which the helper deals at random, with and without holding suspects back.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.privacy_secure import CLIP, LEVELS, LINEAGE, SCALE, Federation, Parties, opened_sum, spread
from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.groups import OpenedGroups
from midge.aggregator.core.masked_sums import MEDIAN
from midge.aggregator.model.group_means import outlying
from midge.aggregator.model.reducer import Contribution, ServerState, make_step
from midge.aggregator.model.unmasking import Opened
from midge.iot_client.training.update_encoder import EncodedUpdate, update_of
from midge.wire import masking
from midge.wire.messages.masking import Masking
from midge.wire.schema import Schema, Vector

FLEET, K_MIN, GROUPS, STEPS = 50, 5, 5, 100
KINDS = ("none", "ring noise", "long noise", "noise", "sign flip", "-10 times", "label flip")


@dataclass(slots=True)
class Found:
    """What a run showed."""

    accuracy: float
    caught: int
    """Liars that were held back at the end."""
    innocent: int
    """Honest devices that were ever held back."""


class Sums:
    """Sums of masked updates, each step of one sum or of groups, as the aggregator's core makes them."""

    def __init__(self, parties: Parties, schema: Schema, wanted: Masking, liars: Mapping[str, str], rule: str) -> None:
        self._parties, self._schema, self._wanted, self._liars, self._rule = parties, schema, wanted, liars, rule
        self.groups = OpenedGroups()
        self.innocent: set[str] = set()
        self._bodies: dict[tuple[str, int], bytes] = {}
        self._opened: dict[int, tuple[Opened, list[str]]] = {}
        self._rng = np.random.default_rng(1)
        self._seq = self._after = self._lsn = self._steps = 0

    def __call__(self, name: str, delta: Vector, version: int) -> Iterator[Vector]:
        if self._rule == "groups, suspects held" and self.groups.suspect(name):
            return
        asked = self._parties.announcement(version)
        made = self._lie(name, delta, asked)
        self._seq += 1
        self._bodies[name, self._seq] = made.body
        tickets = [self._parties.ticket(name, made, self._seq)]
        dealt_together = 1 if self._rule == "one sum" else GROUPS
        while (answers := self._parties.ask(tickets, self._after, dealt_together)) and answers[-1][0].number:
            dealt, body = answers[-1]
            tickets, self._after, self._lsn = [], dealt.number, self._lsn + 1
            opened = opened_sum(dealt, body, self._bodies, self._schema.size)
            self._opened[self._lsn] = opened, [each.device for each in dealt.members]
            if len(self._opened) == dealt_together:
                yield self._step()

    def _step(self) -> Vector:
        size, self._steps = self._schema.size, self._steps + 1
        means = [opened.delta(LINEAGE, size) for opened, _ in self._opened.values()]
        factors = [opened.factor(self._wanted) for opened, _ in self._opened.values()]
        if len(means) == 1:
            self._opened.clear()
            return np.float32(factors[0]) * means[0]
        lsns = tuple(self._opened)
        far = tuple(lsns[place] for place in outlying(means))
        items = [Buffered(name, 0, 1.0, group=lsn) for lsn, (_, names) in self._opened.items() for name in names]
        record = rec.StepRecord(
            self._lsn, self._steps, tuple((lsn, 1.0) for lsn in lsns), 1.0, "delta", "weight",
            scales=tuple(factors), combine="trimmed", trim=MEDIAN, groups=lsns, outliers=far,
        )  # fmt: skip
        self.groups.step(record, items)
        self.innocent |= set(self.groups.suspects) - set(self._liars)
        step = np.zeros(size, np.float32)
        make_step(step, self._schema, record, [Contribution(mean, None, 0) for mean in means], ServerState())
        self._opened.clear()
        return step

    def _lie(self, name: str, delta: Vector, asked: Any) -> EncodedUpdate:
        kind, plan, rng = self._liars.get(name, "none"), self._wanted, self._rng
        noise = rng.standard_normal(delta.size).astype(np.float32)
        noise /= np.float32(np.linalg.norm(noise))
        match kind:
            case "long noise":
                delta, plan = noise * np.float32(1e6), plan.model_copy(update={"clip": 1e9})
            case "noise":
                delta = noise * np.float32(plan.clip)
            case "sign flip":
                delta = -delta
            case "-10 times":
                delta, plan = np.float32(-10) * delta, plan.model_copy(update={"clip": 1e9})
        asked = asked.model_copy(update={"plan": asked.plan.model_copy(update={"masking": plan})})
        made = self._parties.maskers[name].mask(delta, update_of(asked, "", b""), asked, self._schema, None)
        if kind != "ring noise":
            return made
        words = rng.integers(0, 2**plan.ring, delta.size).astype(np.uint32)
        return EncodedUpdate(made.update, masking.pack(words, plan.ring))


def run(source: str, kind: str, liars: int, rule: str, *, steps: int, seed: int) -> Found:
    """One federation with liars of one kind, and one rule."""
    federation = Federation(source, seed, devices=FLEET)
    names = list(federation.data.devices)
    lying = list(np.random.default_rng((seed, 5)).permutation(names)[:liars])
    if kind == "label flip":
        federation.flip_labels(lying)
    size = K_MIN * (GROUPS if rule == "one sum" else 1)
    ring = masking.ring_for(size, LEVELS)
    wanted = Masking(ring=ring, levels=LEVELS, scale=SCALE, clip=CLIP, least=size)
    with tempfile.TemporaryDirectory() as folder:
        parties = Parties(Path(folder), names, wanted, size, federation.schema.size)
        sums = Sums(parties, federation.schema, wanted, {} if kind == "none" else dict.fromkeys(lying, kind), rule)
        try:
            accuracy = federation.run(steps, sums, K_MIN * GROUPS)
        finally:
            parties.helper.close()
    return Found(accuracy, len(set(sums.groups.suspects) & set(lying)), len(sums.innocent))


def rows(source: str, seeds: Sequence[int], kind: str, *, quick: bool) -> list[dict[str, Any]]:
    """One row for each rule, with liars of one kind."""
    made, liars = [], 0 if kind == "none" else 5
    for rule in ("one sum", "groups", "groups, suspects held"):
        found = [run(source, kind, liars, rule, steps=10 if quick else STEPS, seed=seed) for seed in seeds]
        made.append(
            {
                "mode": f"secure, {rule}",
                "data": Path(source).stem,
                "devices": FLEET,
                "k": K_MIN,
                "groups": 1 if rule == "one sum" else GROUPS,
                "liars": liars,
                "kind": kind,
                **spread("accuracy", [each.accuracy for each in found]),
                **spread("caught", [each.caught for each in found]),
                **spread("innocent", [each.innocent for each in found]),
            }
        )
    return made
