"""What the live page costs: `python -m benchmarks.dashboard [--devices 5000] [--seconds 60]` prints one JSON line.

A synthetic federation over the real Mosquitto: each of its devices sends a status and an update once in 30 seconds and
gets a receipt, and its aggregator answers what it is asked. `midge watch` serves the page from its own process, and
headless Chromium has it open. The line has the processor time of that process as a share of one core, while the page
is open and while it is not, what it sends, and the longest task of the browser's main thread while a script scrolls
through the table, sorts and filters it, by its processor time and by the clock. With `--serve` the federation stays, to
be looked at.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from midge.broker import connector  # noqa: E402
from midge.broker.local.local_broker import local_broker  # noqa: E402
from midge.broker.mqtt.connection import Options  # noqa: E402
from midge.wire.messages import HealthState  # noqa: E402
from midge.wire.topics import Topics  # noqa: E402
from tests.dashboard.synthetic import SyntheticFederation  # noqa: E402

_TICKS = os.sysconf("SC_CLK_TCK")
_SCROLL = """async () => {
  const table = document.getElementById("table"), frame = () => new Promise(requestAnimationFrame);
  const times = [];
  let before = performance.now();
  const step = async (top) => {
    table.scrollTop = top; await frame(); times.push(performance.now() - before); before = performance.now();
  };
  const end = table.scrollHeight;
  for (let top = 0; top < end; top += end / 600) await step(top);
  for (let place = 0; place < 200; place += 1) await step(((place * 7919) % 997) / 997 * end);
  for (const button of [...document.querySelectorAll(".head button")].map((each) => each.dataset.key)) {
    document.querySelector(`.head button[data-key="${button}"]`).click(); await frame(); await frame();
  }
  const find = document.getElementById("find");
  for (const text of ["p", "pu", "pump-1", "pump-12", ""]) {
    find.value = text; find.dispatchEvent(new Event("input")); await frame(); await frame();
  }
  times.sort((a, b) => a - b);
  return { frames: times.length, frame_ms_p50: Math.round(times[times.length >> 1]),
    frame_ms_p99: Math.round(times[Math.floor(times.length * 0.99)]),
    rows_in_document: document.querySelectorAll(".row").length };
}"""


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mib(pid: int) -> int:
    """Memory of a process that is resident."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024


async def measure(pid: int, seconds: float) -> float:
    """Share of one core of a process, in per cent."""
    before, began = processor_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (processor_seconds(pid) - before) / (time.monotonic() - began)


async def browse(url: str, pid: int, seconds: float) -> dict[str, Any]:
    """Open the page, and measure both sides."""
    from playwright.async_api import async_playwright  # noqa: PLC0415

    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        received = 0

        def count(event: dict[str, Any]) -> None:
            nonlocal received
            received += event["dataLength"]

        session = await page.context.new_cdp_session(page)
        await session.send("Network.enable")
        session.on("Network.dataReceived", count)
        await page.goto(url)
        await page.wait_for_selector(".row")
        await asyncio.sleep(5)
        received, began = 0, time.monotonic()
        open_share = await measure(pid, seconds)
        rate = received / (time.monotonic() - began)
        await browser.start_tracing(page=page, categories=["toplevel", "__metadata"])
        scrolled = await page.evaluate(_SCROLL)
        tasks = tasks_of(json.loads(await browser.stop_tracing()))
        await browser.close()
    return {"core_percent_open": round(open_share, 2), "bytes_a_second": round(rate), **tasks, **scrolled}


def tasks_of(trace: dict[str, Any]) -> dict[str, Any]:
    """The longest task of the main thread of the page's process, by its own processor time and on the clock.

    On a machine that is busy with other things the second is longer.
    """
    events = trace["traceEvents"]
    mains = {(each["pid"], each["tid"]) for each in events if each.get("args", {}).get("name") == "CrRendererMain"}
    tasks = [each for each in events if (each["pid"], each["tid"]) in mains and each.get("ph") == "X"]
    busiest = Counter(task["pid"] for task in tasks).most_common(1)[0][0]
    own = [task for task in tasks if task["pid"] == busiest]
    return {
        "tasks": len(own),
        "longest_task_processor_ms": round(max(task.get("tdur", 0) for task in own) / 1000, 1),
        "longest_task_ms": round(max(task["dur"] for task in own) / 1000, 1),
        "tasks_over_50_ms": sum(task["dur"] > 50_000 for task in own),
    }


async def main(args: argparse.Namespace) -> dict[str, Any]:
    topics = Topics("pumps")
    with tempfile.TemporaryDirectory() as directory:
        async with local_broker("mosquitto", directory=Path(directory)) as broker:
            connect = connector(broker.endpoint)
            federation = SyntheticFederation(
                topics, args.devices, alarms=tuple(args.alarm), state=HealthState(args.state), why=args.why
            )
            async with connect(Options("synthetic")) as connection:
                await federation.begin(connection)
                living = asyncio.create_task(federation.live(connection))
                command = [sys.executable, "-m", "midge", "watch", str(broker.endpoint), "--federation", "pumps"]
                watching = subprocess.Popen(  # noqa: ASYNC220 - a benchmark
                    [*command, "--page", args.page], stdout=subprocess.PIPE, text=True, cwd=ROOT
                )
                try:
                    assert watching.stdout is not None
                    url = (await asyncio.to_thread(watching.stdout.readline)).split()[-1]
                    if args.serve:
                        print(url, flush=True)
                        await living
                    await asyncio.sleep(10)
                    closed = await measure(watching.pid, args.seconds)
                    sent, began = federation.sent, time.monotonic()
                    found = await browse(url, watching.pid, args.seconds)
                    rate = (federation.sent - sent) / (time.monotonic() - began)
                    memory = resident_mib(watching.pid)
                finally:
                    living.cancel()
                    watching.terminate()
                    watching.wait()
    return {
        "benchmark": "dashboard",
        "devices": args.devices,
        "messages_a_second": round(rate),
        "core_percent_closed": round(closed, 2),
        **found,
        "resident_mib": memory,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--page", default="127.0.0.1:0")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--alarm", action="append", default=[])
    parser.add_argument("--state", default="learning")
    parser.add_argument("--why", default="")
    found = asyncio.run(main(parser.parse_args()))
    print(json.dumps(found))
