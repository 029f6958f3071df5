"""The safe way by hand: `midge broker init`, its Mosquitto, `--config` on both sides, a device that is revoked."""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.broker import BrokerRefused, BrokerUnreachable, connector
from midge.broker.provisioning.bundles import Bundle, read_bundle
from tests import needs
from tests.acceptance.test_by_hand import MIDGE, ROOT, interrupt, process
from tests.broker.fleets import serving
from tests.broker.worlds import options
from tests.ports import free_port
from tests.waiting import until

needs_mosquitto = [
    pytest.mark.mosquitto,
    needs.mosquitto,
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the quickstart's programs and a fleet of three devices for another federation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for file in (ROOT / "examples" / "quickstart").glob("*.py"):
        shutil.copy(file, tmp_path)
    server = tmp_path / "server.py"  # whose fleet has soon learned all, and would rest
    server.write_text(server.read_text().replace("midge.balanced()", "midge.balanced(pace=midge.Pace(rest=0))"))
    yield tmp_path
    for name in ("pump", "server"):
        sys.modules.pop(name, None)


def init(*options: str) -> int:
    return main(["broker", "init", "--name", "plant", "--out", "fleet", *options])


def said(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def has_receipts(log: Path) -> bool:
    return any(event["event"] == "receipt" for event in said(log))


def updates_of(device: str, log: Path) -> int:
    """How many updates of a device the aggregator has decided on."""
    return sum(event["event"] == "update" and event["device"] == device for event in said(log))


def others_go_on(log: Path) -> None:
    """Wait for some updates of the first two, the last of which were sent after now: each is from a newer version."""
    before = {name: updates_of(name, log) for name in ("dev0001", "dev0002")}
    until("others go on", lambda: all(updates_of(name, log) > known + 3 for name, known in before.items()))


def lets_in(bundle: Bundle) -> bool:
    async def enter() -> None:
        async with connector(bundle.endpoint)(options()):
            pass

    try:
        asyncio.run(enter())
    except (BrokerRefused, BrokerUnreachable):
        return False
    return True


class TestOnMosquitto:
    pytestmark = needs_mosquitto

    @pytest.mark.parametrize("way", [(), ("--passwords",)], ids=["certificates", "passwords"])
    def test_a_fleet_trains_and_a_revoked_device_stops(
        self, way: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        port = free_port()
        assert init("--devices", "3", "--host", "localhost", "--port", str(port), *way) == 0
        assert "midge broker check --fleet fleet" in capsys.readouterr().out
        aggregate = (*MIDGE, "aggregate", "server:app", "--config", "fleet/aggregator/aggregator.toml", "--json")
        device = (*MIDGE, "device", "pump:app", "--json", "--config")
        with (
            serving(home / "fleet" / "broker" / "mosquitto.conf", port),
            process(*aggregate, cwd=home, log="a") as server,
            process(*device, "fleet/devices/dev0001/device.toml", cwd=home, log="1") as one,
            process(*device, "fleet/devices/dev0002/device.toml", cwd=home, log="2") as two,
            process(*device, "fleet/devices/dev0003", cwd=home, log="3") as three,
        ):
            logs = [home / name for name in "123"]
            until("receipts", lambda: all(has_receipts(log) for log in logs))
            assert {event["device"] for log in logs for event in said(log)} == {"dev0001", "dev0002", "dev0003"}
            self.doctor_finds_nothing(capsys)  # while they are at work, and none is put off
            assert main(["device-revoke", "fleet", "dev0003"]) == 0
            told = capsys.readouterr().out
            assert "The running broker was notified." in told and "still stands" not in told
            bundle = read_bundle(home / "fleet" / "devices" / "dev0003")
            until("the broker knows", lambda: not lets_in(bundle))
            others_go_on(home / "a")  # so that all that the broker took of the third before is decided on
            known = updates_of("dev0003", home / "a")
            others_go_on(home / "a")
            assert updates_of("dev0003", home / "a") == known > 0
            assert main(["status", "--config", "fleet/operator", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["federation"] == "plant" and found["answered"] and found["health"]["state"] == "learning"
            live = {name for name, row in found["devices"].items() if row["state"] in ("ready", "training")}
            assert live == {"dev0001", "dev0002"}, "the revoked one is no part of the federation"
            for child, log in ((three, "3"), (one, "1"), (two, "2"), (server, "a")):
                assert interrupt(child) == 0, (home / log).read_text()[-1000:]
            assert main(["clean", "--config", "fleet/aggregator"]) == 0
        events = [event["event"] for name in "a12" for event in said(home / name)]
        assert not set(events) & {"dropped", "disconnected"}, "somebody was put off"
        assert main(["device-list", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {each["name"]: each["state"] for each in listed["devices"]} == {
            "dev0001": "active",
            "dev0002": "active",
            "dev0003": "revoked",
        }

    @staticmethod
    def doctor_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
        code = main(["broker", "check", "--json", "--fleet", "fleet/"])
        report = json.loads(capsys.readouterr().out)
        assert [each for each in report["attacks"] if each["pass"] is not True] == []
        assert code == 0 and report["ok"], report
        assert {"name", "expected", "seen", "pass"} <= report["attacks"][0].keys()

    def test_an_open_broker_makes_the_doctor_fail(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        port = free_port()
        (home / "open.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
        with serving(home / "open.conf", port):
            url = f"mqtt://localhost:{port}"
            assert main(["broker", "check", url, "--attacks", "--federation", "plant", "--device", "dev1"]) == 1
            table = capsys.readouterr().out
            assert "FAIL" in table and "read everything (3.1.1)" in table
            # For trying things out, the same broker is good enough:
            assert main(["broker", "check", url, "--federation", "plant", "--device", "dev1"]) == 0
            assert "FAIL" not in capsys.readouterr().out


def test_a_hundred_devices(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init("--devices", "100", "--host", "mqtt.lan", "--host", "10.0.0.7") == 0
    assert len(list((home / "fleet" / "devices").glob("*.tar"))) == 100
    assert main(["device-add", "--fleet", "fleet", "pump-17"]) == 0
    assert main(["device-rotate", "--fleet", "fleet", "pump-17"]) == 0
    assert "--finish pump-17" in capsys.readouterr().out
    assert main(["device-revoke", "--fleet", "fleet", "pump-17"]) == 0
    assert "kill -HUP" in capsys.readouterr().out  # no broker runs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "mqtt.lan:8883"], "without port"),
        ([], "--host mqtt.lan"),
        (["--host", "a", "--devices", "-1"], "--devices is -1"),
        (["--host", "a", "--device", "a/b"], "'a/b' cannot be a device name"),
        (["--host", "a", "--device", "operator"], "'operator' is taken"),
        (["--host", "a", "--port", "0"], "--port is 0"),
        (["--host", "a", "--join", "mqtts://b"], "do not go together"),
        (["--join", "mqtt://b"], "write mqtts://"),
        (["--host", "a", "--root", "a//b"], "cannot be a topic root"),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_cannot_be_initialised(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(*options) == 2
    assert words in capsys.readouterr().err
    assert not Path("fleet").exists()


@pytest.mark.parametrize("command", [("device-list",), ("device-add", "x"), ("broker", "check", "--fleet", "nothing")])
@pytest.mark.usefixtures("home")
def test_a_directory_that_is_no_fleet(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(command)) == 2
    assert "Traceback" not in (error := capsys.readouterr().err) and len(error.splitlines()) == 1


# ------------------------------------------------------------------- without TLS

BOTH = pytest.mark.parametrize("command", [("device", "pump:app"), ("aggregate", "server:app")])


@BOTH
@pytest.mark.usefixtures("home")
def test_another_machine_without_tls_is_refused(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--broker", "mqtt://192.0.2.1"]) == 2
    assert "or say --insecure" in capsys.readouterr().err
    # And where the program itself says so:
    path = Path(f"{command[1].partition(':')[0]}.py")
    path.write_text(path.read_text().replace("mqtt://localhost", "mqtt://broker.example"))
    sys.modules.pop(path.stem, None)
    assert main(list(command)) == 2
    assert "or say --insecure" in capsys.readouterr().err


@BOTH
@pytest.mark.usefixtures("home")
def test_this_machine_without_tls_is_told(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--broker", f"mqtt://127.0.0.1:{free_port()}"]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("Without TLS, to mqtt://127.0.0.1") and "Nothing listens" in told.err


@BOTH
@pytest.mark.usefixtures("home")
def test_insecure_goes_on(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refuse)
    assert main([*command, "--insecure", "--broker", "mqtt://192.0.2.1"]) == 2
    told = capsys.readouterr()
    assert "on another machine" in told.out and "Nothing listens" in told.err
