"""The aggregator: it sees what the homes' models have in common, and no reading."""

from pathlib import Path

from home import INPUTS, initial

import midge


def app(url: str = "mqtt://localhost", store: str | Path = "homes", **more) -> midge.Aggregator:
    """For `midge aggregate server:app`."""
    return midge.Aggregator(
        url,
        federation="homes",
        initial=initial(),
        roles={"own.*": "local", "input_*": "frozen", "target_*": "frozen"},
        features=INPUTS,
        strategy=midge.fedavg(20, deadline=10.0),  # all homes train when an hour ends: these are rounds
        store=store,
        **more,
    )
