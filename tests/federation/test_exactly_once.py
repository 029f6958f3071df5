"""Every update that a device ever stored is in the model once, whatever the network and the power did meanwhile."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.core import records as rec
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.iot_client.session.session import Work
from midge.wire.messages import Verdict
from tests.aggregator.rig import EVERYTHING_COUNTS
from tests.federation.kernel import Faults, Kernel
from tests.federation.network import Network
from tests.federation.participant import Ledger, Participant
from tests.federation.server import Server

PLACES = 2048
WHOLE, CHUNKED = 16_384, 1024
"""Bytes of a chunk, with which an update goes straight, or is offered first and sent in eight."""
IN_PAIRS = replace(EVERYTHING_COUNTS, release_floor=2)
BUFFERED = Strategy(
    "ledger", constant(), 1.0, buffer_size=3, normalise="none", deadline=3.0, norm_limit=None, bounded=False
)
ROUGH = Faults(loss=0.1, twice=0.1, delay=0.5, crash=0.012, link=0.02)


class Federation:
    """A server and its participants, in a world with faults until it heals."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        strategy: Strategy = EVERYTHING_COUNTS,
        faults: Faults = ROUGH,
        *,
        devices: int = 4,
        chunk: int = WHOLE,
    ) -> None:
        self.kernel = Kernel(seed, faults)
        self.network = Network(self.kernel)
        self.ledger = Ledger()
        parameters = {"x": np.zeros(PLACES, np.float32)}
        self.server = Server(self.kernel, self.network, directory, strategy, parameters, chunk=chunk)
        self.participants = [
            Participant(self.kernel, self.network, f"device-{number}", self.ledger) for number in range(devices)
        ]

    def run(self, seconds: float = 250.0) -> None:
        self.kernel.run(seconds)
        self.kernel.faults = Faults()
        self.ledger.training = False
        assert self.kernel.run(self.kernel.now + 2000, self.drained), f"not drained: {self.waiting}"
        self.kernel.run(self.kernel.now + 10)
        self.check()

    def drained(self) -> bool:
        return self.server.rig is not None and all(
            participant.alive and participant.session.holding == 0 and participant.session.work is not Work.TRAINING
            for participant in self.participants
        )

    @property
    def waiting(self) -> dict[str, int]:
        return {each.name: each.session.holding for each in self.participants}

    def check(self) -> None:
        """The model counts what was stored; each was decided and applied once; and the devices were told so."""
        assert self.server.rig is not None
        x = self.server.rig.model.x
        updates = [record for record in self.server.durable if isinstance(record, rec.UpdateRecord)]
        decided = {(record.device, record.outbox, record.seq): record for record in updates}
        assert len(decided) == len(updates), "an update was decided twice"
        weights: Counter[int] = Counter()
        times: Counter[int] = Counter()
        for record in self.server.durable:
            if isinstance(record, rec.StepRecord):
                for lsn, weight in record.updates:
                    times[lsn] += 1
                    weights[lsn] += weight  # type: ignore[assignment]
        for place, name in self.ledger.stored.items():
            assert name in decided, f"{name} was stored, and is gone"
            assert decided[name].verdict == Verdict.ACCEPTED
            assert times[decided[name].lsn] == 1, f"{name} was applied {times[decided[name].lsn]} times"
            assert x[place] == np.float32(weights[decided[name].lsn])
            assert self.ledger.told.get(name, Verdict.ACCEPTED) is Verdict.ACCEPTED
        assert np.count_nonzero(x) == len(self.ledger.stored)
        assert set(self.ledger.told) <= set(self.ledger.stored.values())

    def close(self) -> None:
        if self.server.rig is not None:
            self.server.rig.close()
        for participant in self.participants:
            participant.outbox.close()


def run(directory: Path, seed: int, *arguments: Any, **named: Any) -> Federation:
    federation = Federation(directory, seed, *arguments, **named)
    try:
        federation.run()
    finally:
        federation.close()
    return federation


@pytest.mark.parametrize("strategy", [EVERYTHING_COUNTS, IN_PAIRS, BUFFERED], ids=["alone", "in pairs", "buffered"])
@pytest.mark.parametrize("chunk", [WHOLE, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_doubled(tmp_path: Path, seed: int, strategy: Strategy, chunk: int) -> None:
    federation = run(tmp_path, seed, strategy, chunk=chunk)
    assert len(federation.ledger.stored) > 10
    assert federation.server.lives > 1
    assert any(participant.lives > 1 for participant in federation.participants)
