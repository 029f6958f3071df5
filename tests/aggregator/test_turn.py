"""Once every device that trains has given its update, nothing waits for more of them, and what waits says for whom."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from midge.aggregator.core.presets import fedasync, fedbuff, private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.turn import LONGEST, SHORTEST, SLOWER, STATUSES
from midge.aggregator.federation import _situation
from midge.aggregator.metrics.device_activity import DeviceActivity
from midge.aggregator.metrics.watchdog import FIRST, SOONEST, TRAININGS, Watchdog
from midge.wire import frames
from midge.wire.messages import DeviceState, Hello, Verdict
from tests.aggregator.rig import TOPICS, Rig, rig

PRIVATE = private(Privacy(clip=1.0, noise=1.0, epsilon=100.0), 5)
MOVE = [1.0, 0.0, 0.0, 0.0]


def status(device: str, *, waits: str = "", state: DeviceState = DeviceState.READY) -> tuple[str, bytes]:
    return TOPICS.status(device), frames.encode(Hello(state=state, outbox=1, first=1, waits=waits))


def give(life: Rig, *devices: str, now: float = 1.0, seconds: float = 2.0, delta: Sequence[float] = MOVE) -> None:
    for device in devices:
        seq = life.core.hi(device, 1) + 1
        assert life.send(device, seq, delta, now=now, seconds=seconds).verdict is Verdict.ACCEPTED


def online(life: Rig, *devices: str) -> None:
    life.hear(*(status(device) for device in devices))


def followed() -> DeviceActivity:
    """The activity of devices that were heard."""
    activity = DeviceActivity(10)
    for device in "ab":
        activity.heard(device, 0.0)
    return activity


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        (fedbuff(5, release_every=2), 1),
        (fedbuff(2, release_every=3, deadline=None), 2),
        (fedasync(release_every=20), 5),
    ],
)
def test_a_version_is_released_once_all_devices_have_given_what_they_can(
    tmp_path: Path, strategy: Strategy, steps: int
) -> None:
    """Seen to fail: devices train once from each version, so that too few steps for `release_every` were the end."""
    with rig(tmp_path, strategy) as life:
        online(life, *"abcde")
        give(life, *"abcd")
        assert life.core.version == 1
        give(life, "e")
        assert (life.core.version, life.core.step, life.core.buffered) == (2, steps, 0)
        before = life.state
    again = Rig(tmp_path, strategy)
    assert again.state == before, "the replay decides nothing by itself"
    again.close()


def test_a_release_with_too_few_steps_waits_for_a_restarted_roster(tmp_path: Path) -> None:
    """Seen to fail: the first retained status made two of five devices look like all of them."""
    strategy = fedbuff(2, release_every=4)
    with rig(tmp_path, strategy) as life:
        online(life, *"abcde")
        give(life, *"abcd")
    with rig(tmp_path, strategy) as life:
        online(life, "a", "b")
        life.tick(STATUSES - 1)
        assert life.core.version == 1
        online(life, *"cde")
        life.tick(STATUSES + 1)
        assert life.core.version == 1, "one is still to give"
        give(life, "e", now=STATUSES + 2)
        assert life.core.version == 2


def test_devices_that_say_why_they_do_not_train_are_not_waited_for(tmp_path: Path) -> None:
    with rig(tmp_path, fedbuff(10, deadline=None, release_every=2)) as life:
        online(life, *"abcd")
        give(life, *"abc")
        assert (life.core.step, life.core.version) == (0, 1)
        life.hear(status("d", waits="fewer than 32 rows are new"), now=2.0)
        assert (life.core.step, life.core.version) == (1, 2), "at once, without an update"
        give(life, *"abc", now=3.0)
        assert life.core.version == 3
        give(life, "d", now=4.0)
        give(life, *"abc", now=5.0)
        assert life.core.version == 4, "it trains again, and completes the four"


def test_a_device_that_has_left_or_was_refused_is_not_waited_for(tmp_path: Path) -> None:
    with rig(tmp_path, fedbuff(2, release_every=9)) as life:
        online(life, *"abcd")
        give(life, "a", "b", now=10.0)
        assert life.send("c", 1, MOVE, now=11.0, codec="float32", schema_hash=b"other").verdict is Verdict.WRONG_SCHEMA
        life.tick(25.0)
        assert (life.core.step, life.core.version) == (1, 1)
        life.hear(status("d", state=DeviceState.DISCONNECTED), now=26.0)
        assert life.core.version == 2


def test_a_silent_device_holds_a_release_for_twice_what_a_slow_one_took(tmp_path: Path) -> None:
    """Seen to fail: one that never gave anything delayed each release of an equal fleet by ten trainings."""
    with rig(tmp_path, fedbuff(3, release_every=9)) as life:
        online(life, *"abcd")
        give(life, *"abc", now=20.0)
        due = 20.0 + SLOWER * 20.0
        assert life.core.deadline == due
        life.tick(due - 1)
        assert life.core.version == 1
        found = life.core.obstacle
        assert found is not None and found.kind == "held" and found.updates == 1
        assert "Version 2 takes 9 steps, and 1 can be made without it" in found.why and "release_every" in found.why
        life.tick(due + 1)
        assert life.core.version == 2 and life.core.obstacle is None


@pytest.mark.parametrize(("late", "seconds", "patience"), [(50.0, 2.0, 100.0), (20.0, 1e9, 40.0)])
def test_a_slow_device_is_waited_for_as_long_as_it_was_seen_to_take(
    tmp_path: Path, late: float, seconds: float, patience: float
) -> None:
    """Seen to fail: an attacker claimed trainings of 8,000 s, and each release waited for ten usual ones."""
    with rig(tmp_path, fedbuff(5, deadline=None, release_every=9)) as life:
        online(life, *"abcdef")
        give(life, *"abc", now=20.0)
        give(life, "d", "e", now=late, seconds=seconds)
        assert life.core.deadline == late + patience


@pytest.mark.parametrize(("seconds", "retry"), [(0.1, 0.5), (2.0, 2.0), (60.0, 5.0)])
def test_a_device_whose_last_update_waits_for_a_step_comes_again_after_a_training(
    tmp_path: Path, seconds: float, retry: float
) -> None:
    """Seen to fail: after 5 s, ten of its trainings, while others went on."""
    with rig(tmp_path, fedbuff(3, deadline=None, combine="trimmed", trim=0.2)) as life:
        online(life, *"abc")
        give(life, *"ab", now=seconds, seconds=seconds)
        settled = life.send("a", 2, MOVE, now=seconds, seconds=seconds)
        assert settled.verdict is Verdict.BUSY and settled.retry_after == pytest.approx(retry, rel=0.01)


def test_a_fleet_that_trains_within_a_second_waits_a_second_for_a_silent_device(tmp_path: Path) -> None:
    """Seen to fail: ten seconds, as for statuses after a restart."""
    with rig(tmp_path, fedbuff(3, release_every=9)) as life:
        online(life, *"abcd")
        give(life, *"abc", now=0.1, seconds=0.1)
        life.tick(0.1 + 2 * SHORTEST)
        assert life.core.version == 2


def test_a_silence_is_over_after_an_hour_if_it_is_unknown_how_long_a_device_takes(tmp_path: Path) -> None:
    strategy = fedbuff(3, release_every=9)
    with rig(tmp_path, strategy) as life:
        online(life, *"abcd")
        give(life, *"abc")
    with rig(tmp_path, strategy) as life:
        assert life.core.deadline == LONGEST


def test_a_step_without_a_deadline_is_made_of_what_an_unreleased_step_left_over(tmp_path: Path) -> None:
    """Seen to fail: three made a step, which carried too few for a release, and the fourth waited for ever."""
    with rig(tmp_path, fedbuff(3, deadline=None, release_floor=4)) as life:
        online(life, *"abcd")
        give(life, *"abcd")
        assert (life.core.step, life.core.version) == (2, 2)


def test_a_release_never_carries_fewer_devices_than_its_floor(tmp_path: Path) -> None:
    with rig(tmp_path, fedbuff(2, release_floor=4, release_every=9)) as life:
        online(life, *"abc")
        give(life, *"abc")
        life.tick(20.0)
        life.tick(2 * LONGEST)
        assert life.core.step >= 1 and life.core.version == 1
        found = life.core.obstacle
        assert found is not None and "release_floor" in found.why and found.needs == 4


@pytest.mark.parametrize("strategy", [PRIVATE, fedbuff(5, deadline=None)])
def test_a_step_that_waits_without_a_limit_says_what_it_takes_and_who_is_idle(
    tmp_path: Path, strategy: Strategy
) -> None:
    """Seen to fail: it was `learning` for an hour, and then a stall that named no buffer."""
    with rig(tmp_path, strategy) as life:
        activity = followed()
        dog = Watchdog(activity, 0.0)
        online(life, *"abcde")
        give(life, *"abcd")
        activity.settled("a", "accepted", "", 1.0)
        life.tick(100.0)
        assert life.core.step == 0, "a private step's size says nothing of who is there"
        assert dog.look(2.0, _situation(life.core, life.roster, ())).state.value == "learning"
        usual = life.core.usual_training
        assert usual is not None
        found = dog.look(3.0 + max(TRAININGS * usual, SOONEST), _situation(life.core, life.roster, ()))
        assert found.state.value == "held" and found.since < FIRST
        assert "A step takes 5 updates, and 1 more must come" in found.why and "buffer_size" in found.why
        assert found.why.endswith("Online devices that have given nothing since: e.")


def test_a_silence_that_an_obstacle_explains_is_not_called_a_stall_first(tmp_path: Path) -> None:
    """Seen to fail: the silence began before the obstacle was first seen, and was a stall for those seconds."""
    with rig(tmp_path, PRIVATE) as life:
        activity = followed()
        dog = Watchdog(activity, 0.0)
        online(life, *"abcde")
        dog.look(0.0, _situation(life.core, life.roster, ()))
        give(life, *"abcd")
        activity.settled("a", "accepted", "", 1.0)
        for now in range(20, 100):
            found = dog.look(float(now), _situation(life.core, life.roster, ()))
            assert found.state.value in ("learning", "held")
        assert found.state.value == "held"


def test_a_schedule_that_holds_a_release_is_no_stall_and_says_so(tmp_path: Path) -> None:
    """Seen to fail: half a minute of silence was a stall although the next version was due in an hour."""
    with rig(tmp_path, fedbuff(2, release_interval=7200.0)) as life:
        activity = followed()
        dog = Watchdog(activity, 0.0)
        online(life, "a", "b")
        dog.look(0.0, _situation(life.core, life.roster, ()))
        give(life, "a", "b")
        activity.settled("b", "accepted", "", 1.0)
        found = dog.look(5400.0, _situation(life.core, life.roster, ()))
        assert found.state.value == "learning"
        assert found.why == "The next version is due in 30 min (release_interval and byte_rate of the strategy)."
        life.tick(7201.0)
        assert life.core.version == 2
        assert dog.look(7202.0, _situation(life.core, life.roster, ())).state.value == "learning", (
            "they have their time"
        )
        assert dog.look(7202.0 + 2 * FIRST, _situation(life.core, life.roster, ())).state.value == "stalled"


def test_a_fleet_that_makes_steps_is_never_held_by_what_each_of_them_waits_for(tmp_path: Path) -> None:
    """Seen to fail: some update waited whenever the watchdog looked, each time for another step."""
    with rig(tmp_path, fedbuff(3, deadline=None)) as life:
        activity = followed()
        dog = Watchdog(activity, 0.0)
        online(life, *"abcd")
        give(life, *"abcd", now=5.0)
        for turn in range(1, 40):
            give(life, *("abcd"[(turn * 3 + each) % 4] for each in range(3)), now=10.0 * turn)
            activity.settled("a", "accepted", "", 10.0 * turn)
            assert life.core.buffered == 1
            assert dog.look(10.0 * turn + 2, _situation(life.core, life.roster, ())).state.value == "learning"


def test_the_roster_counts_the_devices_that_do_not_train(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        online(life, *"abc")
        life.hear(status("b", waits="the battery is low"), status("c", waits="it is night"))
        assert life.core.steering.training == 1
        life.hear(status("b", waits="it is night"))
        assert life.core.steering.training == 1
        give(life, "b")
        assert life.core.steering.training == 2
        life.hear(status("c", state=DeviceState.DISCONNECTED))
        assert (life.core.steering.training, life.core.steering.live) == (2, 2)
        life.hear((TOPICS.status("a"), b""))
        assert (life.core.steering.training, life.core.steering.live) == (1, 1)


@pytest.mark.parametrize("delta", [MOVE, [0, 0, 0, 0]])
def test_what_a_device_sends_again_from_a_version_makes_no_step_of_its_own(
    tmp_path: Path, delta: Sequence[float]
) -> None:
    """Seen to fail: four of 25 devices sent all the time while a release was held, and the model was 400 bounds off."""
    with rig(tmp_path, fedbuff(3, deadline=None, release_interval=1e6)) as life:
        online(life, *"abcde")
        give(life, *"abcd", delta=delta)
        assert life.core.step == 1
        give(life, "e", delta=delta)
        assert life.core.step == 2, "it completes the five"
        give(life, *"ee", delta=delta)
        assert (life.core.step, life.core.buffered) == (2, 2)
