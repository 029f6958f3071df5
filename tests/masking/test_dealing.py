"""Sets in an asynchronous fleet on a virtual clock: how many sums there are, and whose updates come into one."""

import heapq
import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from midge.mask_helper.dealing import Version, WaitingUpdate, deal
from midge.wire.messages.masking import MaskEntry

SECONDS, MEDIAN, PAUSE = 40.0, 0.5, 0.2
"""Of the run; of the median training; between two versions."""


@dataclass(frozen=True)
class Played:
    """A run, in shares of the updates that were given."""

    sums: int
    summed: float
    slow: float
    """Of the slowest quarter of the devices, the updates that came into a sum."""
    waiting: int


def played(devices: int, size: int, least: int, *, spread: float = 0.5, noise: float = 0.0, groups: int = 1) -> Played:
    """Devices train from the newest version, once from each; each deal makes a version.

    Of each device two updates wait at most, as in `MaskHelper`. `spread` is the standard deviation of the logarithm of
    the devices' typical seconds.
    """
    rng = random.Random(1)
    entry = MaskEntry(
        key=b"identity", ring=20, levels=7, scale=1.0, slices=1, part=0, least=least, seed=bytes(48),
        noise=noise, honest=least if noise else 0,
    )  # fmt: skip
    typical = [MEDIAN * math.exp(spread * rng.gauss(0, 1)) for _ in range(devices)]
    slow = set(sorted(range(devices), key=typical.__getitem__)[-(devices // 4) :])
    version, sums, count, resting = 0, 0, 0, set(range(devices))
    trained = [-1] * devices
    known: dict[Version, bytes] = {}
    waiting: list[WaitingUpdate] = []
    given, summed = Counter[int](), Counter[int]()
    ends: list[tuple[float, int, int]] = []
    """When a training ends, of which device, from which version."""
    released = 0.0

    def start(now: float) -> None:
        for device in sorted(resting):
            if trained[device] < version:
                resting.discard(device)
                trained[device] = version
                heapq.heappush(ends, (now + typical[device] * math.exp(0.2 * rng.gauss(0, 1)), device, version))

    start(0.0)
    while ends and ends[0][0] < SECONDS:
        now, device, base = heapq.heappop(ends)
        count, given[device] = count + 1, given[device] + 1
        waiting.append(WaitingUpdate(count, str(device), (0, base), base.to_bytes(8, "big"), entry))
        while hands := deal(waiting, known, size=size, least=least, groups=groups, shuffle=rng.shuffle):
            for hand in hands:
                assert len({each.device for each in hand.updates}) == len(hand.updates) >= least
                bases = Counter(each.version for each in hand.updates)
                assert noise or min(bases.values()) >= least
                summed.update(int(each.device) for each in hand.updates)
            dealt = {each.number for hand in hands for each in hand.updates}
            waiting = [each for each in waiting if each.number not in dealt]
            sums += len(hands)
            released = max(now, released + PAUSE)
            version += 1
        by_device: dict[str, list[WaitingUpdate]] = defaultdict(list)
        for each in waiting:
            by_device[each.device].append(each)
        waiting = sorted((each for some in by_device.values() for each in some[-2:]), key=lambda each: each.number)
        resting.add(device)
        start(max(now, released))
    return Played(
        sums,
        summed.total() / given.total(),
        sum(summed[each] for each in slow) / sum(given[each] for each in slow),
        len(waiting),
    )


@pytest.mark.parametrize(("devices", "size"), [(20, 10), (50, 20)])
def test_an_asynchronous_fleet_goes_on_making_sums(devices: int, size: int) -> None:
    """With K_min of 5 for each base: three quarters of the sums, and the slow ones' updates less often."""
    strict, noisy = played(devices, size, 5), played(devices, size, 5, noise=7.0)
    assert noisy.summed > 0.95 and noisy.slow > 0.95
    assert strict.sums > 0.7 * noisy.sums
    assert strict.summed > 0.8 and strict.slow > 0.35
    assert strict.waiting <= 2 * devices


def test_larger_sets_lose_fewer_updates() -> None:
    """The more updates of a version, the fewer are left: ask for four times K_min."""
    assert played(50, 20, 5).slow > played(50, 10, 5).slow + 0.1


def test_groups_of_an_asynchronous_fleet_go_on_too() -> None:
    assert played(50, 5, 5, groups=5).summed > 0.8
