"""`midge survey` over a real Mosquitto with the rights of `midge broker init`, and `midge device` processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from midge.broker import connector
from midge.broker.mqtt.federation_view import describe_federation
from midge.broker.mqtt.retained import read_retained
from midge.broker.provisioning.bundles import read_bundle
from tests.broker.fleets import NAMES, needs_mosquitto, running_fleet
from tests.broker.worlds import options
from tests.waiting import LAST_RESORT, until

pytestmark = needs_mosquitto

APP = """
import os
import numpy as np
import midge

samples = midge.Samples(None, ["speed", "heat"], "power")
for row in np.random.default_rng(int(os.environ["SEED"])).normal(size=(50, 2)):
    samples.observe(row, float(row.sum()))
app = midge.Device(
    "mqtt://localhost", federation="plant", name="x", train=lambda parameters, plan: None, samples=samples, outbox=None
)
"""


def command(*words: str | Path, cwd: Path, seed: int = 0) -> "subprocess.Popen[str]":
    environment = {**os.environ, "SEED": str(seed)}
    line = [sys.executable, "-m", "midge", *map(str, words)]
    return subprocess.Popen(
        line,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a job in the background ignores it
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def running(*words: str | Path, cwd: Path, seed: int) -> Iterator["subprocess.Popen[str]"]:
    with command(*words, cwd=cwd, seed=seed) as process:
        try:
            yield process
        finally:
            process.terminate()


def states(fleet: Path) -> dict[str, str]:
    bundle = read_bundle(fleet / "operator")
    found = asyncio.run(describe_federation(connector(bundle.endpoint), bundle.topics, ask=False))
    return {name: device["state"] for name, device in found["devices"].items()}


def request(fleet: Path) -> bool:
    """Whether a request is retained, as a device sees it that joins."""

    async def look() -> list[Any]:
        bundle = read_bundle(fleet / "aggregator" / "aggregator.toml")
        async with connector(bundle.endpoint)(options()) as connection:
            marker = f"{bundle.topics.aggregator}/look"
            return await read_retained(connection, bundle.topics.survey, marker=marker)

    return bool(asyncio.run(look()))


def test_the_operator_surveys_devices_that_no_aggregator_has_seen(tmp_path: Path) -> None:
    """Seen to fail without the operator's right to publish the request, and without the Last Will."""
    (tmp_path / "pump.py").write_text(APP)
    with running_fleet(tmp_path / "fleet") as fleet, ExitStack() as devices:
        key = fleet / "aggregator" / "release.key"
        what: list[str | Path] = ["survey", "--config", fleet / "operator", "--k-min", "2"]

        def device(name: str, seed: int, *words: str) -> "subprocess.Popen[str]":
            where: list[str | Path] = ["--config", fleet / "devices" / name, "--log", "json", *words]
            return devices.enter_context(running("device", "pump:app", *where, cwd=tmp_path, seed=seed))

        pumps = [device(name, seed) for seed, name in enumerate(NAMES[:2])]
        until("both are online", lambda: [*states(fleet).values()].count("ready") == 2, every=0.3)
        with command(*what, "--release-key", key, "--json", cwd=tmp_path) as asking:
            out, errors = asking.communicate(timeout=LAST_RESORT)
        assert asking.returncode == 0, errors
        said = json.loads(out)
        assert (said["answers"]["answered"], said["devices"], said["rows"]) == (2, 2, 64)
        assert [one["name"] for one in said["channels"]] == ["speed", "heat"]
        assert "federation plant" in (tmp_path / "survey.html").read_text()
        assert not request(fleet)

        device(NAMES[2], 2, "--no-survey")
        until("all are online", lambda: [*states(fleet).values()].count("ready") == 3, every=0.3)
        for end, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
            with command(*what, "--release-key", key, "--seconds", "600", cwd=tmp_path) as asking:
                until("it has asked", lambda: request(fleet), every=0.3)
                asking.send_signal(end)
                asking.communicate(timeout=LAST_RESORT)
            assert asking.returncode == code
            until("the request is removed", lambda: not request(fleet), every=0.3)
        with command(*what, "--seconds", "3", cwd=tmp_path) as unsigned:
            _, errors = unsigned.communicate(timeout=LAST_RESORT)
        assert unsigned.returncode == 2 and "3 devices are online and did not answer" in errors
        for process in pumps:
            process.terminate()
            events = [json.loads(line) for line in process.communicate()[0].splitlines()]
            answered = [each for each in events if each["event"] == "survey_answered"]
            assert [each["rows"] for each in answered] == [32, 32, 32]
