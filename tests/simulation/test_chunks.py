"""A simulated device offers a large update and sends it in chunks, as a real one does."""

import numpy as np
import pytest

import midge
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.simulation.participant import Participant
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.messages import Chunk, Update

SIZE = 300_000
PARTS = -(-4 * SIZE // (256 * 1024))


def train(parameters: Parameters, _: TrainingPlan) -> Fit:
    return Fit({"w": parameters["w"] + np.float32(1e-3)}, 10, 1)


def run() -> Simulated:
    return simulate(
        train,
        devices=3,
        profile="phones",
        seconds=20.0,
        initial={"w": np.zeros(SIZE, np.float32)},
        strategy=midge.fedbuff(2, plan=midge.Plan(codec="float32", feedback=False)),
    )


def test_large_updates_are_offered_and_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: an update of any size went in one message, and a fleet of large models cost less than it does."""
    offered: list[tuple[str, int]] = []
    came: dict[tuple[str, int], set[int]] = {}
    offer, chunk = Participant.offer, Server.chunk

    def offers(self: Participant, update: Update) -> None:
        offered.append((self.name, update.seq))
        offer(self, update)

    def comes(self: Server, device: str, each: Chunk) -> None:
        came.setdefault((device, each.seq), set()).add(each.part)
        chunk(self, device, each)

    def whole(_participant: Participant, update: Update) -> None:
        raise AssertionError(f"{update.size} bytes in one message")

    monkeypatch.setattr(Participant, "offer", offers)
    monkeypatch.setattr(Server, "chunk", comes)
    monkeypatch.setattr(Participant, "send", whole)
    found = run()
    accepted = len(found.update_times)
    assert accepted >= 8
    assert sum(parts == set(range(PARTS)) for parts in came.values()) >= accepted
    assert len(set(offered)) >= accepted
    assert found.bytes_up.sum() >= accepted * 4 * SIZE
