"""docs/session.md: the session is what the code makes, and the device on the page takes part in a real federation."""

import asyncio
import re
import sys
from pathlib import Path

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedasync
from midge.aggregator.service import Aggregator
from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.wire.dissection import dissect
from midge.wire.messages import Plan
from midge.wire.topic_hints import hint
from tests.docs.scripts import script
from tests.federation.live import Log, serving

HEX = r"^\s*((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  |$)"
"""The bytes at the left of a line."""


def program() -> str:
    page: str = script("session").PAGE.read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def test_every_message_of_the_session_is_in_order_and_all_its_bytes_are_shown() -> None:
    session = script("session")
    for _, topic, _, payload in session.session():
        found = dissect(payload, hint(topic))
        assert found.ok, found.wrong
        shown = "".join(digits for line in session.said(payload) for digits in re.findall(HEX, line))
        assert bytes.fromhex(shown) == payload


def test_the_device_on_the_page_has_forty_lines() -> None:
    lines = [line for line in program().splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import ", "from "))]) <= 40


async def test_the_device_on_the_page_learns_with_a_real_aggregator(tmp_path: Path) -> None:
    """Over TCP: it fetches snapshots and steps, trains, and what it sends is accepted, version after version."""
    (tmp_path / "device.py").write_text(program())
    log = Log()
    async with local_broker("embedded", directory=tmp_path) as broker:
        config = AggregatorConfig(
            connector=connector(broker.endpoint),
            federation="pumps",
            store=tmp_path / "store",
            initial={"w": np.zeros(3, np.float32)},
            strategy=fedasync(1.0, norm_limit=None, release_floor=1, form="delta", bounded=False, plan=Plan()),
            on_event=log,
        )
        server = Aggregator(config)
        device = await asyncio.create_subprocess_exec(
            sys.executable, str(tmp_path / "device.py"), "127.0.0.1", str(broker.endpoint.port), "pumps", "board-1"
        )
        try:
            async with serving(server):
                await log.until(lambda: len(log.of("update", verdict="accepted")) >= 12)
                assert not [event for event in log.of("update") if event["verdict"] != "accepted"]
                assert server.core.version >= 10
                assert float(np.abs(server.model.parameters()["w"] - [2, -1, 0.5]).max()) < 1.5
        finally:
            device.kill()
            await device.wait()
