"""The page as a service in a thread with a loop of its own: it slows nothing down but by the processor."""

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence

import uvicorn

from midge.broker.mqtt.connection import Connector
from midge.dashboard.actions import Action
from midge.dashboard.observer import FederationObserver
from midge.dashboard.server import LivePage
from midge.dashboard.state import FederationState
from midge.wire.topics import Topics

_CONNECTIONS = 64
"""HTTP connections at a time."""


def new_token() -> str:
    """A token of 192 random bits."""
    return secrets.token_urlsafe(24)


class PageService:
    """Observes a federation and serves its page.

    Args:
        topics: of the federation.
        place: host and port; port 0 takes a free one.
        actions: what an operator can do.
        token: allows actions.
        names: host names under which the page is reached.

    Raises:
        OSError: the address cannot be used.
    """

    def __init__(
        self,
        topics: Topics,
        place: tuple[str, int],
        *,
        actions: Sequence[Action] = (),
        token: str = "",
        names: Sequence[str] = (),
    ) -> None:
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self._socket = socket.create_server(place, family=family)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}/" if family == socket.AF_INET6 else f"http://{host}:{port}/"
        self.token = token
        self.state = FederationState(topics, time.time())
        self._page = LivePage(self.state, actions, token, names)
        config = uvicorn.Config(
            self._page.app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,  # its own would close the handlers of the process
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._observing: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="page", daemon=True)

    def start(self) -> None:
        """Serve the page, which waits for `observe`."""
        self._thread.start()
        self._begun.wait()

    def observe(self, connect: Connector) -> None:
        """Observe the federation at a broker."""

        def begin() -> None:
            observer = FederationObserver(self.state, connect, lambda: self._page.watched)
            self._observing = asyncio.create_task(observer.run(), name="observe")

        self._call(begin)

    def end(self, why: str) -> None:
        """Observe no longer; the page goes on to show what it has, and why."""

        def leave() -> None:
            self.state.ended(why)
            if self._observing is not None:
                self._observing.cancel()

        self._call(leave)

    def stop(self) -> None:
        """End the page."""

        def leave() -> None:
            self._server.should_exit = True
            self._page.close()

        self._call(leave)
        self._thread.join(5)

    def _call(self, what: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        ticking = asyncio.create_task(self._page.tick(), name="tick")
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            tasks = [task for task in (ticking, self._observing) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
