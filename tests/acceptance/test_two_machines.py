"""Two `midge aggregate` on copies of one store, as real processes over the embedded broker."""

import json
import shutil
import signal
from pathlib import Path

from midge.broker.local.local_broker import local_broker
from tests.acceptance.test_by_hand import MIDGE, ROOT, process
from tests.waiting import LAST_RESORT, eventually


def events(folder: Path, log: str, name: str) -> list[dict[str, object]]:
    lines = (folder / log).read_text(errors="replace").splitlines() if (folder / log).exists() else []
    read = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [event for event in read if event["event"] == name]


async def test_a_copy_ends_and_takes_over_from_one_that_was_stopped_which_ends_in_turn(tmp_path: Path) -> None:
    """They both served: two models under each version number, and no device said a word."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        shutil.copytree(ROOT / "examples" / "quickstart", folder)
    async with local_broker("embedded", directory=tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.endpoint.port}"
        serve = (*MIDGE, "aggregate", "server:app", "--broker", url, "--json")
        take_part = (*MIDGE, "device", "pump:app", "--broker", url, "--json", "--name")
        with (
            process(*serve, cwd=one, log="a.log") as first,
            process(*take_part, "pump-1", cwd=one, log="p1.log"),
            process(*take_part, "pump-2", cwd=one, log="p2.log"),
        ):
            await eventually("versions", lambda: len(events(one, "a.log", "release")) > 3)
            shutil.copytree(one / "pumps", two / "pumps", dirs_exist_ok=True)
            with process(*serve, cwd=two, log="b.log") as second:
                assert second.wait(LAST_RESORT) == 2
            assert "Another aggregator serves federation 'pumps'" in (two / "b.log").read_text()
            assert not events(two, "b.log", "update")

            first.send_signal(signal.SIGSTOP)
            with process(*serve, cwd=two, log="c.log"):
                await eventually("the copy serves", lambda: len(events(two, "c.log", "update")) > 3)
                decided = len(events(one, "a.log", "update"))
                first.send_signal(signal.SIGCONT)
                assert first.wait(LAST_RESORT) == 2
                assert "Another aggregator has taken federation 'pumps' over" in (one / "a.log").read_text()
                came = len(events(two, "c.log", "update"))
                await eventually("it goes on", lambda: len(events(two, "c.log", "update")) > came + 3)
            assert len(events(one, "a.log", "update")) - decided <= 8, "what was under way when it was stopped"
        said = [
            (event["device"], event["outbox"], event["seq"])
            for log in ("p1.log", "p2.log")
            for event in events(one, log, "receipt")
            if not event["repeat"]
        ]
        assert len(said) == len(set(said))
