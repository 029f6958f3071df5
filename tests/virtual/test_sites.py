"""A virtual fleet behind gateways: nothing is lost or counted twice, and the root's line carries less."""

from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.virtual import ProfileFleet


def test_a_fleet_behind_gateways_loses_and_doubles_nothing() -> None:
    fleet = ProfileFleet(Setting(), profile="factory", devices=60, days=0.3)
    flat, below = fleet.run(), ProfileFleet(Setting(), profile="factory", devices=60, days=0.3, sites=3).run()
    ledger = below.result.sites
    assert (ledger["lost"], ledger["doubled"]) == (0, 0)
    assert ledger["sums"] < len(below.result.senders) == sum(below.result.per_device)
    every = flat.result.bytes_at[-1].sum()
    assert every > 4 * (ledger["root_bytes_up"] + ledger["root_bytes_down"])
    assert below.value > 0.5


def test_it_is_the_same_again() -> None:
    fleet = ProfileFleet(Setting(seed=3), profile="factory", devices=30, days=0.1, sites=2)
    one, other = fleet.run(), fleet.run()
    assert one.result.sites == other.result.sites
    for name, values in one.result.parameters.items():
        assert (values == other.result.parameters[name]).all()
