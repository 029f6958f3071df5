"""The page's server answers its own page and no other: by Host, Origin and token, over real HTTP messages."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import pairwise
from typing import Any

import httpx
import pytest

from midge.broker.mqtt.connection import Limits
from midge.dashboard.actions import Action, ActionRequest, Refused
from midge.dashboard.server import FILES, LivePage
from midge.dashboard.state import FederationState
from midge.wire.topics import Topics
from tests.dashboard.test_state import NOW, Fed

TOKEN = "a-token-of-28-characters-abc"
HERE = "http://127.0.0.1:8080"


def with_token(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class Client:
    """Requests to an application, one at a time."""

    def __init__(self, page: LivePage) -> None:
        self._page = page

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self._page.app)
            async with httpx.AsyncClient(
                transport=transport, base_url=HERE, cookies=how.pop("cookies", None)
            ) as client:
                return await client.request(method, path, **how)

        return asyncio.run(once())

    def get(self, path: str, **how: Any) -> httpx.Response:
        return self.request("GET", path, **how)

    def post(self, path: str, **how: Any) -> httpx.Response:
        return self.request("POST", path, **how)


class Served:
    """A page with two actions that note what they are asked."""

    def __init__(self, token: str = TOKEN, names: tuple[str, ...] = ()) -> None:
        self.asked: list[ActionRequest] = []
        self.fed = Fed()
        self.fed.begin()

        async def note(asked: ActionRequest) -> str:
            self.asked.append(asked)
            return "done"

        async def refuse(asked: ActionRequest) -> str:
            raise Refused("the disk is full")

        actions = (
            Action("pause", "Pause", "federation", note, asks="Reason"),
            Action("withdraw", "Withdraw", "device", note),
            Action("explain", "Explain", "update", note),
            Action("rollback", "Roll back", "federation", refuse),
        )
        self.page = LivePage(self.fed.state, actions, token, names, wall=lambda: NOW)
        self.client = Client(self.page)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr("midge.dashboard.server._WRONG_TOKEN", 0.0)
    return Served()


# ----------------------------------------------------------------------- who may talk to it


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:9000", "[::1]:8080", "192.168.1.7:80", "LOCALHOST"])
def test_it_is_served_under_addresses_and_localhost(served: Served, host: str) -> None:
    assert served.client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", ""]
)
@pytest.mark.parametrize("path", ["/", "/events", "/devices/pump-0001", "/page.js"])
def test_a_name_that_another_site_lets_resolve_to_this_address_gets_nothing(
    served: Served, host: str, path: str
) -> None:
    """DNS rebinding. Seen to fail without the check of the Host: the other site's page read all devices."""
    answer = served.client.get(path, headers={"host": host})
    assert answer.status_code == 403 and b"pump" not in answer.content


