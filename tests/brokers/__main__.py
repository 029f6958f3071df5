"""Midge over other people's brokers: `python -m tests.brokers [--quick] [--only NAME …]`, one JSON line.

Each broker runs on the loopback, with its files in a temporary folder. One that is not installed is a row with what
would bring it. A row's columns:

| column | measured |
|---|---|
| `contract` | tests of `tests/broker/test_contract.py` that passed and failed; `differs` gives the known reasons |
| `check` | `midge broker check`: MQTT versions, and whether nothing stands in the way |
| `demo_seconds` | `midge demo --broker URL` from its start to its end, and the accuracy that it held |
| `kills`, `kills_lost`, `kills_doubled` | processes of devices and aggregator killed at random; then the books |
| `clean_left` | topics of that federation that still hold something after `midge clean` |
| `clean_named` | whether that was so only once the devices were named, as `midge clean` says |

Exit code 1: a test failed that is not known to, or passed that is known to fail; an update was lost or doubled; the
demonstration missed its accuracy; or something was left.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from benchmarks.suite import machine
from midge.broker import Endpoint, connector
from midge.broker.local.local_broker import BrokerProgram, LocalBroker, local_broker
from midge.broker.mqtt.connection import BrokerUnreachable, Options
from midge.broker.mqtt.retained import read_retained
from tests.brokers.known import KNOWN
from tests.brokers.programs import PROGRAMS
from tests.brokers.services import SERVICES, federate
from tests.harness.chaos import Chaos, Play
from tests.harness.processes import ROOT, address

QUICK = ("mosquitto", "rumqttd")
KILLS = {"kill devices": 8, "kill aggregator": 3}
AT_ONCE = 7
"""Filters in a SUBSCRIBE beside the marker: AWS IoT Core accepts eight."""


def main() -> int:
    """Print the line; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.brokers", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} only, each for a shorter time")
    parser.add_argument("--only", action="append", choices=[*PROGRAMS, *SERVICES], metavar="NAME", help="repeatable")
    parser.add_argument("--out", type=Path, help="store the line in this file, with the machine")
    args = parser.parse_args()
    wanted = args.only or (QUICK if args.quick else [*PROGRAMS, *SERVICES])
    rows, load = [], os.getloadavg()[0]
    for name in wanted:
        began = time.monotonic()
        row = asyncio.run(federate(name, quick=args.quick)) if name in SERVICES else of(name, quick=args.quick)
        row["seconds"] = round(time.monotonic() - began, 1)
        sys.stderr.write(f"{json.dumps(row)}\n")
        rows.append(row)
    found = {"benchmark": "brokers", "quick": args.quick, "rows": rows}
    sys.stdout.write(json.dumps(found) + "\n")
    if args.out is not None:
        about = {"benchmark": "brokers", "machine": machine(), "load_before": round(load, 2)}
        args.out.write_text(json.dumps({**about, "found": found}, indent=1) + "\n")
    return 0 if all(row["good"] for row in rows) else 1


def of(name: str, *, quick: bool) -> dict[str, Any]:
    """The row of a broker. One that is not installed breaks no promise, except of the brokers that are always there."""
    try:
        program = PROGRAMS[name]()
    except BrokerUnreachable as error:
        return {"broker": name, "version": None, "missing": str(error), "good": name not in QUICK}
    row: dict[str, Any] = {"broker": name, "version": program.describe(), "contract": contract(name)}
    with tempfile.TemporaryDirectory(prefix=f"midge-{name}-") as directory:
        row |= asyncio.run(_used(program, Path(directory), quick=quick))
    row["good"] = (
        not row["contract"]["unexpected"] and row["demo_good"] and row["kills_good"] and row["clean_left"] == 0
    )
    return row


# -------------------------------------------------------------------- contract suite


