"""Worlds in which `benchmarks.stalls` once found a federation that stopped or was ruined, as they were drawn."""

from dataclasses import replace

import pytest

from benchmarks.stalls import WORLDS as OF_A_SEED
from benchmarks.stalls import Drawn, judge, verdict

LATE_FLOOD = Drawn(
    4,
    "balanced",
    97,
    1.2,
    0.6244,
    0.3,
    "none",
    0.581,
    10.21,
    0.3,
    0.2,
    0.0,
    14,
    "full rate",
    absent=0.2133,
    night=10.89,
    twice=0.035,
    delayed=0.2862,
    clocks=True,
    partial=0.1772,
)
WORLDS = {
    # One in five floods with tiny updates: their delays hid those of the others, and the rate let these swing.
    "flood of tiny updates": Drawn(
        700128, "balanced", 96, 0.0, 0.3865, 0.0, "scale", 0.2687, 11.188, 0.0, 0.0, 0.0, 19, "full rate tiny"
    ),
    # The first devices that were heard lied, and the reference remembered their norms.
    "huge from the first update on": Drawn(
        700404, "balanced", 97, 0.0, 0.9115, 0.0, "shift", 4.4906, 6.7484, 0.3, 0.2, 0.0, 13, "huge turned"
    ),
    # Six of 32 flood: half of each buffer was theirs.
    "flood of turned updates": Drawn(
        700455, "balanced", 32, 1.2, 0.0167, 0.3, "none", -4.9212, 6.7544, 0.0, 0.2, 0.0, 6, "full rate"
    ),
    "flood across a change": Drawn(
        700483, "balanced", 40, 0.6, 0.7952, 0.0, "scale", 216.33, 9.9852, 0.3, 0.0, 15.0, 6, "full rate"
    ),
    # Seven of 56 turn their updates: they kept a swing of the slow devices going, and it grew.
    "turned updates": Drawn(4, "balanced", 56, 1.2, 0.3246, 0.0, "none", 2.2889, 12.683, 0.0, 0.0, 0.0, 7, "sign flip"),
    # Of a cohort of two, one device was asked by chance. It answered, and a release waited for a second one for ever.
    "a cohort below the release floor": Drawn(
        1, "fedavg", 3, 0.0, 0.5, 0.0, "none", 1.0, 10.0, 0.0, 0.0, 0.0, 0, "", median=20.0
    ),
    # One update of a device waits for each step, and the devices went on training: what they sent grew older and older.
    "a queue of old updates": Drawn(
        3300769,
        "balanced, centred",
        5,
        0.0,
        0.51,
        0.0,
        "shift",
        -2.01,
        12.65,
        0.0,
        0.0,
        15.0,
        0,
        "",
        absent=0.3156,
        night=7.01,
        delayed=0.2267,
        clocks=True,
    ),
    # A trimmed mean divides by its weights whatever is asked for; the bound on the rate took it for one that does not.
    "a trimmed mean at too high a rate": Drawn(
        200100,
        "fedbuff, trimmed",
        74,
        0.0,
        0.8177,
        0.3,
        "scale",
        332.665,
        6.289,
        0.3,
        0.0,
        0.0,
        0,
        "",
        median=300.0,
        crashes=2,
        pauses=1,
        night=5.786,
    ),
    # 14 of 97 flood, and updates are overtaken: the delays of the flood hid those of the others, and the model swung.
    "a flood beside updates that come late": LATE_FLOOD,
    # The same with other numbers: devices with late messages voted down those that saw how far the model had come.
    "a flood beside late devices that are most": replace(LATE_FLOOD, seed=8),
    # The first steps went too far for calibrated updates; then a device left, and its last delta pushed for ever.
    "a cached delta of a device that left": Drawn(
        19,
        "ca2fl",
        3,
        0.6,
        0.3653,
        0.3,
        "scale",
        0.10664,
        13.81,
        0.0,
        0.2,
        0.0,
        0,
        "",
        median=300.0,
        absent=0.3089,
        night=12.68,
        loss=0.0565,
        latency=0.0658,
    ),
    # A given rate was bounded by a multiple of the default's share: as that rose, it went beyond half the margin.
    "two devices, cached deltas and a rate that is given": Drawn(
        25100333,
        "ca2fl",
        2,
        1.2,
        0.3289,
        0.0,
        "scale",
        0.278,
        12.39,
        0.0,
        0.0,
        15.0,
        0,
        "",
        median=20.0,
        crashes=2,
        night=4.167,
        reboots=0.9225,
        clocks=True,
    ),
    # The fastest of six devices lied, alone in the first step, and moved the model by a million.
    "huge before the others are known": Drawn(
        30101054,
        "balanced",
        6,
        1.2,
        0.2438,
        0.3,
        "none",
        -2.715,
        7.254,
        0.3,
        0.0,
        15.0,
        1,
        "huge turned",
        median=300.0,
        crashes=1,
        night=8.021,
        twice=0.05646,
        clocks=True,
    ),
    # Updates that had waited for a restart came at once: intervals seemed short, and two of the three devices that were
    # heard within three of them lied.
    "huge after a restart": replace(
        Drawn(
            30100128,
            "balanced",
            30,
            0.6,
            0.5262,
            0.0,
            "shift",
            -2.838469250082479,
            7.458085714726677,
            0.0,
            0.2,
            15.0,
            6,
            "huge",
        ),
        median=300.0,
        crashes=3,
        pauses=1,
        night=12.248574291929929,
    ),
    # The first devices after a pause were the only recent ones, and two of the three lied.
    "huge after a pause": replace(
        Drawn(
            40100744,
            "balanced",
            17,
            0.0,
            0.2730514747678402,
            0.0,
            "shift",
            1.148913665481044,
            9.348170109767416,
            0.3,
            0.0,
            0.0,
            3,
            "huge",
        ),
        median=300.0,
        pauses=1,
        night=14.854041987554261,
        loss=0.05173990676229055,
    ),
    # Steps did not wait for a full buffer, and the first 32 updates were applied at a rate for full ones.
    "four devices before their delays are known": replace(
        Drawn(
            50100828,
            "fedbuff, trimmed",
            4,
            0.0,
            0.31394021065889743,
            0.0,
            "scale",
            0.11118522823088564,
            10.906754772904195,
            0.0,
            0.0,
            0.0,
            0,
            "",
        ),
        median=300.0,
        night=9.224756157586189,
        reboots=0.24496459996824455,
        loss=0.022957024689156703,
        delayed=0.08237227294408622,
        latency=0.08387817656751079,
    ),
    # Attackers were the first to be heard. A restart took their norm for the reference again, and ignored smaller ones.
    "huge before a restart": replace(
        Drawn(
            61201710,
            "balanced",
            24,
            0.6,
            0.45481091903204274,
            0.3,
            "none",
            4.588403254262126,
            13.752596406744043,
            0.0,
            0.2,
            15.0,
            4,
            "huge turned",
        ),
        median=300.0,
        crashes=1,
        night=12.352013584323217,
        twice=0.11698421552137678,
        delayed=0.19183368763367653,
    ),
    # Two of the first three devices lied: the model moved by 16 before the others were heard.
    "huge from two of the first three": replace(
        Drawn(
            61301448,
            "balanced",
            24,
            0.6,
            0.8172258655449777,
            0.3,
            "shift",
            -0.8026761371991746,
            10.294837172754335,
            0.0,
            0.0,
            15.0,
            3,
            "huge",
        ),
        median=300.0,
        pauses=1,
        night=3.5772690479039175,
        loss=0.044657641751484414,
        twice=0.2519778286614439,
        latency=0.05858439347571342,
    ),
    # A deadline made steps of one update at the rate of a full buffer, from versions that an interval held back.
    "steps of one update between two releases": Drawn(
        9, "fedbuff", 12, 1.2, 0.18, 0.0, "none", 1.0, 10.0, 0.0, 0.0, 0.0, 0, "", median=300.0, release_interval=2.0
    ),
    # Both devices had given their update, in two steps, and the second one waited for its deadline.
    "two devices give in turn": replace(
        Drawn(62101541, "fedbuff", 2, 0.0, 0.0945, 0.3, "shift", 3.862, 8.31, 0.3, 0.0, 15.0, 0, ""),
        twice=0.1787,
        delayed=0.0742,
    ),
    # Two of the devices that were online gave nothing, and one had claimed trainings of 8,000 s.
    "silent devices and a release of eight steps": replace(
        Drawn(62100147, "balanced", 19, 0.0, 0.739, 0.0, "shift", -2.688, 11.199, 0.0, 0.2, 0.0, 3, "rare"),
        median=20.0,
        pauses=1,
        nights=1,
        night=13.512493588552884,
        absent=0.2059449466922785,
        reboots=0.17625517444555816,
        clocks=True,
        release_every=8,
    ),
    # Devices train in 0.4 s. One whose last update waited for a step was asked to come again after 5 s, and again.
    "an update that waits in a fast fleet": replace(
        Drawn(61400512, "balanced, centred", 3, 1.2, 0.642, 0.0, "shift", -4.179, 7.946, 0.0, 0.2, 0.0, 0, ""),
        partial=0.6045482815061952,
        endless=True,
        night=14.47551073312519,
    ),
    # Steps of cached deltas repeat those of a training ago, and a release of seven steps brings bursts.
    "cached deltas in bursts": replace(
        Drawn(61401081, "ca2fl", 69, 1.2, 0.373, 0.0, "scale", 0.0654, 7.913, 0.3, 0.2, 0.0, 0, ""),
        max_age=2.216,
        pauses=1,
        nights=1,
        night=5.881346732992329,
        release_every=7,
        release_floor=4,
    ),
    # A release waited for a silent device at least as long as for statuses after a restart, ten trainings.
    "a silent device in a fast fleet": replace(
        Drawn(61401546, "private", 9, 0.0, 0.27, 0.0, "shift", 2.648, 7.864, 0.3, 0.0, 0.0, 0, ""),
        max_staleness=0,
        nights=1,
        night=8.122428984083772,
        twice=0.04350802360339499,
        clocks=True,
        partial=0.5510037255347281,
        release_every=11,
    ),
    # One of two devices trains the bias only, and has learned it: the other's weights were held to its norm of 0.001.
    "two devices with a tensor each": replace(
        Drawn(62200571, "balanced", 2, 0.0, 0.392, 0.0, "none", 1.0, 7.19, 0.3, 0.2, 0.0, 0, ""),
        median=300.0,
        night=12.372010167355192,
        reboots=0.7684976408549843,
        twice=0.2949391880819313,
        clocks=True,
        partial=0.9037847517312648,
        release_every=11,
    ),
    # The first of two known devices lied: its norm of 10^15 was the least reference, and bounded nothing.
    "a liar that comes first": replace(
        Drawn(62300630, "balanced", 8, 1.2, 0.774, 0.0, "scale", 0.894, 6.45323020264923, 0.3, 0.0, 15.0, 1, "huge"),
        median=20.0,
        crashes=2,
        down=0.5,
        nights=1,
        night=4.69912978837715,
        release_floor=3,
    ),
    # Three quarters train one of the two tensors: those of the weights were held to a share of the whole fleet.
    "a flood where few train what moves": replace(
        Drawn(530300935, "balanced", 19, 0.6, 0.0821, 0.3, "none", -1.38, 12.22, 0.0, 0.2, 0.0, 1, "full rate"),
        pauses=1,
        night=4.064293980133562,
        absent=0.1702409259450944,
        clocks=True,
        partial=0.7679562854579022,
        release_every=12,
    ),
    "turned updates, again": Drawn(
        700211, "balanced", 56, 1.2, 0.3246, 0.0, "none", 2.2889, 12.683, 0.0, 0.0, 0.0, 7, "sign flip"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_it_learns_in_a_world_that_once_stopped_it(name: str) -> None:
    found = verdict(WORLDS[name])
    assert not found["stalled"]
    assert not found["broken"]
    assert not found["late"]


SMALL = [number for number in range(17 * OF_A_SEED, 17 * OF_A_SEED + 40) if Drawn.of(number).devices <= 30][:20]


@pytest.mark.parametrize("number", SMALL)
def test_it_learns_in_a_sample_of_the_worlds(number: int) -> None:
    """A few of those that `benchmarks.stalls` plays by the thousand, and `.ci/run` by the hundred, of all sizes."""
    found = judge(number)
    assert not found["stalled"], found["world"]
    assert not found["broken"], found["world"]
