"""How many local steps the aggregator asks for."""

from pathlib import Path
from typing import Any

import pytest

from midge.aggregator.core import records as rec
from midge.aggregator.core.fleet_statistics import FleetStatistics
from midge.aggregator.core.local_work import FEWEST, ROUND_TRIPS, LocalWork
from midge.aggregator.core.presets import balanced, fedasync
from midge.commands.words import sentence
from midge.wire.messages import Plan, Verdict
from tests.aggregator.rig import rig


def _update(device: str, steps: int) -> rec.UpdateRecord:
    return rec.UpdateRecord(1, device, 1, 1, Verdict.ACCEPTED.value, steps=steps)


class Fleet:
    """Devices that train for `seconds` of `steps` steps, with a round trip besides."""

    def __init__(self, devices: int = 5) -> None:
        self.statistics = FleetStatistics()
        self.names = [f"d{number}" for number in range(devices)]
        self.now = 0.0

    def turn(self, *, steps: int, seconds: float, round_trip: float, claims: dict[str, float] | None = None) -> None:
        self.now += seconds + round_trip
        for name in self.names:
            said = (claims or {}).get(name, seconds)
            self.statistics.heard(name, said, self.now, age=seconds + round_trip, steps=steps)
            self.statistics.take(_update(name, steps), 0)


@pytest.mark.parametrize(("round_trip", "steps"), [(0.001, FEWEST), (0.2, round(ROUND_TRIPS * 0.2 * 20)), (2.0, None)])
def test_a_training_computes_as_long_as_its_journey_is_worth(round_trip: float, steps: int | None) -> None:
    fleet, work = Fleet(), LocalWork()
    for _ in range(4):
        taken = work.steps or 20
        fleet.turn(steps=taken, seconds=taken / 20, round_trip=round_trip)
        work.weigh(fleet.statistics)
    assert work.steps == steps


def test_never_more_than_the_recipe_and_back_to_it_if_journeys_become_long() -> None:
    fleet, work = Fleet(), LocalWork()
    fleet.turn(steps=20, seconds=1.0, round_trip=0.05)
    assert work.weigh(fleet.statistics)
    assert (work.steps, work.recipe) == (FEWEST, 20)
    for _ in range(6):  # the shortest of a device's last round trips counts, so it takes as many to forget it
        fleet.turn(steps=FEWEST, seconds=FEWEST / 20, round_trip=9.0)
        work.weigh(fleet.statistics)
    assert (work.steps, work.recipe) == (None, 20)


def test_one_pause_or_one_night_does_not_count_as_a_journey() -> None:
    fleet, work = Fleet(), LocalWork()
    for round_trip in (0.3, 0.3, 3600.0, 0.3):
        fleet.turn(steps=20, seconds=1.0, round_trip=round_trip)
        work.weigh(fleet.statistics)
    assert work.steps == round(ROUND_TRIPS * 0.3 * 20)


@pytest.mark.parametrize("claim", [0.0, 1e9])
def test_what_two_of_five_devices_claim_does_not_move_the_steps(claim: float) -> None:
    fleet, work = Fleet(), LocalWork()
    for _ in range(4):
        fleet.turn(steps=20, seconds=1.0, round_trip=0.2, claims={"d0": claim, "d1": claim})
        work.weigh(fleet.statistics)
    assert work.steps == round(ROUND_TRIPS * 0.2 * 20)


def test_small_changes_are_not_announced() -> None:
    fleet, work = Fleet(), LocalWork()
    fleet.turn(steps=20, seconds=1.0, round_trip=0.25)
    assert work.weigh(fleet.statistics)
    before = work.steps
    for _ in range(6):
        fleet.turn(steps=10, seconds=0.5, round_trip=0.27)
        assert not work.weigh(fleet.statistics)
    assert work.steps == before


def test_fewer_steps_that_save_no_time_are_given_up_for_good() -> None:
    """A program that starts for a second takes a second, however few steps it is asked for."""
    fleet, work = Fleet(), LocalWork()
    asked = []
    for _ in range(12):
        fleet.turn(steps=work.steps or 20, seconds=1.0, round_trip=0.05)
        work.weigh(fleet.statistics)
        asked.append(work.steps)
    assert asked[0] == FEWEST and asked[1:] == [None] * 11


def test_what_a_training_costs_before_its_first_step_counts_as_journey() -> None:
    fleet, work = Fleet(), LocalWork()
    for _ in range(6):
        steps = work.steps or 20
        fleet.turn(steps=steps, seconds=0.2 + steps * 0.05, round_trip=0.05)
        work.weigh(fleet.statistics)
    assert work.steps == round(ROUND_TRIPS * 0.25 / 0.05)


def test_devices_that_do_not_count_steps_are_left_to_their_recipes() -> None:
    fleet, work = Fleet(), LocalWork()
    for _ in range(4):
        fleet.turn(steps=0, seconds=1.0, round_trip=0.01)
        assert not work.weigh(fleet.statistics)


def test_a_plan_that_says_how_much_is_left_as_it_is() -> None:
    assert balanced().steers_steps
    for plan in (Plan(local_steps=7), Plan(epochs=1), Plan(seconds=2.0)):
        assert not balanced(plan=plan).steers_steps
    assert not balanced(steers_local_steps=False).steers_steps
    assert not fedasync().steers_steps


def test_a_change_of_local_steps_is_an_event_once(tmp_path: Path) -> None:
    with rig(tmp_path, balanced()) as life:
        for steps in (0, 4, 4, 7, 0):
            life.processor.journaled(rec.PaceRecord(1, 1.0, steps, 20), None, 0.0)
        events: list[dict[str, Any]] = [
            {"event": event, **about} for event, about in life.told if event == "local_steps"
        ]
    assert [each["steps"] for each in events] == [4, 7, None]
    assert sentence(events[0]) == "A training has 4 local steps from now on; the devices' recipes have 20."
    assert sentence(events[-1]) == "A training has as many local steps as the devices' recipes say."