def contract(name: str) -> dict[str, Any]:
    """Results of the contract suite over one broker: those that are known to fail are named with their reason."""
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "found.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/broker/test_contract.py", f"--junit-xml={found}"]
        environment = {**os.environ, "MIDGE_BROKER": name, "MIDGE_LAST_RESORT": "30"}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        cases = ET.parse(found).getroot().iter("testcase")
        ended = [(each.attrib["name"].partition("[")[0], len(each) == 0) for each in cases]
    known = KNOWN.get(name, {})
    failed = [test for test, passed in ended if not passed]
    unexpected = sorted(set(failed) ^ known.keys())
    differs = sorted({known[test] for test in failed if test in known})
    return {"passed": len(ended) - len(failed), "failed": len(failed), "differs": differs, "unexpected": unexpected}


# ------------------------------------------------------------------------- commands


async def _used(program: BrokerProgram, directory: Path, *, quick: bool) -> dict[str, Any]:
    """What commands and processes do over a broker."""
    folder = directory / "demo"
    folder.mkdir()
    async with local_broker(program, directory=folder) as broker:
        url = address(broker.endpoint)
        looked = json.loads((await midge("broker", "check", url, "--json"))[1] or "{}")
        findings = {each["name"]: each for each in looked.get("findings", ())}
        began = time.monotonic()
        target = "0.85" if quick else "0.93"
        code, output = await midge(
            *("demo", "--broker", url, "--target", target, "--seconds", "120", "--pooled-seconds", "1", "--json"),
            directory=folder,
        )
        seconds = round(time.monotonic() - began, 1)
    last = json.loads(output.splitlines()[-1]) if output else {}
    watch = Watch()
    play = Play(seconds=8 if quick else 30, broker=program, happenings=KILLS, beside=watch.watching)
    outcome = await Chaos(play, directory).run()
    return {
        "check": {
            "protocol": findings.get("protocol", {}).get("seen"),
            "problems": sum(each["level"] == "problem" for each in findings.values()),
            "ok": looked.get("ok"),
        },
        "demo_seconds": seconds,
        "demo_good": code == 0,
        "demo_said": last.get("error"),
        "kills": outcome.kills,
        "kills_updates": outcome.accepted,
        "kills_lost": outcome.lost,
        "kills_doubled": outcome.doubled,
        "kills_drained": outcome.drained,
        "kills_crashes": outcome.crashes,
        "kills_good": outcome.good and outcome.accepted > 0,
        "clean_seen": len(watch.topics),
        "clean_left": len(watch.left),
        "clean_said": watch.said,
        "clean_named": watch.named,
    }


class Watch:
    """A subscriber that collects each topic of a federation, and after `midge clean` reads each by its own name.

    So the number left is right on a broker that sends no retained messages to wildcards, too.
    """

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.left: list[str] = []
        self.said = ""
        self.named = False
        """Whether the devices had to be named."""

    @asynccontextmanager
    async def watching(self, broker: LocalBroker) -> AsyncIterator[None]:
        connect = connector(broker.endpoint)
        async with connect(Options("midge-watch")) as connection:
            await connection.subscribe("midge/1/chaos/#")

            async def collect() -> None:
                async for delivery in connection.messages():
                    connection.ack(delivery)
                    self.topics.add(delivery.topic)

            collecting = asyncio.create_task(collect())
            try:
                yield
            finally:
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)
        words = ("clean", address(broker.endpoint), "--federation", "chaos", "--force")
        _, said = await midge(*words)
        self.said = " ".join(said.split())
        if "--device NAME" in said:  # the broker hides what devices said of themselves, until they are named
            self.named = True
            names = {topic.rpartition("/")[2] for topic in self.topics if "/status/" in topic}
            await midge(*words, *(word for name in sorted(names) for word in ("--device", name)))
        self.left = await _held(broker.endpoint, sorted(self.topics))


async def _held(endpoint: Endpoint, topics: list[str]) -> list[str]:
    """Those topics on which something is retained, each read by its name."""
    held = []
    async with connector(endpoint)(Options("midge-left")) as connection:
        for first in range(0, len(topics), AT_ONCE):
            some = topics[first : first + AT_ONCE]
            held += [each.topic for each in await read_retained(connection, *some, marker="midge/1/chaos/left")]
    return held


async def midge(*words: str, directory: Path | None = None) -> tuple[int, str]:
    """Exit code and output of a command; what it says of errors goes to ours."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "midge", *words),
        stdout=asyncio.subprocess.PIPE,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


if __name__ == "__main__":
    sys.exit(main())
