"""The page's web application: its files, what it shows as server-sent events, one device, and actions.

Server-sent events: WHATWG HTML, section 9.2. The first event is a snapshot, each later one a delta; all pages get the
same bytes, at most once a second.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from midge.dashboard.actions import Action, ActionRequest, Refused
from midge.dashboard.guard import Guard, holds
from midge.dashboard.state import FederationState
from midge.wire.inert import inert
from midge.wire.topics import is_name

FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "table.js": ("table.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "uPlot.js": ("uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "uPlot.css": ("uPlot.min.css", "text/css; charset=utf-8"),
    "uPlot.LICENSE": ("uPlot.LICENSE", "text/plain; charset=utf-8"),
}
"""All that a browser loads, by path."""
TICK: Final = 1.0
"""Least seconds between two events to a page."""
_PAGES: Final = 16
"""Pages that are open at a time."""
_BEHIND: Final = 8
"""Events that wait for a slow page before it has to begin again."""
_SILENCE: Final = 15
"""Ticks without a change after which a page is sent the time."""
_LONGEST_BODY: Final = 4096
"""Bytes of a request for an action."""
_WRONG_TOKEN: Final = 1.0
"""Seconds before a wrong token is answered; one at a time."""


class LivePage:
    """Serves one federation's state to browsers.

    Args:
        state: what is shown.
        actions: what an operator can do.
        token: allows actions; empty allows none.
        names: host names under which the page is reached.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        state: FederationState,
        actions: Sequence[Action] = (),
        token: str = "",
        names: Sequence[str] = (),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.state, self._token, self._wall = state, token, wall
        self._actions: Mapping[str, Action] = {action.name: action for action in actions}
        self._pages: set[asyncio.Queue[bytes | None]] = set()
        self._guessing = asyncio.Lock()
        folder = files("midge.dashboard") / "static"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        routes = [Route(f"/{path}", self._file) for path in FILES]
        routes += [
            Route("/events", self._events),
            Route("/devices/{name}", self._device),
            Route("/token", self._check, methods=["POST"]),
            Route("/actions/{name}", self._act, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, middleware=[Middleware(Guard, names=names)])

    @property
    def watched(self) -> bool:
        """Whether a page is open."""
        return bool(self._pages)

    # ------------------------------------------------------------------- what is shown

    async def tick(self) -> None:
        """Send what has changed, once a second, until cancelled."""
        quiet = 0
        while True:
            await asyncio.sleep(TICK)
            now = self._wall()
            self.state.tick(now)
            delta = self.state.delta(now)
            quiet = quiet + 1 if len(delta) == 1 else 0
            if self._pages and quiet % _SILENCE == 0:
                self._send(_event("delta", delta))

    def _send(self, event: bytes | None) -> None:
        for page in list(self._pages):
            try:
                page.put_nowait(event)
            except asyncio.QueueFull:  # it connects again, and begins with a snapshot
                self._pages.discard(page)
                while not page.empty():
                    page.get_nowait()
                page.put_nowait(None)

    def close(self) -> None:
        """End all streams."""
        self._send(None)

    async def _file(self, request: HttpRequest) -> Response:
        content, kind = self._files[request.url.path[1:]]
        return Response(content, headers={"content-type": kind})

    async def _events(self, _: HttpRequest) -> Response:
        if len(self._pages) >= _PAGES:
            return PlainTextResponse("Too many pages are open.\n", 503, {"retry-after": "10"})
        page: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        self._pages.add(page)
        actions = [action.packed() for action in self._actions.values()] if self._token else []
        snapshot = {**self.state.snapshot(self._wall()), "actions": actions}

        async def stream() -> AsyncGenerator[bytes, None]:
            try:
                yield _event("snapshot", snapshot)
                while (event := await page.get()) is not None:
                    yield event
            finally:
                self._pages.discard(page)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _device(self, request: HttpRequest) -> Response:
        name = request.path_params["name"]
        found = self.state.device(name) if is_name(name) else None
        return JSONResponse({"error": "There is no such device."}, 404) if found is None else JSONResponse(found)

    # ------------------------------------------------------------------------- actions

    async def _refused(self, request: HttpRequest) -> Response | None:
        """The answer to a request without the token; None if it has it."""
        if not self._token:
            return JSONResponse({"error": "This page is read-only."}, 403)
        if holds(request.headers, self._token):
            return None
        async with self._guessing:
            await asyncio.sleep(_WRONG_TOKEN)
        return JSONResponse({"error": "That is not the token."}, 401)

    async def _check(self, request: HttpRequest) -> Response:
        return await self._refused(request) or Response(status_code=204)

    async def _act(self, request: HttpRequest) -> Response:
        if (refused := await self._refused(request)) is not None:
            return refused
        action = self._actions.get(request.path_params["name"])
        if action is None:
            return JSONResponse({"error": "There is no such action."}, 404)
        asked = _asked(action, await _body(request))
        if asked is None:
            return JSONResponse({"error": "This request is not understood."}, 400)
        try:
            said = await action.carry_out(asked)
        except Refused as error:
            return JSONResponse({"error": inert(str(error))}, 409)
        if action.scope != "update":
            self.state.tell("action", said, self._wall())
        return JSONResponse({"said": said})


async def _body(request: HttpRequest) -> Any:
    """The JSON of a request, or None; not more of it is read than an action needs."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > _LONGEST_BODY:
            return None
    with suppress(ValueError, RecursionError):
        return json.loads(found)
    return None


def _asked(action: Action, said: Any) -> ActionRequest | None:
    """The request for an action; None if it is none."""
    if not isinstance(said, dict):
        return None
    device, seq, text = said.get("device", ""), said.get("seq", 0), said.get("text", "")
    if not isinstance(device, str) or not isinstance(seq, int) or not isinstance(text, str):
        return None
    if action.scope != "federation" and not is_name(device):
        return None
    if action.scope == "update" and not 1 <= seq < 2**63:
        return None
    return ActionRequest(device, seq, inert(text.strip())[:300])


def _event(name: str, found: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(found, separators=(',', ':'))}\n\n".encode()
