"""What a newcomer gets wrong is told in one sentence that says what to do, with a non-zero exit and no traceback."""

import asyncio
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.__main__ import main
from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.local.mosquitto import find_mosquitto
from midge.iot_client.connection import connection_loop
from tests import needs
from tests.acceptance.test_by_hand import MIDGE, ROOT, interrupt, process
from tests.broker.test_local import certificates
from tests.ports import free_port
from tests.waiting import LAST_RESORT, until

PUMP, SERVER = ((ROOT / "examples" / "quickstart" / f"{name}.py").read_text() for name in ("pump", "server"))
FIT = 'return midge.Fit({"w": w}, examples=len(x))'
Tell = Callable[..., str]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tell]:
    """Run `midge` in this process, in a directory of its own, and return the one sentence that it ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(*arguments: str) -> str:
        forget_programs()
        code = main(list(arguments))
        answer = capsys.readouterr()
        assert code == 2, answer
        assert "Traceback" not in answer.err
        lines = answer.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("midge: "), answer.err
        return lines[0]

    yield run
    forget_programs()


def forget_programs() -> None:
    """Have the modules of the tests imported again: each belongs to one directory and to one event loop."""
    here = Path.cwd()
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == here:
            del sys.modules[name]


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A server that is no broker: it answers and hangs up, or says nothing at all. Its port."""
    ending = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if answer is None:
                ending.wait(30)
            else:
                self.request.recv(100)
                self.request.sendall(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            ending.set()
            server.shutdown()
            thread.join()


@contextmanager
def running(managed: AbstractAsyncContextManager[LocalBroker]) -> Iterator[LocalBroker]:
    with asyncio.Runner() as runner:
        broker = runner.run(managed.__aenter__())
        yield broker
        runner.run(managed.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    directory = tmp_path_factory.mktemp("broker")
    with running(local_broker("embedded", directory=directory, user="anna", password="secret")) as broker:
        yield broker


@pytest.fixture(scope="module")
def url(broker: LocalBroker) -> str:
    return f"mqtt://anna:secret@127.0.0.1:{broker.endpoint.port}"


@pytest.fixture(scope="module")
def federation(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An aggregator and the device pump-0, at work. Their directory."""
    home = tmp_path_factory.mktemp("federation")
    (home / "server.py").write_text(SERVER)
    (home / "pump.py").write_text(PUMP)
    device = (*MIDGE, "device", "pump:app", "--name", "pump-0", "--broker", url)
    with (
        process(*MIDGE, "aggregate", "server:app", "--broker", url, cwd=home, log="a") as server,
        process(*device, cwd=home, log="d") as pump,
    ):
        until("a training", lambda: "Training" in (home / "d").read_text())
        yield home
        assert interrupt(pump) == 0 and interrupt(server) == 0


# ------------------------------------------------------------------------- the address

BOTH = pytest.mark.parametrize("command", [("device", "pump:app"), ("aggregate", "server:app")])


def programs(directory: Path) -> None:
    (directory / "pump.py").write_text(PUMP)
    (directory / "server.py").write_text(SERVER)


@BOTH
def test_no_broker_there(command: tuple[str, str], tell: Tell, tmp_path: Path) -> None:
    programs(tmp_path)
    assert "start the broker or correct the address" in tell(*command, "--broker", f"mqtt://127.0.0.1:{free_port()}")


@BOTH
def test_something_else_answers_there(command: tuple[str, str], tell: Tell, tmp_path: Path) -> None:
    programs(tmp_path)
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "is it an MQTT broker" in tell(*command, "--broker", f"mqtt://127.0.0.1:{port}")
        assert "Name the port that serves TLS" in tell(*command, "--broker", f"mqtts://127.0.0.1:{port}")
        # Not in this process: paho leaves the socket of a failed websocket handshake to the garbage collector.
        websocket = midge(*command, "--broker", f"ws://127.0.0.1:{port}", cwd=tmp_path)
        assert websocket.returncode == 2 and "check port and path" in websocket.stderr


def test_something_that_says_nothing(tell: Tell) -> None:
    with answering(None) as port:
        answer = tell("status", f"mqtt://127.0.0.1:{port}", "--federation", "pumps")
    assert "did not answer within 4 s: is it an MQTT broker?" in answer


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mqtt://nowhere.invalid", "'nowhere.invalid' cannot be resolved: check its spelling"),
        ("localhost:1883", "begins with its scheme, as in mqtt://localhost"),
        ("http://localhost", "use mqtt, mqtts, ws or wss"),
        ("mqtt://localhost:99999", "a number from 1 to 65535"),
        ("mqtt://", "names no host"),
        ("mqtt://localhost/topic", "without one"),
    ],
)
def test_an_address_that_is_none(address: str, words: str, tell: Tell) -> None:
    for command in ("status", "clean"):
        assert words in tell(command, address, "--federation", "pumps")
    assert words in tell("broker", "check", address)
    assert words in tell("demo", "--broker", address, "--seconds", "5", "--devices", "1")


def test_a_wrong_password(url: str, broker: LocalBroker, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = url.replace("secret", "guess")
    assert "refused user 'anna'" in (answer := tell("status", wrong, "--federation", "pumps"))
    assert "check user and password" in answer and "guess" not in answer
    monkeypatch.setenv("MIDGE_PASSWORD", "guess")
    bare = url.replace("anna:secret@", "")
    assert "refused user 'anna'" in tell("status", bare, "--user", "anna", "--federation", "pumps")
    assert "refused an anonymous client" in tell("broker", "check", bare)


@pytest.mark.mosquitto
@needs.mosquitto
def test_tls_on_one_side_only_and_a_stranger_s_certificate(tell: Tell, tmp_path: Path, url: str) -> None:
    tls = certificates(tmp_path)
    with running(local_broker("mosquitto", directory=tmp_path, tls=tls)) as broker:
        secure = str(broker.endpoint)
        plain = str(replace(broker.endpoint, scheme="mqtt", tls=None))
        look = ("--federation", "pumps")
        assert "does it want TLS (mqtts://)?" in tell("status", plain, *look)
        assert "give the authority that signed it as cafile" in tell("status", secure, *look)
        assert "There is no file nothing.pem" in tell("status", secure, *look, "--cafile", "nothing.pem")
        assert "use mqtts:// or wss://" in tell("status", plain, *look, "--cafile", str(tmp_path / "ca.pem"))
    assert "serves TLS" in tell("status", url.replace("mqtt:", "mqtts:"), *look)


# ------------------------------------------------------------------------ names and numbers


@pytest.mark.parametrize("name", ["a/b", "a#", "+", "", "-a", "a b", "x" * 65])
def test_a_name_that_cannot_stand_in_a_topic(name: str, tell: Tell, tmp_path: Path) -> None:
    nowhere = "mqtt://127.0.0.1:1"
    programs(tmp_path)
    assert "cannot be a federation: use 1 to 64 letters" in tell("status", nowhere, f"--federation={name}")
    assert "cannot be a topic root" in tell("status", nowhere, "--federation", "a", f"--root=a/{name[:1] or '/'}#")
    assert "cannot be a federation" in tell("demo", f"--federation={name}")
    if name:
        assert "cannot be a device name" in tell("device", "pump:app", "--broker", nowhere, f"--name={name}")
        assert "cannot be a run" in tell("demo", f"--name={name}")
    (tmp_path / "named.py").write_text(PUMP.replace('name="pump-1"', f"name={name!r}"))
    assert "cannot be a device name" in tell("device", "named:app")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seconds", "-1"], "--seconds is -1: it must be above 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--target", "0"], "--target is 0: it must be above 0, such as 0.93"),
        (["--target", "93"], "An accuracy of 93 cannot be reached: give a share of at most 1"),
        (["--alpha", "0"], "--alpha is 0"),
        (["--alpha", "0.5"], "--alpha and --form are for fedasync, not balanced"),
        (["--strategy", "fedasync", "--alpha", "11"], "alpha is 11.0: it must be a finite number above 0 and at most"),
        (["--strategy", "fedasync", "--alpha", "2", "--form", "mixing"], "a rate of at most 1"),
        (["--strategy", "fedbuff", "--buffer-size", "0"], "--buffer-size is 0: it must be at least 1"),
        (["--codec", "int9"], "unknown codec 'int9'; known are float32, bf16, int8:B"),
        (["--codec", "int8:0"], "unknown codec 'int8:0'"),
        (["--devices", "0"], "--devices is 0: it must be at least 1"),
        (["--local-steps", "0"], "--local-steps is 0"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--learning-rate", "-1"], "--learning-rate is -1: it must be above 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--root", "midge/#"], "cannot be a topic root"),
        (["--late", "2"], "late of the world is a share"),
        (["--world", "no.toml"], "The world no.toml cannot be read"),
        (["--app", "no_such:model"], "give module:attribute"),
    ],
)
def test_a_number_or_a_word_that_cannot_be(options: list[str], words: str, tell: Tell) -> None:
    assert words in tell("demo", *options)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none(port: str, tell: Tell) -> None:
    assert "a number from 1 to 65535, or 0 for a free one" in tell("broker", "run", "--port", port)


@pytest.mark.parametrize("kind", ["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def test_a_port_in_use(kind: str, tell: Tell) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip(needs.MOSQUITTO)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} of 127.0.0.1 is in use" in tell("broker", "run", "--kind", kind, "--port", port)


# ----------------------------------------------------------------------------- files


def test_data_that_cannot_be_read(tell: Tell, tmp_path: Path) -> None:
    def demo(name: str) -> str:
        return tell("demo", "--data", name)

    assert "there is no such file" in demo("nothing.npz")
    (tmp_path / "text.npz").write_text("no numbers")
    assert "not a readable .npz file" in demo("text.npz")
    np.savez(tmp_path / "half.npz", x=np.zeros((4, 2)))
    assert "the array y is missing; save both x and y" in demo("half.npz")
    np.savez(tmp_path / "uneven.npz", x=np.zeros((4, 2)), y=np.zeros(3))
    assert "x has 4 rows" in demo("uneven.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    assert "save x and y together" in demo("single.npy")


def test_a_place_that_cannot_be_written(tell: Tell, tmp_path: Path, url: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "runs").touch()
    (tmp_path / "notes").write_text("these are notes, and no database " * 50)
    assert "go to a directory that you may write" in tell("demo")
    for number, place in enumerate(["file/pump.outbox", "/proc/nothing/pump.outbox"]):
        (tmp_path / f"pump{number}.py").write_text(PUMP.replace("pump-1.outbox", place))
        assert "name a place that can" in tell("device", f"pump{number}:app", "--broker", url)
    (tmp_path / "noted.py").write_text(PUMP.replace("pump-1.outbox", "notes"))
    assert "Move the file away" in tell("device", "noted:app", "--broker", url)
    for number, place in enumerate(["file", "file/store", "/proc/nothing"]):
        (tmp_path / f"server{number}.py").write_text(SERVER.replace('store="pumps"', f'store="{place}"'))
        assert "name a directory that can" in tell("aggregate", f"server{number}:app", "--broker", url)


# ------------------------------------------------------------------------- module:attribute


def test_an_app_that_is_not_there(tell: Tell, tmp_path: Path) -> None:
    programs(tmp_path)
    (tmp_path / "needy.py").write_text("import no_such_library")
    assert "not of the form module:attribute" in tell("device", "pump")
    assert "go to the directory of pmp.py" in tell("device", "pmp:app")
    assert "has no 'ap'" in tell("device", "pump:ap")
    assert "imports 'no_such_library', which is not installed" in tell("device", "needy:app")
    assert "give your midge.py another name" in tell("aggregate", "midge:app")


def test_an_app_of_another_kind(tell: Tell, tmp_path: Path) -> None:
    programs(tmp_path)
    assert "of type Aggregator; it must be a midge.Device" in tell("device", "server:app")
    assert "of type Device; it must be a midge.Aggregator" in tell("aggregate", "pump:app")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("train=train", "train=None", "train is None: it must be a function of (parameters, plan)"),
        ("mqtt://localhost", "localhost", "begins with its scheme"),
        ('federation="pumps"', 'federation="a/b"', "cannot be a federation"),
    ],
)
def test_a_device_that_cannot_be_made(old: str, new: str, words: str, tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(PUMP.replace(old, new))
    assert words in tell("device", "wrong:app")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('{"w": np.zeros(3, np.float32)}', "{}", "initial must be a dict of arrays"),
        ("np.zeros(3, np.float32)", "'three'", "this model cannot be federated: w: unknown dtype"),
        ("midge.balanced()", "midge.fedbuff(buffer_size=0)", "buffer_size is 0: it must be a whole"),
        ("midge.balanced()", "midge.fedasync(plan=midge.Plan(local_steps=0))", "local_steps is 0: it must be"),
        ("midge.balanced()", "midge.fedasync(plan=midge.Plan(codec='int9'))", "no device could follow the plan"),
    ],
)  # fmt: skip
def test_an_aggregator_that_cannot_be_made(old: str, new: str, words: str, tell: Tell, tmp_path: Path) -> None:
    assert old in SERVER
    (tmp_path / "wrong.py").write_text(SERVER.replace(old, new))
    assert words in tell("aggregate", "wrong:app")


def test_an_error_in_the_user_s_own_module_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "broken.py").write_text("import numpy as np\n\nnp.zeros(3).reshape(2, 2)\n")
    (tmp_path / "late.py").write_text("def app():\n    raise KeyError('sensor')\n")
    assert main(["device", "broken:app"]) == 2
    answer = capsys.readouterr().err
    assert "broken.py" in answer and answer.endswith("midge: 'broken' cannot be imported; its error is above.\n")
    assert main(["device", "late:app"]) == 2
    answer = capsys.readouterr().err
    assert "KeyError: 'sensor'" in answer and answer.endswith("midge: late:app cannot be called; its error is above.\n")


# ------------------------------------------------------------------------- in a federation


def test_a_second_device_of_the_same_name(
    federation: Path, url: str, tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_loop, "_DUPLICATE_WAIT", LAST_RESORT)  # for the first to say that it lives
    programs(tmp_path)
    answer = tell("device", "pump:app", "--name", "pump-0", "--broker", url)
    assert "Another live device of federation 'pumps' is named 'pump-0': give each device its own name" in answer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statsu"], "midge: error: argument COMMAND: there is no 'statsu': did you mean status?"),
        (
            ["status", "--fedration", "f"],
            "midge status: error: unrecognized arguments: --fedration: did you mean --federation?",
        ),
        (["demo", "--strategy", "balancd"], "fedavg): did you mean balanced?"),
        (["broker", "check", "--bogus"], "midge broker check: error: unrecognized arguments: --bogus\n"),
        (["broker"], "answer requests for new credentials"),
        ([], "take part in a federation"),
    ],
)
def test_a_word_that_is_none(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: an unknown option of a sub-command was answered with the usage of `midge` alone."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_federation_that_is_not_there(federation: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: `clean` of a misspelled name said that it had removed 0 messages, and ended well."""
    for command in ("status", "clean"):
        assert main([command, url, "--federation", "pump"]) == 1
        answer = capsys.readouterr()
        assert "announced is pumps: did you mean 'pumps'?" in answer.out + answer.err


def test_what_is_cleaned_too_early_is_said_to_come_back(
    url: str, federation: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: a device that was still connected left its status behind, and nothing had said so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.py").write_text(PUMP.replace('"pumps"', '"unserved"'))
    with process(*MIDGE, "device", "other:app", "--name", "late", "--broker", url, cwd=tmp_path, log="d") as late:
        until("it is there", lambda: "No aggregator" in (tmp_path / "d").read_text())
        assert main(["clean", url, "--federation", "unserved"]) == 0
        assert "Still connected: late. A device leaves its status behind" in capsys.readouterr().out
        assert interrupt(late) == 0
    assert main(["clean", url, "--federation", "unserved"]) == 0
    assert capsys.readouterr().out == "1 retained message of federation 'unserved' removed.\n"


def test_an_outbox_and_a_store_in_use(federation: Path, url: str, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(federation)
    assert "in use by another device" in tell("device", "pump:app", "--name", "pump-0", "--broker", url)
    assert "in use by another aggregator" in tell("aggregate", "server:app", "--broker", url)


def test_another_federation_on_the_same_topics(federation: Path, url: str, tell: Tell, tmp_path: Path) -> None:
    programs(tmp_path)
    answer = tell("aggregate", "server:app", "--broker", url)
    assert "Another store's model" in answer and "choose another federation name, or say --replace" in answer


def test_a_store_of_another_model(tell: Tell, tmp_path: Path, url: str) -> None:
    programs(tmp_path)
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    assert "Nothing listens" in tell("aggregate", "server:app", "--broker", nowhere)
    (tmp_path / "larger.py").write_text(SERVER.replace("zeros(3", "zeros(4"))
    answer = tell("aggregate", "larger:app", "--broker", nowhere)
    assert "w is trained (3,) float32 there and trained (4,) float32 here" in answer and "another store" in answer


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        ("pass", "train() returned NoneType; it must return midge.Fit(parameters, examples=n)"),
        ('return {"w": w}', "train() returned dict"),
        ('return midge.Fit({"w": w[:2]}, examples=1)', "w is (2,), not (3,)"),
        ('return midge.Fit({"v": w}, examples=1)', "w is missing"),
    ],
)
@pytest.mark.usefixtures("federation")
def test_a_trainer_that_returns_something_else(returns: str, words: str, url: str, tell: Tell, tmp_path: Path) -> None:
    assert FIT in PUMP
    (tmp_path / "wrong.py").write_text(PUMP.replace(FIT, returns))
    answer = tell("device", "wrong:app", "--broker", url)
    assert words in answer and "Device 'pump-1'" in answer


def test_a_trainer_that_raises_shows_its_traceback_and_its_device(federation: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(PUMP.replace(FIT, 'raise RuntimeError("the sensor is unplugged")'))
    done = midge("device", "wrong:app", "--broker", url, cwd=tmp_path)
    assert done.returncode == 1
    *_, error, note = done.stderr.strip().splitlines()
    assert error == "RuntimeError: the sensor is unplugged" and note == "(raised by train() of device 'pump-1')"
    assert 'wrong.py", line' in done.stderr


def test_a_script_ends_in_one_sentence_too(tmp_path: Path) -> None:
    for name, program in (("pump", PUMP), ("server", SERVER)):
        (tmp_path / f"{name}.py").write_text(program.replace("//localhost", f"//127.0.0.1:{free_port()}"))
        done = python(f"{name}.py", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("midge: Nothing listens") and len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------- hidden and missing packages


HIDING = """
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == {!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
"""
"""A program's beginning that has a library be not installed."""


def midge(*arguments: str, cwd: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """`midge` in a process of its own, as if a library were not installed."""
    program = f"{HIDING.format(without)}\nfrom midge.__main__ import main\nsys.exit(main({list(arguments)}))"
    return python("-P", "-c", program, cwd=cwd)


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=LAST_RESORT, check=False
    )


def test_files_of_the_user_s_that_have_our_names(tmp_path: Path) -> None:
    programs(tmp_path)
    (tmp_path / "aggregator.py").write_text("print('hidden')")
    (tmp_path / "wire").mkdir()
    (tmp_path / "wire" / "__init__.py").touch()
    script = python("pump.py", cwd=tmp_path)
    assert script.returncode == 2 and script.stderr.startswith("midge: Nothing listens"), script.stderr
    command = midge("device", "pump:app", "--broker", f"mqtt://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert command.returncode == 2 and command.stderr.startswith("midge: Nothing listens"), command.stderr
    command = midge("aggregate", "server:app", "--broker", f"mqtt://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert command.returncode == 2 and command.stderr.startswith("midge: Nothing listens"), command.stderr
    assert "hidden" not in script.stdout + command.stdout


@pytest.mark.parametrize(
    ("without", "arguments", "extra"),
    [
        ("safetensors", ("aggregate", "server:app"), "aggregator"),
        ("safetensors", ("explain", "store", "pump-1/1"), "aggregator"),
        ("safetensors", ("demo",), "demo"),
        ("sklearn", ("demo",), "demo"),
        ("torch", ("demo", "--engine", "torch"), "torch"),
        ("torch", ("device", "net:app"), "torch"),
    ],
)
def test_an_extra_that_is_not_installed(without: str, arguments: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    programs(tmp_path)
    (tmp_path / "net.py").write_text("import midge\n\nmidge.torch_trainer\n")
    done = midge(*arguments, cwd=tmp_path, without=without)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and f'pip install "midge[{extra}]"' in done.stderr


def test_a_script_without_an_extra(tmp_path: Path) -> None:
    done = python("-c", f"{HIDING.format('safetensors')}\nimport midge\nmidge.Aggregator", cwd=tmp_path)
    assert 'pip install "midge[aggregator]"' in done.stderr.splitlines()[-1]


# ----------------------------------------------------------------------- a broker that goes away


def test_a_lost_broker_is_told_once_and_so_is_its_return(tmp_path: Path) -> None:
    programs(tmp_path)
    port = free_port()
    with asyncio.Runner() as runner:
        managed = local_broker("embedded", directory=tmp_path, port=port)
        broker = runner.run(managed.__aenter__())
        logs = {name: tmp_path / name for name in ("a", "d")}
        commands = {"a": ("aggregate", "server:app"), "d": ("device", "pump:app")}
        with (
            process(*MIDGE, *commands["a"], "--broker", str(broker.endpoint), cwd=tmp_path, log="a") as server,
            process(*MIDGE, *commands["d"], "--broker", str(broker.endpoint), cwd=tmp_path, log="d") as pump,
        ):
            until("a training", lambda: "Training" in logs["d"].read_text())
            broker.kill()
            until("a word of it", lambda: all("Lost the broker" in log.read_text() for log in logs.values()))
            time.sleep(2.5)  # several attempts, each of which would be told wrongly; however many, the end is the same
            runner.run(broker.restart())
            until("another word", lambda: all("The broker is back." in log.read_text() for log in logs.values()))
            assert interrupt(pump) == 0 and interrupt(server) == 0
        runner.run(managed.__aexit__(None, None, None))
    for log in logs.values():
        text = log.read_text()
        assert text.count("Lost the broker") == 1 == text.count("The broker is back."), text
        assert "Nothing listens" not in text and "Trying again in" not in text, text


@pytest.mark.parametrize("verb", ["add", "revoke", "rotate", "list", "forget", "readmit"])
def test_what_acts_on_a_device_is_a_verb_of_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: `midge device add` was taken for a program of that name. `device-add` is the older name."""
    for command in (["device", verb], [f"device-{verb}"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: midge device {verb} ")


def test_a_misspelled_verb_of_a_device_gets_a_suggestion(tell: Tell) -> None:
    assert tell("device", "revok", "pump-1").endswith("did you mean revoke?")