def test_a_name_that_the_operator_gave_is_served() -> None:
    served = Served(names=("Farm.example",))
    assert served.client.get("/", headers={"host": "farm.example:8080"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_sites_page_can_ask_for_nothing_even_with_the_token(served: Served, headers: dict[str, str]) -> None:
    answer = served.client.post("/actions/pause", json={}, headers={**with_token(), **headers})
    assert answer.status_code == 403 and served.asked == []


def test_its_own_page_is_answered(served: Served) -> None:
    own = {"origin": HERE, "sec-fetch-site": "same-origin"}
    answer = served.client.post("/actions/pause", json={"text": " the\nwinter "}, headers={**with_token(), **own})
    assert answer.json() == {"said": "done"} and served.asked == [
        ActionRequest(text="the\N{REPLACEMENT CHARACTER}winter")
    ]
    assert served.fed.state.events[-1]["text"] == "done"


# ------------------------------------------------------------------------------------ the token


@pytest.mark.parametrize("headers", [{}, with_token("wrong"), with_token(""), with_token(TOKEN[:-1]), with_token("ü")])
def test_without_the_token_nothing_is_done(served: Served, headers: dict[str, str]) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    for path in ("/token", "/actions/pause", "/actions/withdraw", "/actions/none"):
        assert served.client.post(path, json={"device": "pump-0001"}, headers=encoded).status_code == 401
    assert served.asked == []


@pytest.mark.parametrize("where", [f"/actions/pause?token={TOKEN}", f"/actions/pause?authorization=Bearer+{TOKEN}"])
def test_a_token_in_the_address_counts_for_nothing(served: Served, where: str) -> None:
    assert served.client.post(where, json={}).status_code == 401
    assert served.client.post("/actions/pause", json={"token": TOKEN}).status_code == 401
    assert served.client.post("/actions/pause", json={}, cookies={"token": TOKEN}).status_code == 401


def test_a_page_without_a_token_is_read_only_and_shows_no_actions() -> None:
    served = Served(token="")
    for headers in ({}, with_token(""), with_token(TOKEN)):
        assert served.client.post("/actions/pause", json={}, headers=headers).status_code == 403
    assert served.asked == []


def test_the_right_token_is_taken(served: Served) -> None:
    assert served.client.post("/token", headers=with_token()).status_code == 204


def test_actions_get_valid_names_and_numbers_only(served: Served) -> None:
    def status(action: str, said: Any) -> int:
        return int(served.client.post(f"/actions/{action}", json=said, headers=with_token()).status_code)

    wrongs: list[Any] = [{}, {"device": "../../etc"}, {"device": 7}, {"device": "a/b"}, [], "a"]
    for wrong in (*wrongs, {"device": "a", "text": 7}):
        assert status("withdraw", wrong) == 400
    for seq in (0, -1, 2**63, "1", 1.5):
        assert status("explain", {"device": "a", "seq": seq}) == 400
    assert served.asked == []
    assert status("explain", {"device": "a", "seq": 7}) == 200 and served.asked == [ActionRequest("a", 7)]
    assert status("none", {}) == 404
    answer = served.client.post("/actions/pause", content=b"x" * 10_000, headers=with_token())
    assert answer.status_code == 400
    assert served.client.post("/actions/pause", content=b"[" * 4000, headers=with_token()).status_code == 400


def test_an_action_that_cannot_be_carried_out_says_why(served: Served) -> None:
    answer = served.client.post("/actions/rollback", json={}, headers=with_token())
    assert (answer.status_code, answer.json()) == (409, {"error": "the disk is full"})


def test_actions_are_no_links(served: Served) -> None:
    assert served.client.get("/actions/pause", headers=with_token()).status_code == 405 and served.asked == []


# ------------------------------------------------------------------------------- what is served


@pytest.mark.parametrize("path", ["/", "/page.js", "/uPlot.js", "/devices/pump-0001", "/none"])
def test_every_answer_forbids_foreign_scripts_frames_and_readers(served: Served, path: str) -> None:
    headers = served.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "access-control-allow-origin" not in headers


def test_the_page_is_small_and_needs_nothing_from_elsewhere(served: Served) -> None:
    """120 KB, as they travel: there is no build step, and nothing is compressed."""
    total = 0
    for path, (name, _) in FILES.items():
        answer = served.client.get(f"/{path}")
        assert answer.status_code == 200
        total += len(answer.content)
        if not name.startswith("uPlot"):
            told = answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in told and "https:" not in told and "innerHTML" not in told
    assert total <= 120_000
    assert {entry.name for entry in (files("midge.dashboard") / "static").iterdir()} == {
        name for name, _ in FILES.values()
    }


def test_the_curves_are_uplots_own_release_with_its_licence(served: Served) -> None:
    """The files of uplot-1.6.32.tgz, whose SHA-512 the npm registry has as KIMVnG68…QIw==."""
    from hashlib import sha256

    script = served.client.get("/uPlot.js").content
    assert sha256(script).hexdigest() == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert "Permission is hereby granted" in served.client.get("/uPlot.LICENSE").text


def test_one_device_is_shown_and_unknown_ones_are_not_found(served: Served) -> None:
    assert served.client.get("/devices/pump-0001").json()["capabilities"]["cores"] == 4
    assert served.client.get("/devices/none").status_code == 404
    assert served.client.get("/devices/..%2F..").status_code == 404


# ----------------------------------------------------------------------------- the stream of events


@asynccontextmanager
async def ticking(page: LivePage) -> AsyncIterator[None]:
    task = asyncio.create_task(page.tick())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Stream:
    """The body of `/events` as it is sent, read from the application itself."""

    def __init__(self, page: LivePage) -> None:
        self.sent: asyncio.Queue[bytes] = asyncio.Queue()
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/events",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "asgi": {"version": "3.0"},
        }
        self.gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await self.sent.put(message["body"])

        app: Callable[..., Any] = page.app
        self.task = asyncio.create_task(app(scope, receive, send))

    async def next(self) -> tuple[str, dict[str, Any]]:
        text = (await self.sent.get()).decode()
        name, _, data = text.removeprefix("event: ").partition("\ndata: ")
        return name, json.loads(data)

    async def read_all(self) -> None:
        while True:
            await self.sent.get()

    async def leave(self) -> None:
        self.gone.set()
        await self.task


@pytest.mark.virtual
async def test_a_page_gets_a_snapshot_and_then_at_most_a_delta_a_second() -> None:
    """A burst of changes is one delta. On the virtual clock."""
    fed = Fed(100)
    fed.begin()
    page = LivePage(fed.state, wall=lambda: NOW)
    loop = asyncio.get_running_loop()
    async with ticking(page):
        await asyncio.sleep(3)
        stream = Stream(page)
        name, snapshot = await stream.next()
        assert name == "snapshot" and len(snapshot["rows"]) == 100 and page.watched
        times = []
        for burst in range(5):
            for device in fed.messages.names:
                fed.hello(device, NOW + 10 * burst + 1)
            name, delta = await stream.next()
            assert name == "delta" and len(delta["rows"]) == 100
            times.append(loop.time())
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))
        began = loop.time()
        assert (await stream.next())[1].keys() == {"now"} and loop.time() - began > 10, "what is quiet sends little"
        await stream.leave()
        assert not page.watched


@pytest.mark.virtual
async def test_a_page_that_reads_nothing_is_left_and_holds_no_memory() -> None:
    fed = Fed(10)
    fed.begin()
    page = LivePage(fed.state, wall=lambda: NOW)
    async with ticking(page):
        await asyncio.sleep(2)
        stream = Stream(page)
        stream.sent = asyncio.Queue(1)
        for burst in range(40):
            fed.hello("pump-0001", NOW + 5 * burst)
            await asyncio.sleep(1)
        assert not page.watched
        reading = asyncio.create_task(stream.read_all())
        await stream.task
        reading.cancel()


@pytest.mark.virtual
async def test_too_many_pages_are_told_to_come_later() -> None:
    page = LivePage(FederationState(Topics("f"), NOW), wall=lambda: NOW)
    page.state.connected(Limits(5), NOW)
    streams = [Stream(page) for _ in range(16)]
    for stream in streams:
        await stream.next()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(page.app), base_url=HERE) as client:
        assert (await client.get("/events")).status_code == 503
    for stream in streams:
        await stream.leave()
