"""What befalls a simulated federation is what would befall one in production: it goes on from what it has kept."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import midge
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.simulation.incidents import Crash, Incidents, Outage
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.simulate import CALM, simulate

START = {"w": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}
NAMES = [f"device-{number}" for number in range(4)]


def towards(target: float, *tensors: str) -> Any:
    """A trainer that goes half of the way."""

    def train(parameters: Parameters, _: TrainingPlan) -> Fit:
        moved = {name: values + np.float32(0.5) * (np.float32(target) - values) for name, values in parameters.items()}
        return Fit(moved, 10, 5, tensors=tensors or None)

    return train


def run(incidents: Incidents | None, strategy: midge.Strategy | None = None, **others: Any) -> Simulated:
    arguments: dict[str, Any] = {
        "strategy": strategy or midge.balanced(2),
        "seconds": 30.0,
        "initial": START,
        "jitter": 0.2,
        "incidents": incidents,
        **others,
    }
    return simulate([towards(1.0)] * len(NAMES), **arguments)


def updates_between(found: Simulated, start: float, end: float) -> int:
    return int(np.sum((found.update_times > start) & (found.update_times < end)))


def far(parameters: Mapping[str, Any]) -> float:
    return max(float(np.abs(values - 1).max()) for values in parameters.values())


@pytest.mark.parametrize("strategy", [midge.balanced(2), midge.fedasync(), midge.balanced(2, combine="centred")])
@pytest.mark.parametrize("clock", [0.0, 10.0, 2_592_000.0])
@pytest.mark.parametrize("actions", [0, 3])
def test_an_aggregator_goes_on_from_its_journal(strategy: midge.Strategy, clock: float, actions: int) -> None:
    """The simulation itself sees that a restart changes nothing, and that nothing is accepted twice."""
    crashes = [Crash(10.0, 13.0, clock, actions), Crash(20.0, 20.1, clock, clean=actions == 0, actions=actions)]
    found = run(Incidents(crashes, checkpoint=7), strategy)
    assert updates_between(found, 10.5, 13.0) == 0
    assert updates_between(found, 13.0, 16.0) > 0
    assert updates_between(found, 20.1, 23.0) > 0
    assert far(found.parameters) < 0.05


def test_nothing_is_accepted_during_a_pause_and_much_behind_it() -> None:
    found = run(Incidents(pauses=[(10.0, 15.0)]))
    assert updates_between(found, 10.0, 15.0) == 0
    assert updates_between(found, 15.0, 18.0) > 0


def test_a_reboot_loses_the_training_and_keeps_the_outbox() -> None:
    calm = simulate([towards(1.0)] * 4, initial=START, speeds=[10.0, 1.0, 1.0, 1.0], seconds=30.0)
    reboots = [Outage(8.0, 8.5, reboot=True), Outage(16.0, 16.5, reboot=True), Outage(25.0, 25.5, reboot=True)]
    rebooted = simulate(
        [towards(1.0)] * 4,
        initial=START,
        speeds=[10.0, 1.0, 1.0, 1.0],
        seconds=30.0,
        incidents=Incidents(outages={NAMES[0]: reboots}),
    )
    assert calm.per_device[0] >= 2
    assert rebooted.per_device[0] == 0
    held = run(Incidents(pauses=[(5.0, 12.0)], outages={name: [Outage(10.0, 11.0, reboot=True)] for name in NAMES}))
    assert updates_between(held, 11.9, 12.1) == len(NAMES), "what was trained before the reboot"


def test_messages_that_come_twice_and_are_overtaken_count_once() -> None:
    found = run(Incidents([Crash(15.0, 15.5, 0.0)], late=0.5, delay=1.0), world=replace(CALM, twice=0.5))
    assert far(found.parameters) < 0.05


def test_wrong_clocks_change_nothing_but_what_devices_say() -> None:
    ahead = Incidents(clocks=dict(zip(NAMES, [1e9, 0.5, 2_592_000.0, 0.0], strict=True)))
    np.testing.assert_allclose(run(ahead).update_times, run(None).update_times, atol=1e-3)
    claims = dict(zip(NAMES, [0.0, 1e3, 1e-3, 1.0], strict=True))
    assert math.isfinite(far(run(Incidents(claims=claims)).parameters))


def test_an_update_of_one_tensor_leaves_the_other() -> None:
    found = simulate([towards(1.0, "b")] * 3, initial=START, seconds=20.0, strategy=midge.balanced(2))
    assert not found.parameters["w"].any()
    assert abs(float(found.parameters["b"][0]) - 1) < 0.05
    crashed = simulate(
        [towards(1.0, "b")] * 3,
        initial=START,
        seconds=20.0,
        strategy=midge.balanced(2),
        incidents=Incidents([Crash(5.2, 5.4, 0.0)], checkpoint=1000),
    )
    assert not crashed.parameters["w"].any()
