"""A password at the broker stands in a file: not among the arguments of a process, and in nothing that it writes."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.commands.parts import Problem, password_in
from tests.acceptance.test_by_hand import MIDGE, ROOT, interrupt, process
from tests.acceptance.test_newcomers import running
from tests.waiting import until

PASSWORD = "s3cr:et/% of ours"
QUOTED = "s3cr%3Aet%2F%25%20of%20ours"


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    directory = tmp_path_factory.mktemp("broker")
    with running(local_broker("embedded", directory=directory, user="anna", password=PASSWORD)) as broker:
        yield broker


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(PASSWORD + "\n", encoding="utf-8")
    return file


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def shown(pid: int) -> bytes:
    """What `ps` shows of a process and its children, if they are still there."""
    try:
        return b"\n".join(Path(f"/proc/{each}/cmdline").read_bytes() for each in family(pid))
    except FileNotFoundError:
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_no_process_shows_the_password_and_none_writes_it(broker: LocalBroker, secret: Path, tmp_path: Path) -> None:
    for program in (ROOT / "examples" / "quickstart").glob("*.py"):
        (tmp_path / program.name).write_text(program.read_text())
    url = f"mqtt://anna@{broker.endpoint.address}"
    word = ("--password-file", str(secret))
    there = ("--federation", "pumps")
    commands = {
        "aggregate": ("aggregate", "server:app", "--broker", url, *word),
        "device": ("-v", "device", "pump:app", "--broker", url, *word),
        "demo": ("demo", "--broker", url, *word, "--devices", "2", "--seconds", "2", "--json", "--name", "a"),
        "status": ("-v", "status", url, *there, *word),
        "doctor": ("device", "doctor", "--broker", url, *word),
        "check": ("broker", "check", url, *word, "--read-only"),
        "wrong": ("-v", "status", url, *there, "--password-file", str(tmp_path / "pump.py")),
    }
    done = {"aggregate": b"federation", "device": b"accepted"}
    with process(*MIDGE, *commands.pop("aggregate"), cwd=tmp_path, log="aggregate") as server:
        for name, arguments in commands.items():
            seen: list[bytes] = []
            with process(*MIDGE, *arguments, cwd=tmp_path, log=name) as child:

                def over(child: object = child, name: str = name, seen: list[bytes] = seen) -> bool:
                    seen += [shown(server.pid), shown(child.pid)]  # type: ignore[attr-defined]
                    said = (tmp_path / name).read_bytes()
                    return child.poll() is not None or done.get(name, b"\0") in said  # type: ignore[attr-defined]

                until(name, over)
                if child.poll() is None:
                    interrupt(child)
            assert any(str(secret).encode() in each for each in seen) or name == "wrong"
            assert not [each for each in seen if PASSWORD.encode() in each or QUOTED.encode() in each]
            said = (tmp_path / name).read_text()
            assert ("refused user 'anna'" in said) is (name == "wrong"), said
        interrupt(server)
    for file in tmp_path.rglob("*"):
        if file.is_file() and file != secret:
            data = file.read_bytes()
            assert PASSWORD.encode() not in data and QUOTED.encode() not in data, file


def test_a_password_file_that_others_read_is_told(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert password_in(str(secret)) == PASSWORD
    assert capsys.readouterr().err == ""
    secret.chmod(0o640)
    assert password_in(str(secret)) == PASSWORD
    assert f"chmod 600 {secret}" in capsys.readouterr().err
    assert stat.S_IMODE(secret.stat().st_mode) == 0o640, "it is the owner's to change"


def test_a_password_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot be read: No such file"):
        password_in(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\nsecret")
    with pytest.raises(Problem, match="is empty"):
        password_in(str(tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Problem, match="no text"):
        password_in(str(tmp_path / "binary"))


@pytest.mark.parametrize(
    "command",
    ["aggregate server:app --broker", "device pump:app --broker", "device doctor --broker", "status --federation f",
     "clean --federation f", "broker check", "demo --broker", "fleet --live --broker"],
)  # fmt: skip
def test_every_command_with_a_broker_takes_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, os.fspath(ROOT / "examples" / "quickstart")])
    missing = tmp_path / "none"
    assert main([*command.split(), "mqtt://anna@localhost:1", "--password-file", str(missing)]) == 2
    error = capsys.readouterr().err
    assert f"The password file {missing} cannot be read" in error, error
