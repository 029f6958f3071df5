"""The chaos loop, for as long as a test may take, and its parts."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from tests import needs
from tests.harness.chaos import Chaos, Play
from tests.harness.processes import ROOT
from tests.harness.proxy import Proxy, Weather
from tests.waiting import LAST_RESORT, eventually

pytestmark = pytest.mark.alone

SECONDS = 25.0


def processes_with(word: str) -> list[str]:
    """Command lines of living processes that have this word in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if word in line:
            found.append(line)
    return found


async def test_whatever_is_killed_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    outcome = await Chaos(Play(seconds=SECONDS, seed=7, drain=LAST_RESORT), tmp_path).run()
    assert not outcome.crashes, "\n".join(outcome.crashes)
    assert outcome.good, outcome
    assert outcome.kills and outcome.accepted >= outcome.updates > 0, outcome
    assert not processes_with(str(tmp_path))


@needs.setpriv
async def test_no_process_outlives_a_loop_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.harness", "--seconds", "600", "--keep", str(tmp_path)]
    loop = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        # The loop, a broker, an aggregator, and devices.
        await eventually("all processes", lambda: len(processes_with(str(tmp_path))) >= 6)
    finally:
        loop.send_signal(signal.SIGKILL)
        await loop.wait()
    await eventually("their end", lambda: not processes_with(str(tmp_path)))


# ---------------------------------------------------------------------- the network


@asynccontextmanager
async def through_a_proxy() -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to somebody who sends back what comes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1], Random(1)).serving() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            yield proxy, reader, writer
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("weather", [Weather(), Weather(slice=7, latency=0.001), Weather(bandwidth=100_000)])
async def test_bad_weather_changes_no_byte(weather: Weather) -> None:
    sent = os.urandom(3000)
    async with through_a_proxy() as (proxy, reader, writer), asyncio.timeout(LAST_RESORT):
        proxy.change(weather)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent


async def test_a_connection_is_reset_in_the_middle() -> None:
    async with through_a_proxy() as (proxy, reader, writer), asyncio.timeout(LAST_RESORT):
        proxy.change(Weather(reset_after=500, slice=100))
        writer.write(bytes(5000))
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(5000)


async def test_silence_ends_with_other_weather() -> None:
    async with through_a_proxy() as (proxy, reader, writer), asyncio.timeout(LAST_RESORT):
        proxy.change(Weather(silent=True))
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readexactly(5)
        proxy.change(Weather())
        assert await reader.readexactly(5) == b"hello"


async def test_nobody_behind_the_proxy_is_a_reset() -> None:
    async with Proxy(1, Random(1)).serving() as proxy, asyncio.timeout(LAST_RESORT):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.transport.abort()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("turns", range(3, 8))
async def test_a_proxy_that_ends_closes_a_connection_that_has_just_come(turns: int) -> None:
    async with Proxy(1, Random(1)).serving() as proxy:
        caller = socket.create_connection(("127.0.0.1", proxy.port))
        for _ in range(turns):
            await asyncio.sleep(0)
    with caller:
        caller.setblocking(False)
        async with asyncio.timeout(LAST_RESORT):
            with suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""
    gc.collect()


def test_the_weather_of_a_seed_is_the_same_again() -> None:
    assert [Weather.by_chance(Random(5)) for _ in range(9)] == [Weather.by_chance(Random(5)) for _ in range(9)]
