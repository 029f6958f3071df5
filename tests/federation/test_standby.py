"""A standby on real parts: two processes, a real broker, kills, stops and cuts; the ledger says what was lost."""

import signal
from pathlib import Path

import pytest

from tests.federation.pair import pair


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_standby_takes_over_from_one_that_is_killed(tmp_path: Path, sync: bool) -> None:
    async with pair(tmp_path / "f", sync=sync) as cast:
        await cast.serve_and_follow()
        await cast.devices.start()
        await cast.accepted("one", 10)
        assert await cast.hosts["one"].kill()
        await cast.accepted("two")
        found = await cast.settled("two")
    assert found.doubled == 0
    if sync:
        assert found.accepted >= 3 * 40
        assert found.lost == 0


SIGNALS = signal
