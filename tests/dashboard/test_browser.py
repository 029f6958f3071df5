"""The page in a real browser: headless Chromium looks at a real demo, and at a federation of messages."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.connection import Options
from midge.dashboard.service import PageService
from midge.wire import frames
from midge.wire.messages import DeviceState, HealthState, Hello
from midge.wire.topics import Topics
from tests import needs
from tests.dashboard.synthetic import SyntheticFederation
from tests.waiting import LAST_RESORT, until

TOKEN = "a-token-of-the-demo-0123456789"
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
LONG = 1000 * LAST_RESORT
"""Milliseconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = needs.program("chromium", needs.CHROMIUM)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page of a demo that runs."""
    directory = tmp_path_factory.mktemp("demo")
    token = directory / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    command = [sys.executable, "-m", "midge", "demo", "--json", "--seconds", "600", "--page", "127.0.0.1:0"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with (directory / "errors").open("w") as errors, subprocess.Popen(
        [*command, "--page-token-file", str(token)], cwd=directory, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield json.loads(line)["page"]
            reading = threading.Thread(target=process.stdout.read)
            reading.start()
        finally:
            process.terminate()
    assert TOKEN not in (directory / "errors").read_text(), "a token of a file is printed nowhere"


class Synthetic:
    """A federation of messages over a real broker, with its page, in a thread."""

    def __init__(self, directory: Path) -> None:
        self.messages = SyntheticFederation(Topics("pumps"), 300, state=HealthState.LEARNING)
        self.url = ""
        self._directory, self._end = directory, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._thread.start()
        until("the page of a federation of messages", lambda: self.url)

    async def _live(self) -> None:
        async with local_broker("embedded", directory=self._directory) as broker:
            connect = connector(broker.endpoint)
            async with connect(Options("synthetic")) as connection:
                hostile = Hello(state=DeviceState.READY, outbox=9, waits=HOSTILE, capabilities={"<b>link</b>": HOSTILE})
                await connection.publish(Topics("pumps").status("hostile"), frames.encode(hostile), retain=True)
                await self.messages.begin(connection)
                living = asyncio.create_task(self.messages.live(connection, every=10))
                page = PageService(Topics("pumps"), ("127.0.0.1", 0))
                page.start()
                page.observe(connect)
                self.url = page.url
                await asyncio.to_thread(self._end.wait)
                page.stop()
                living.cancel()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Synthetic]:
    found = Synthetic(tmp_path_factory.mktemp("broker"))
    yield found
    found.stop()


class Visit:
    """A page in a browser of its own, and what went wrong in it."""

    def __init__(self, browser: Browser, url: str, **how: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LONG)
        self.wrong: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))

        def see(route: Route) -> None:
            if not route.request.url.startswith(url.rstrip("/")):
                self.foreign.append(route.request.url)
            route.continue_()

        self.page.route("**/*", see)
        self.page.goto(url)
        expect(self.page.locator(".row").first).to_be_visible(timeout=LONG)

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            refused = "Failed to load resource: the server responded with a status of 4"  # meant to be, where it is
            assert [each for each in self.wrong if refused not in each] == [] and self.foreign == []

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def in_order(page: Page, of: str) -> list[str]:
    """What a function finds in the rows in view, from top to bottom."""
    rows = "rows.toSorted((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)"
    found: list[str] = page.locator(".row").evaluate_all(f"(rows) => {rows}.map({of})")
    return found


def names(page: Page) -> list[str]:
    """The devices in view, from top to bottom."""
    return in_order(page, """(row) => row.querySelector("a").textContent""")


# ------------------------------------------------------------------------------------- the demo


def test_the_page_shows_a_demo_that_learns(browser: Browser, demo: str) -> None:
    with Visit(browser, demo) as page:
        expect(page.locator("#federation")).to_have_text("demo")
        expect(page.locator("#health-word")).to_have_text("learning", timeout=LONG)
        score = """parseFloat(document.querySelector("#facts .lead").textContent)"""
        until("the demo learns", lambda: page.evaluate(score) > 85)
        tile = (
            """[...document.querySelectorAll("#facts div")].find((each) => each.firstChild.textContent === "Version")"""
        )
        version = f"Number({tile}.children[1].textContent)"
        before = page.evaluate(version)
        until("new versions are shown", lambda: page.evaluate(version) > before + 3)
        expect(page.locator("#learning .plot")).to_have_attribute(
            "aria-label", re.compile(r"the aggregator's evaluation \d"), timeout=LONG
        )
        assert page.locator("canvas").count() == 5
        assert page.locator("#verdicts .accepted").count() == 1


def test_a_page_without_the_token_does_nothing_and_with_it_pauses_resumes_and_explains(
    browser: Browser, demo: str
) -> None:
    with Visit(browser, demo) as page:
        expect(page.locator("#federation-actions button")).to_have_count(0)
        assert page.evaluate("""fetch("actions/pause", {method: "POST", body: "{}"}).then((a) => a.status)""") == 401
        page.locator("#operate").click()
        page.locator("#token-text").fill("not-the-token-at-all")
        page.locator("#token .main").click()
        expect(page.locator("#token-wrong")).to_have_text("That is not the token.", timeout=LONG)
        page.locator("#token-text").fill(TOKEN)
        page.keyboard.press("Enter")
        page.locator("#federation-actions button", has_text="Pause").click()
        page.locator("#ask-more").fill("the winter")
        page.locator("#ask .main").click()
        expect(page.locator("#health-word")).to_have_text("paused", timeout=LONG)
        expect(page.locator("#why")).to_contain_text("the winter")
        page.locator("#federation-actions button", has_text="Resume").click()
        page.locator("#ask .main").click()
        expect(page.locator("#health-word")).to_have_text("learning", timeout=LONG)
        page.locator('.head button[data-key="updates"]').click()
        # Rows have no order in the document, and the first may be of a device without a receipt.
        columns = """[...document.querySelectorAll(".head button")].map((button) => button.dataset.key)"""
        updates = f"""(row) => row.children[{columns}.indexOf("updates")].textContent"""
        until("a device with updates is on top", lambda: int(in_order(page, updates)[0]) > 0)
        page.locator(".row a").get_by_text(names(page)[0], exact=True).click()
        page.locator("#device button", has_text="Explain").first.click(timeout=LONG)
        expect(page.locator("#told-text")).to_contain_text("trained from version", timeout=LONG)
        page.locator("#told .main").click()
        assert TOKEN not in page.url and page.evaluate("localStorage.length + document.cookie.length") == 0
        assert page.evaluate("""sessionStorage.getItem("midge-token")""") == TOKEN
        page.locator("#operate").click()
        assert page.evaluate("sessionStorage.length") == 0
        expect(page.locator("#federation-actions button")).to_have_count(0)


# ---------------------------------------------------------------------------------------- the table


def test_the_table_sorts_by_buttons_and_filters_by_text_and_state(browser: Browser, synthetic: Synthetic) -> None:
    with Visit(browser, synthetic.url) as page:
        expect(page.locator("#shown")).to_have_text("301 devices", timeout=LONG)
        page.locator('.head button[data-key="score"]').wait_for(timeout=LONG)
        assert names(page)[:3] == ["hostile", "pump-0001", "pump-0002"]
        page.locator('.head button[data-key="name"]').click()
        assert names(page)[0] == "pump-0300"
        page.locator('.head button[data-key="score"]').click()
        expect(page.locator('[aria-sort="descending"]')).to_contain_text("Own score")
        cells = """[...row.children].map((cell) => cell.textContent).find((text) => /^\\d+\\.\\d %$/.test(text))"""
        scores = [float(text.split()[0]) for text in in_order(page, f"(row) => {cells} ?? '0'")]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[10] > 0
        for direction in ("ascending", "descending"):
            page.locator('.head button[data-key="why"]').click()
            reasons = in_order(page, "(row) => row.lastElementChild.textContent")
            given = [reason for reason in reasons if reason]
            assert given and HOSTILE in given and reasons == given + [""] * (len(reasons) - len(given)), (
                "missing is last"
            )
            assert given == sorted(given, reverse=direction == "descending")
        page.locator("#find").fill("pump-01")
        expect(page.locator("#shown")).to_have_text("100 of 301 devices")
        page.locator("#chips button", has_text="sleeping").click()
        expect(page.locator("#shown")).not_to_have_text("100 of 301 devices")
        assert set(page.locator(".row .state").all_text_contents()) == {"sleeping"}
        page.locator("#find").fill("no such device")
        expect(page.locator(".empty")).to_have_text("No device is like that.")


def test_only_the_rows_in_view_are_in_the_document_and_scrolling_shows_the_others(
    browser: Browser, synthetic: Synthetic
) -> None:
    with Visit(browser, synthetic.url) as page:
        expect(page.locator("#shown")).to_have_text("301 devices", timeout=LONG)
        assert page.locator(".row").count() < 60
        page.evaluate("""document.getElementById("table").scrollTop = 1e9""")
        expect(page.locator(".row a", has_text="pump-0300")).to_be_visible()
        assert page.locator(".row").count() < 60
        assert page.locator("#table").get_attribute("aria-rowcount") == "302"


def test_what_a_device_says_is_text_and_no_markup(browser: Browser, synthetic: Synthetic) -> None:
    with Visit(browser, synthetic.url) as page:
        page.locator("#find").fill("hostile")
        expect(page.locator("#shown")).to_have_text("1 of 301 devices", timeout=LONG)
        page.locator(".row a").click()
        expect(page.locator("#device .why")).to_have_text(HOSTILE)
        expect(page.locator("#device .list", has_text="<b>link</b>")).to_contain_text(HOSTILE)
        assert page.locator("img").count() == 0 and page.title().endswith("learning")
        page.goto(f"{synthetic.url}#device/%3Cimg%20src=x%20onerror=alert(1)%3E")
        expect(page.locator("#device .empty")).to_contain_text("<img src=x onerror=alert(1)>")


def test_an_alarm_comes_to_the_top_and_leaves(browser: Browser, synthetic: Synthetic) -> None:
    with Visit(browser, synthetic.url) as page:
        expect(page.locator(".alarm")).to_have_count(0)
        synthetic.messages.alarms, synthetic.messages.state = ("Refused every time: pump-0042",), HealthState.STALLED
        expect(page.locator("#alarms .alarm")).to_have_count(2, timeout=LONG)
        expect(page.locator("#health-word")).to_have_text("stalled")
        assert page.title().startswith("⚠")
        synthetic.messages.alarms, synthetic.messages.state = (), HealthState.LEARNING
        expect(page.locator("#alarms .alarm")).to_have_count(0, timeout=LONG)


# -------------------------------------------------------------------- screens, colours, keyboard


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_telephone(browser: Browser, synthetic: Synthetic, width: int) -> None:
    visit = Visit(browser, synthetic.url, viewport={"width": width, "height": 800})
    with visit as page:
        page.locator("#bytes .keys b", has_text="kB").first.wait_for(timeout=LONG)
        assert visit.overflow() <= 0
        assert page.evaluate("""(t => t.scrollWidth - t.clientWidth)(document.getElementById("table"))""") <= 0
        if width < 700:
            page.locator("#sort").select_option("refused")
            expect(page.locator(".head")).to_contain_text("Refused")
        page.locator(".row a").first.click()
        expect(page.locator("#device h1")).to_be_visible()
        assert visit.overflow() <= 0


def test_it_is_dark_where_the_system_is(browser: Browser, synthetic: Synthetic) -> None:
    def colours(scheme: str) -> tuple[int, int]:
        with Visit(browser, synthetic.url, color_scheme=scheme) as page:
            found: list[str] = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        paper, ink = (sum(map(int, each[4:-1].split(","))) for each in found)
        return paper, ink

    (paper, ink), (dark_paper, dark_ink) = colours("light"), colours("dark")
    assert paper - ink > 600 and dark_ink - dark_paper > 600


def test_it_stands_still_for_those_who_want_that(browser: Browser, synthetic: Synthetic) -> None:
    def duration(motion: str) -> str:
        with Visit(browser, synthetic.url, reduced_motion=motion) as page:
            return str(page.evaluate("""getComputedStyle(document.querySelector("button")).transitionDuration"""))

    assert duration("reduce") == "0s" and duration("no-preference") != "0s"


def test_everything_is_reached_by_keyboard(browser: Browser, synthetic: Synthetic) -> None:
    with Visit(browser, synthetic.url) as page:
        expect(page.locator("#shown")).to_have_text("301 devices", timeout=LONG)
        page.locator('.head button[data-key="name"]').focus()
        page.keyboard.press("Enter")
        expect(page.locator('[aria-sort="descending"]')).to_contain_text("Device")
        focused = "document.activeElement.dataset"
        assert page.evaluate(f"{focused}.key") == "name", "the button that was pressed keeps the focus"
        page.locator(".row a[tabindex='0']").focus()
        assert page.evaluate(f"{focused}.name") == "pump-0300"
        for key in ("ArrowDown", "ArrowDown", "ArrowUp", "PageDown", "Home", "ArrowDown"):
            page.keyboard.press(key)
        assert page.evaluate(f"{focused}.name") == "pump-0299"
        page.keyboard.press("End")
        assert page.evaluate(f"{focused}.name") == "hostile"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("#device h1")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        page.go_back()
        expect(page.locator("#overview")).to_be_visible()
