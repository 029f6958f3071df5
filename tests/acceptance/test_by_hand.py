"""The README's three terminals, as real processes: `midge aggregate`, `midge device`, `midge status`, `midge clean`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from midge.broker.local.mosquitto import find_mosquitto
from tests import needs
from tests.ports import free_port
from tests.waiting import LAST_RESORT, until

ROOT = Path(__file__).parents[2]
MIDGE = [sys.executable, "-m", "midge"]
PASSWORD = "s3cr:et/%"


@contextmanager
def process(*command: str, cwd: Path, log: str, password: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    environment = dict(os.environ)
    if password is not None:
        environment["MIDGE_PASSWORD"] = password
    with (cwd / log).open("wb") as output:
        child = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()


def interrupt(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGINT)
    return child.wait(LAST_RESORT)


def midge(*arguments: str, cwd: Path, password: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if password is None else {"MIDGE_PASSWORD": password})}
    return subprocess.run(
        [*MIDGE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=LAST_RESORT, check=False
    )


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for file in (ROOT / "examples" / "quickstart").glob("*.py"):
        shutil.copy(file, tmp_path)
    return tmp_path


def take_part(cwd: Path, url: str, *options: str, users: bool = False) -> None:
    """Aggregator and two devices train together; then all leave, and nothing is left on the broker."""

    def who(name: str) -> list[str]:
        return [*options, *(["--user", name] if users else [])]

    def version() -> int:
        found = midge("status", url, "--federation", "pumps", "--json", *who("aggregator"), cwd=cwd, password=PASSWORD)
        model = json.loads(found.stdout)["model"] if found.stdout else None
        return 0 if model is None else int(model["version"])

    secret = PASSWORD if users else None
    with (
        process(
            *MIDGE, "aggregate", "server:app", "--broker", url, *who("aggregator"), cwd=cwd, log="a", password=secret
        ) as server,
        process(
            *MIDGE, "device", "pump:app", "--broker", url, *who("pump-1"), cwd=cwd, log="1", password=secret
        ) as one,
        process(
            *MIDGE,
            "device",
            "pump:app",
            "--name",
            "pump-2",
            "--broker",
            url,
            *who("pump-2"),
            cwd=cwd,
            log="2",
            password=secret,
        ) as two,
    ):
        until("version 30", lambda: version() >= 30)  # by then each has brought the model near
        refused = midge("clean", url, "--federation", "pumps", *who("aggregator"), cwd=cwd, password=secret)
        assert refused.returncode == 2 and "stop it first" in refused.stderr
        assert interrupt(one) == 0 and interrupt(two) == 0
        assert interrupt(server) == 0
    assert "accepted" in (cwd / "a").read_text() and "accepted" in (cwd / "2").read_text()
    weights = load_file(cwd / "pumps" / "model.safetensors")["w"]
    assert np.allclose(weights, [2.0, -1.0, 0.5], atol=0.3)
    cleaned = midge("clean", url, "--federation", "pumps", *who("aggregator"), cwd=cwd, password=secret)
    assert cleaned.returncode == 0 and "Still connected" not in cleaned.stdout
    again = midge("clean", url, "--federation", "pumps", *who("aggregator"), cwd=cwd, password=secret)
    assert again.stdout.startswith("0 retained")


def test_with_the_broker_of_the_command(programs: Path) -> None:
    port = free_port()
    with process(*MIDGE, "broker", "run", "--kind", "embedded", "--port", str(port), cwd=programs, log="b") as broker:
        until("the broker", lambda: listening(port))
        take_part(programs, f"mqtt://127.0.0.1:{port}")
        assert interrupt(broker) == 0


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


def deployed_mosquitto(directory: Path, port: int) -> Path:
    """The configuration of deploy/mosquitto, with certificates and users, on a port of ours."""
    home = directory / "mosquitto"
    shutil.copytree(ROOT / "deploy" / "mosquitto", home)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt", cwd=home)  # fmt: skip
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
            "-keyout", "broker.key", "-out", "broker.csr", cwd=home)  # fmt: skip
    (home / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl("x509", "-req", "-in", "broker.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "30", "-extfile", "names", "-out", "broker.crt", cwd=home)  # fmt: skip
    (home / "passwords").touch()
    for user in ("aggregator", "pump-1", "pump-2"):
        subprocess.run(["mosquitto_passwd", "-b", "passwords", user, PASSWORD], cwd=home, check=True)
    configuration = (home / "mosquitto.conf").read_text().replace("/etc/mosquitto/midge", str(home))
    (home / "mosquitto.conf").write_text(
        configuration.replace("listener 8883", f"listener {port} 127.0.0.1") + "user root\n"
    )
    return home


@pytest.mark.mosquitto
@needs.mosquitto
def test_with_the_configuration_of_deploy_tls_passwords_and_acl(programs: Path) -> None:
    binary = find_mosquitto()
    assert binary is not None
    port = free_port()
    home = deployed_mosquitto(programs, port)
    url, trust = f"mqtts://localhost:{port}", ("--cafile", str(home / "ca.crt"))
    with process(str(binary), "-c", str(home / "mosquitto.conf"), cwd=programs, log="m"):
        until("Mosquitto", lambda: listening(port))
        take_part(programs, url, *trust, users=True)
        stranger = midge(
            "status", url, "--federation", "pumps", "--user", "pump-1", *trust, cwd=programs, password="no"
        )
        assert stranger.returncode == 2 and "check user and password" in stranger.stderr
        assert "Traceback" not in stranger.stderr
