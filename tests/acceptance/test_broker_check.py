"""`midge broker check` as a command, on a broker where a real federation is at work."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midge.__main__ import main
from tests.acceptance.test_by_hand import MIDGE, ROOT, interrupt, listening, process
from tests.ports import free_port
from tests.waiting import until


@contextmanager
def at_work(directory: Path) -> Iterator[str]:
    """A broker, an aggregator and a device, each a process; their events are in the files `a` and `d`."""
    for name in ("pump", "server"):
        (directory / f"{name}.py").write_text((ROOT / "examples" / "quickstart" / f"{name}.py").read_text())
    port = free_port()
    url = f"mqtt://127.0.0.1:{port}"
    serve, take_part = ("aggregate", "server:app", "--json"), ("device", "pump:app", "--json")
    with process(*MIDGE, "broker", "run", "--kind", "embedded", "--port", str(port), cwd=directory, log="b") as broker:
        until("the broker", lambda: listening(port))
        with (
            process(*MIDGE, *serve, "--broker", url, cwd=directory, log="a") as server,
            process(*MIDGE, *take_part, "--broker", url, cwd=directory, log="d") as pump,
        ):
            until("a receipt", lambda: '"receipt"' in (directory / "d").read_text())
            yield url
            assert interrupt(pump) == 0 and interrupt(server) == 0
        assert interrupt(broker) == 0


def test_beside_a_federation_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with at_work(tmp_path) as url:
        look = ("broker", "check", url, "--federation", "pumps")
        assert main([*look, "--aggregator"]) == 0
        table = capsys.readouterr().out
        assert "chunk of 256 KiB" in table and table.endswith(f"{url}: nothing stands in the way.\n")
        assert main([*look, "--device", "pump-1", "--json"]) == 0  # the name of the device that is at work
        report = json.loads(capsys.readouterr().out)
        levels = {finding["name"]: finding["level"] for finding in report["findings"]}
        assert report["ok"] and levels["midge/1/pumps/model/train/#"] == "ok"
        assert main(["status", url, "--federation", "pumps", "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert list(status["devices"]) == ["pump-1"] and status["aggregator"]["state"] == "ready"
    said = [json.loads(line) for name in ("a", "d") for line in (tmp_path / name).read_text().splitlines()]
    assert not {event["event"] for event in said} & {"dropped", "refused", "fetch_failed", "report", "disconnected"}
    assert {event.get("device", "pump-1") for event in said} == {"pump-1"}, "a probe was taken for a device"


def test_the_exit_code_of_no_broker_and_of_a_role_without_a_federation(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        assert main(["broker", "check", url, "--json"]) == 2
        assert "Nothing listens" in capsys.readouterr().err
        assert main(["broker", "check", url, "--aggregator"]) == 2
        assert "name it with --federation" in capsys.readouterr().err
