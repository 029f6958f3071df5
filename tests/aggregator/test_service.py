"""The aggregator as a process: how it begins, and how it ends."""

from pathlib import Path

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.core import Bounds
from midge.aggregator.service import Aggregator
from midge.aggregator.store.store import Store
from midge.broker.embedded.in_memory import Twin
from midge.wire.messages import DeviceState
from midge.wire.schema import Schema
from tests.aggregator.rig import hello, rig

INITIAL = {"x": np.zeros(4, np.float32)}


def aggregator(store: Path, twin: Twin | None = None) -> Aggregator:
    return Aggregator(
        AggregatorConfig(connector=(twin or Twin()).connect, federation="f", initial=INITIAL, store=store)
    )


def test_a_store_whose_beginning_was_cut_short_begins_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create(Schema.of(INITIAL))  # and here the power goes, before the first checkpoint
    service = aggregator(tmp_path)
    service.open()
    assert service.core.lineage == service.federation.store.lineage
    service.close()


def test_statuses_of_endless_names_are_not_kept_and_put_no_device_out(tmp_path: Path) -> None:
    with rig(tmp_path, bounds=Bounds(devices=3)) as life:
        for number in range(10):
            life.hear(hello(f"device-{number}"))
        assert set(life.roster.devices) == {"device-7", "device-8", "device-9"}, "who was silent longest made room"
        assert life.core.steering.live == 3
        gone = hello("device-7", state=DeviceState.LOST)
        life.hear(gone)
        assert life.roster.devices["device-7"].state is DeviceState.LOST
        life.hear((gone[0], b""))
        life.hear(hello("device-1"))
        assert set(life.roster.devices) == {"device-8", "device-9", "device-1"}
        life.send("device-8", 1, [1, 0, 0, 0])
        for number in range(20, 30):
            life.hear(hello(f"device-{number}"))
        assert "device-8" in life.roster.devices, "an update of it was accepted"
