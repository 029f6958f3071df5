"""Reports of a running device when its sources bring no useful rows."""

import asyncio
import logging
import time
from collections.abc import Callable

from midge.iot_client.data.intake import SOON, IntakeWatch
from midge.iot_client.parts import DeviceParts

log = logging.getLogger("iot_client")


async def report_intake(parts: DeviceParts, greet: Callable[[], None]) -> None:
    """Log if no useful rows come from the sources, report their counts, and let old rows expire, forever.

    Args:
        parts: of a device with samples.
        greet: called while no useful rows come: the device's status says it.
    """
    samples, name = parts.config.samples, parts.config.name
    assert samples is not None
    watch, began = IntakeWatch(samples.intakes, lambda: len(samples)), time.monotonic()
    while True:
        await asyncio.sleep(SOON)
        if expired := samples.expire():
            parts.tell("expired", rows=expired)
        useless, news = watch.look(time.monotonic() - began)
        for each in useless:
            log.warning("%s: no useful row comes. %s.", name, each.words())
        if news:
            parts.tell("intake", useless=bool(useless), sources=samples.received())
        if useless:
            greet()
