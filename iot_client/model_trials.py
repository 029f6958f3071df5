"""Tries the models of a running device on the rows that come."""

import asyncio
from collections.abc import Callable

from midge.iot_client.parts import DeviceParts
from midge.iot_client.state.model_keeper import ModelKeeper

_EVERY = 10.0
"""Seconds between two looks at the rows: a decision may come so much later, and a status is sent as rarely."""


async def try_models(parts: DeviceParts, keeper: ModelKeeper, report: Callable[[], None]) -> None:
    """Try the model in use, and the one that is offered, on each group of rows that came, forever.

    Args:
        parts: of the device.
        keeper: decides.
        report: called when the device keeps a model, and when it keeps none any more.
    """
    keeper.begin()
    reported = 0
    while True:
        if keeper.due:
            await asyncio.to_thread(parts.look_at_models)
        if parts.predicting.keeps != reported:
            reported = parts.predicting.keeps
            report()
        await asyncio.sleep(_EVERY)
