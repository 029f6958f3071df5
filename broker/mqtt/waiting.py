"""Waiting for messages and events, with a limit of the time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from midge.broker.mqtt.connection import BrokerError, Connection, Delivery

Batches = Callable[[float], Awaitable[list[Delivery]]]
"""Waits for messages, at most this number of seconds; returns all that have arrived by then."""
UNSAID = "The broker did not acknowledge our last status."


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
        await _end(setting, working)


async def acknowledged_or_aborted(connection: Connection, publishing: Awaitable[bool | None], seconds: float) -> None:
    """Wait until a last status is acknowledged; otherwise end the connection, so that the broker publishes the will.

    Args:
        connection: on which it is published.
        publishing: the publication; False if it was not acknowledged.
        seconds: to wait.
    """
    acknowledged = False
    try:
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(seconds):
                acknowledged = await publishing is not False
    finally:  # also if it is cancelled again
        if not acknowledged:
            connection.abort(UNSAID)


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
        await _end(*(task for task in (stopping, arriving) if task is not None))


def heed_cancellation(error: Exception) -> None:
    """Raise CancelledError if the current task was cancelled: a group of tasks raises an error of theirs in its place.

    Args:
        error: what was raised.
    """
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError from error


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
