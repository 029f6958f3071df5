"""A root, gateways and devices in one loop, over brokers in memory: one for the root, one for each site."""

from pathlib import Path
from typing import Any

import numpy as np

from midge.broker.embedded.in_memory import Twin
from midge.gateway.config import GatewayConfig
from midge.gateway.pace import SitePace
from midge.gateway.service import Gateway
from tests.federation.live import Log, aggregator, device, distance, overheard, serving


def gateway(above: Twin, below: Twin, name: str, store: Path, log: Log, **arguments: Any) -> Gateway:
    fields: dict[str, Any] = {"pace": SitePace(1.0, 0.2), "robust": False, **arguments}
    return Gateway(
        GatewayConfig(
            above=above.connect, below=below.connect, federation="f", name=name, store=store, on_event=log, **fields
        )
    )


async def test_devices_behind_two_gateways_learn_with_the_root(tmp_path: Path) -> None:
    top, north, south, log, below = Twin(), Twin(), Twin(), Log(), Log()
    root = aggregator(top, tmp_path / "root", log, sites=("site-*",))
    sites = [
        gateway(top, north, "site-north", tmp_path / "north", below),
        gateway(top, south, "site-south", tmp_path / "south", below),
    ]
    devices = [device(north, "a", below), device(north, "b", below), device(south, "c", below)]
    seen = overheard(top)
    async with serving(root, *sites, *devices):
        await log.until(lambda: root.open_now and distance(root.model.parameters()) < 0.05)
    accepted = log.of("update", verdict="accepted")
    assert {event["device"] for event in accepted} == {"site-north", "site-south"}
    assert not any("/status/a" in message.topic or "/update/" in message.topic and "/a" in message.topic for message in seen)


async def test_a_version_passes_a_gateway_byte_for_byte(tmp_path: Path) -> None:
    top, north, log = Twin(), Twin(), Log()
    root = aggregator(top, tmp_path / "root", log, sites=("site",))
    site = gateway(top, north, "site", tmp_path / "north", log)
    above, below = overheard(top), overheard(north)
    async with serving(root, site, device(north, "a", log), device(north, "b", log)):
        await log.until(lambda: root.open_now and root.core.version >= 4)
    came = {(message.topic, bytes(message.payload)) for message in above}
    passed = {(m.topic, bytes(m.payload)) for m in below if "/model/train" in m.topic and m.payload}
    assert len({topic for topic, _ in passed}) > 3
    assert passed <= came
    np.testing.assert_array_less(3, root.core.version)
