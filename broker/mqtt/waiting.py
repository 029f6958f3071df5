"""Waiting for messages and events, with a limit of the time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from midge.broker.mqtt.connection import Connection, Delivery

Batches = Callable[[float], Awaitable[list[Delivery]]]
"""Waits for messages, at most this number of seconds; returns all that have arrived by then."""


async def happened(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, for this long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def done_before(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do some work, and cancel it as soon as an event is set; return whether it is done."""
    setting, working = asyncio.create_task(event.wait()), asyncio.create_task(work)
    try:
        await asyncio.wait({setting, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        return working.done()
    finally:
        for task in (setting, working):
            task.cancel()
        await asyncio.gather(setting, working, return_exceptions=True)


@asynccontextmanager
async def batches(connection: Connection, stop: asyncio.Event) -> AsyncIterator[Batches]:
    """Read a connection's messages in batches. A wait ends at once when `stop` is set.

    Raises:
        ConnectionLost: the connection ended; raised by a wait.
    """
    deliveries = aiter(connection.messages())
    stopping = asyncio.create_task(stop.wait())
    arriving: asyncio.Task[Delivery] | None = None

    async def batch(seconds: float) -> list[Delivery]:
        nonlocal arriving
        # Kept over a timeout: cancelling it would end the iterator.
        arriving = arriving or asyncio.create_task(anext(deliveries))  # type: ignore[arg-type]
        await asyncio.wait({arriving, stopping}, timeout=seconds, return_when="FIRST_COMPLETED")
        if not arriving.done():
            return []
        first, arriving = arriving.result(), None
        return [first, *connection.waiting()]

    try:
        yield batch
    finally:
        left = [task for task in (stopping, arriving) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def heed_cancellation(error: Exception) -> None:
    """Raise CancelledError if the current task was cancelled: a group of tasks raises an error of theirs in its place.

    Args:
        error: what was raised.
    """
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError from error
