"""Who may talk to the page's server: by the Host and Origin of a request, and by a token for actions.

A page of another site can make a browser send requests here. Under a name of that site's own, which resolves to this
address (DNS rebinding), it could read the answers too: so the Host must be an address, `localhost` or a name that the
operator gave. A request with another Origin is refused. The token comes in a header, which no other site can set, and
never in a URL, which would end in logs and histories.
"""

import hmac
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """Wraps an ASGI application: refuses foreign hosts and origins, and adds the security headers.

    Args:
        app: the application.
        names: host names under which the page is reached, beside addresses and `localhost`.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app, self._names = app, {name.lower() for name in names} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(each for each in more if each[0] not in there)]
            await send(message)

        if why := self.refusal(Headers(scope=scope)):
            await PlainTextResponse(why + "\n", 403)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def refusal(self, headers: Headers) -> str:
        """Why a request with these headers is refused; empty if it is not."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            return "This page is not served under that name: use its address, or start it with --page-name NAME."
        if origins and origins not in ([f"http://{hosts[0]}"], [f"https://{hosts[0]}"]):
            return "This request comes from another site's page."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "This request comes from another site's page."
        return ""

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ip_address(name)
        except ValueError:
            return False
        return True


def holds(headers: Headers, token: str) -> bool:
    """Whether a request holds the token; compared in constant time."""
    given = headers.get("authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())
