"""Run a demo and show it: live in a terminal, plain lines or JSON elsewhere."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from midge.commands.moments import DemoMoment, Happenings, in_bytes, shown

if TYPE_CHECKING:
    from midge.sensor_fleet.demo import Demo, Ending

FRAMES_PER_SECOND = 4
Show = Callable[["Demo"], None]
Showing = Callable[["Demo", Callable[[], None]], Awaitable[None]]
"""Shows a demo until it is cancelled; calling the second argument ends the demo."""


async def watch(demo: "Demo", showing: Showing) -> "Ending":
    """Run and show. Ctrl-C and SIGTERM end the run cleanly; a second one ends it at once."""
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        demo.stop()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, interrupt)
    try:
        async with asyncio.TaskGroup() as tasks:
            shower = tasks.create_task(_until_cancelled(showing(demo, interrupt)))
            ending = await demo.run()
            shower.cancel()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
    return "interrupted" if interrupted else ending


async def _until_cancelled(showing: Awaitable[None]) -> None:
    await showing


def every_second(show: Show) -> Showing:
    """Print a line a second."""

    async def showing(demo: "Demo", _: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(1)
            show(demo)

    return showing


def live(happenings: Happenings) -> Showing:
    """The live view, with keys that cause faults and end the run."""
    from rich.console import Console  # noqa: PLC0415 - an extra
    from rich.live import Live  # noqa: PLC0415

    from midge.commands.keys import keys  # noqa: PLC0415
    from midge.commands.live import draw  # noqa: PLC0415

    async def showing(demo: "Demo", end: Callable[[], None]) -> None:
        console = Console()
        pressed: asyncio.Queue[str] = asyncio.Queue()
        with (
            logging_to(demo.directory / "devices.log"),
            keys(pressed.put_nowait),
            Live(console=console, screen=True, auto_refresh=False) as screen,
        ):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_obey(demo, pressed, end))
                while True:
                    width, height = console.size
                    moment = DemoMoment.of(demo, happenings)
                    screen.update(draw(moment, width, height, ascii_only=console.options.ascii_only), refresh=True)
                    await asyncio.sleep(1 / FRAMES_PER_SECOND)

    return showing


async def _obey(demo: "Demo", pressed: "asyncio.Queue[str]", end: Callable[[], None]) -> None:
    """Obey key presses: kill, and restart."""
    while True:
        key = (await pressed.get()).lower()
        if demo.fleet is None and key != "q":
            continue  # nothing to kill yet
        match key:
            case "a":
                if not demo.kill_aggregator():
                    await demo.restart_aggregator()
            case "b":
                if not demo.kill_broker():
                    await demo.restart_broker()
            case "d":
                if demo.restart_device() is None:
                    demo.kill_device()
            case "q":
                end()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Redirect log messages from the screen to a file."""
    root = logging.getLogger()
    before, file = root.handlers[:], logging.FileHandler(path, delay=True)
    root.handlers[:] = [file]
    try:
        yield
    finally:
        root.handlers[:] = before
        file.close()


# ------------------------------------------------------------------- plain lines


def print_json(more: Mapping[str, str]) -> Show:
    """Print one object, with these fields as well."""

    def show(demo: "Demo") -> None:
        print(json.dumps({**demo.outcome(), **more}), flush=True)

    return show


def print_words(demo: "Demo") -> None:
    """Print one line."""
    progress, fleet = demo.progress, demo.fleet
    if fleet is None:
        print(f"{demo.elapsed:5.0f} s  starting a broker and the aggregator", flush=True)
        return
    if not progress.version:
        waiting = "gathering statistics" if progress.states else "devices connect"
        print(f"{demo.elapsed:5.0f} s  {demo.about_broker}; {waiting}", flush=True)
        return
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in progress.updates.most_common())
    tau, (up, down) = progress.quantiles(), fleet.payloads
    print(
        f"{demo.elapsed:5.0f} s  version {progress.version:<5} {progress.metric} {shown(progress):<7}"
        f"  updates: {verdicts or 'none'}"
        f"  steps late (half, 90 %, all) {tau.get('p50', '-')}/{tau.get('p90', '-')}/{tau.get('max', '-')}"
        f"  up {in_bytes(up)}  down {in_bytes(down)}",
        flush=True,
    )


def print_ending(demo: "Demo", ending: "Ending") -> None:
    """Print how it ended and where the results are."""
    progress, taken = demo.progress, demo.progress.seconds_to_target
    what = {
        "target": f"The target is reached and held after {0 if taken is None else taken:.1f} s",
        "time": "The time is over",
        "interrupted": "Interrupted",
    }
    print(f"{what[ending]}: {progress.metric} {shown(progress)} at version {progress.version}.")
    if not progress.version:
        where = f"its messages are in {demo.directory}/aggregator.log"
        print(
            f"No version was released: the aggregator reached no broker, or had no updates; {where}.", file=sys.stderr
        )
    if demo.target is not None and not progress.reached and ending == "time":
        print(f"The target of {demo.target:g} was missed.", file=sys.stderr)
    model = demo.directory / "model.safetensors"
    if model.exists():
        print(f"The model is in {model}, every event in {demo.directory}/metrics.jsonl.")
    else:  # the machine was so busy that the aggregator had to be killed
        print(f"The aggregator did not end in time and wrote no model; it is safe in {demo.directory}/store.")
