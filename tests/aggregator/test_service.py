"""The aggregator as a process: how it begins, and how it ends."""

from pathlib import Path

import numpy as np

from aggregator.service import Aggregator
from aggregator.store import Store
from broker.twin import Twin
from wire.schema import Schema

INITIAL = {"x": np.zeros(4, np.float32)}


def aggregator(store: Path, twin: Twin | None = None) -> Aggregator:
    return Aggregator((twin or Twin()).connect, federation="f", initial=INITIAL, store=store)


def test_a_store_whose_beginning_was_cut_short_begins_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create(Schema.of(INITIAL))  # and here the power goes, before the first checkpoint
    service = aggregator(tmp_path)
    service.open()
    assert service.core.lineage == service.store.lineage
    service.close()
