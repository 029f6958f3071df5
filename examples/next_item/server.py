"""The aggregator: each row of the tables is averaged over the devices that changed it."""

from dataclasses import replace
from pathlib import Path

from shop import ROWS, initial

import midge


def app(url: str = "mqtt://localhost", store: str | Path = "next-item", **more) -> midge.Aggregator:
    """For `midge aggregate server:app`."""
    strategy = midge.fedavg(10, deadline=10.0)  # rounds: no update is late, so the rate needs no bound
    return midge.Aggregator(
        url,
        federation="next-item",
        initial=initial(),
        strategy=replace(strategy, count_rows=ROWS, bounded=False),
        store=store,
        **more,
    )
