"""The commands that serve the page: where, to whom, and with which effect on a store."""

import asyncio
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from midge.__main__ import main
from midge.aggregator.store import device_erasure
from midge.aggregator.store.pausing import paused
from midge.broker.embedded.in_memory import Twin
from midge.broker.local.local_broker import local_broker
from midge.commands.page import live_page
from midge.commands.page_actions import actions_on
from midge.commands.parts import Problem
from midge.dashboard import actions
from midge.dashboard.actions import Action, Refused
from midge.wire.topics import Topics
from tests.federation.live import Log, aggregator, device, serving
from tests.waiting import until

TOKEN = "a-token-of-24-characters"


def options(page: str, token_file: Path | None = None) -> Namespace:
    named = None if token_file is None else str(token_file)
    return Namespace(page=page, page_token_file=named, page_name=[], json=False)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("place", ["0.0.0.0:0", "[::]:0", "farm.example:8080", "192.168.7.7:8080"])
def test_an_address_that_others_reach_needs_a_token_from_a_file(place: str) -> None:
    with (
        pytest.raises(Problem, match="can be reached from other machines: give the token"),
        live_page(options(place), Topics("f"), None),
    ):
        pass


def test_with_a_token_from_a_file_it_is_served_there_and_nothing_is_printed(
    token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live_page(options("0.0.0.0:0", token), Topics("f"), tmp_path) as page:
        assert page.url.startswith("http://0.0.0.0:")
        place = page.url.replace("0.0.0.0", "127.0.0.1")
        asked = Request(f"{place}token", method="POST", headers={"authorization": f"Bearer {TOKEN}"})
        with urlopen(asked) as answer:
            assert answer.status == 204
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err and page.url in told.out


def test_a_token_is_printed_once_where_there_are_actions_and_not_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live_page(options("127.0.0.1:0"), Topics("f"), tmp_path):
        pass
    assert capsys.readouterr().out.count("token for actions") == 1
    with live_page(options("localhost:0"), Topics("f"), None):
        pass
    assert "token" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"), [("", "is empty"), ("short", "at least 16 characters"), ("ümlaute" * 9, "ASCII")]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: Path, content: str, why: str) -> None:
    token.write_text(content)
    with pytest.raises(Problem, match=why), live_page(options("127.0.0.1:0", token), Topics("f"), None):
        pass


@pytest.mark.parametrize("place", ["8080x", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused_with_an_example(place: str) -> None:
    with pytest.raises(Problem, match=r"such as 127\.0\.0\.1:8080"), live_page(options(place), Topics("f"), None):
        pass


def test_a_port_in_use_is_refused() -> None:
    with live_page(options("127.0.0.1:0"), Topics("f"), None) as page:
        place = page.url.removeprefix("http://").rstrip("/")
        with pytest.raises(Problem, match="cannot be served"), live_page(options(place), Topics("f"), None):
            pass


def test_watch_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch"]) == 2
    assert "Say where" in capsys.readouterr().err
    assert main(["watch", "mqtt://127.0.0.1:1", "--federation", "f", "--store", "/none"]) == 2
    assert "is no store of an aggregator" in capsys.readouterr().err


# ------------------------------------------------------------------------- actions on a store


def chosen(store: Path) -> dict[str, Action]:
    return {action.name: action for action in actions_on(store)}


@pytest.mark.virtual
async def test_a_running_aggregator_follows_what_is_done_on_the_page(tmp_path: Path) -> None:
    """The page writes what the commands write, so it holds across restarts."""
    twin, log, store = Twin(), Log(), tmp_path / "store"
    do = chosen(store)
    async with serving(aggregator(twin, store, log), device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: len(log.of("update", verdict="accepted")) >= 4)
        assert await do["pause"].carry_out(actions.ActionRequest(text="the winter")) == "Paused: the winter"
        assert paused(store) == "the winter"
        await log.until(lambda: log.of("health", state="paused"))
        assert await do["resume"].carry_out(actions.ActionRequest()) == "The federation continues."
        await log.until(lambda: log.of("health", before="paused"))
        assert await do["resume"].carry_out(actions.ActionRequest()) == "It was not paused."
        assert "withdrawn" in await do["withdraw"].carry_out(actions.ActionRequest("b"))
        await log.until(lambda: not (store / device_erasure.FOLDER / "b").exists())
    assert '"what":"withdrawn"' in (store / "audit.log").read_text().replace(" ", "")


@pytest.mark.virtual
async def test_versions_are_registered_promoted_and_gone_back_to_from_the_page(tmp_path: Path) -> None:
    twin, log, store = Twin(), Log(), tmp_path / "store"
    do, nothing = chosen(store), actions.ActionRequest()
    server = aggregator(twin, store, log)
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: len(log.of("release")) >= 2)
        with pytest.raises(Refused, match="'v2' is no version"):
            await do["promote"].carry_out(actions.ActionRequest(text="v2"))
        with pytest.raises(Refused, match="99"):
            await do["promote"].carry_out(actions.ActionRequest(text="99"))
        assert "champion" in await do["register"].carry_out(nothing)  # the first one is at once in use
        before = log.of("release")[-1]["version"]
        await log.until(lambda: log.of("release")[-1]["version"] > before)
        assert "candidate" in await do["register"].carry_out(nothing)
        with pytest.raises(Refused, match="'site=north' is no version"):
            await do["promote"].carry_out(actions.ActionRequest(text="site=north"))
        assert "candidate" not in await do["rollback"].carry_out(nothing)
        before = log.of("release")[-1]["version"]
        await log.until(lambda: log.of("release")[-1]["version"] > before)
        said = await do["register"].carry_out(actions.ActionRequest(text="site=north"))
        assert "candidate" in said and said.endswith(", for 0 of 2 known devices")
        assert server.core.registry.where == {"site": "north"}
        said = await do["promote"].carry_out(nothing)
        assert "champion" in said and "candidate" not in said
        assert "champion" in await do["rollback"].carry_out(nothing)
        assert log.of("alias")[-1]["rolled_back"] is not None and log.of("alias")[-1]["by"] == "the live page"


def test_an_update_is_explained_as_by_the_command_and_a_wrong_one_says_why(tmp_path: Path) -> None:
    twin, log, store = Twin(), Log(), tmp_path / "store"

    async def learn() -> None:
        async with serving(aggregator(twin, store, log), device(twin, "a", log), device(twin, "b", log)):
            await log.until(lambda: len(log.of("update", verdict="accepted")) >= 4)

    asyncio.run(learn())
    explain = chosen(store)["explain"].carry_out
    assert "trained from version" in asyncio.run(explain(actions.ActionRequest("a", 1)))
    with pytest.raises(Refused, match="has no update a/99999"):
        asyncio.run(explain(actions.ActionRequest("a", 99_999)))


def test_a_store_that_cannot_be_written_refuses_the_action(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="The store cannot be written"):
        asyncio.run(chosen(tmp_path / "none")["pause"].carry_out(actions.ActionRequest()))


# ------------------------------------------------------------------------------------ a demo


def test_a_demo_names_its_page_in_each_line_and_keeps_it_after_the_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "midge", "demo", "--json", "--seconds", "4", "--pooled-seconds", "0.1"]
    with subprocess.Popen(
        [*command, "--page", "127.0.0.1:0", "--linger", "600"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            last = ""
            for line in process.stdout:
                assert json.loads(line)["page"].startswith("http://127.0.0.1:")
                last = line
                if "pooled" in line or "central" in line:
                    break
            url = json.loads(last)["page"]
            with urlopen(f"{url}events") as stream:
                stream.readline()
                head = json.loads(stream.readline().decode().removeprefix("data: "))["head"]
            assert head["ended"] == "This run has ended: time." and head["alarms"] == []
        finally:
            process.kill()


APP = """
import numpy as np
import midge

app = midge.Aggregator("mqtt://127.0.0.1:1", federation="f", initial={"w": np.zeros(4, np.float32)}, store="store")
"""


async def test_an_aggregator_serves_the_page_of_its_own_federation(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(APP)
    (tmp_path / "broker").mkdir()
    async with local_broker("embedded", directory=tmp_path / "broker") as broker:
        command = ["aggregate", "server:app", "--broker", str(broker.endpoint), "--json", "--page", "127.0.0.1:0"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "midge", *command), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            assert process.stderr is not None
            url = (await process.stderr.readline()).decode().split()[-1]
            token = (await process.stderr.readline()).decode().split()[-1]

            def head() -> dict[str, object]:
                with urlopen(f"{url}events") as stream:
                    stream.readline()
                    found: dict[str, object] = json.loads(stream.readline().decode().removeprefix("data: "))["head"]
                return found

            def pause() -> int:
                asked = Request(f"{url}actions/pause", b"{}", {"authorization": f"Bearer {token}"}, method="POST")
                with urlopen(asked) as answer:
                    return int(answer.status)

            await asyncio.to_thread(until, "the aggregator answers", lambda: head()["answered"])
            found = await asyncio.to_thread(head)
            assert found["federation"] == "f" and found["states"] == {} and found["alarms"] == []
            assert await asyncio.to_thread(pause) == 200 and paused(tmp_path / "store") == "the operator paused it"
        finally:
            process.terminate()
            await process.wait()
    assert process.returncode == 0
