"""Film a demo in which the aggregator is killed and started again, as an animated SVG: python docs/film.py.

The run is a real one. A frame is the live view once a second; the film shows the frames faster, and repeats. A row that
stays as it is is drawn once.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from pathlib import Path

from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME

from midge.__main__ import main as midge
from midge.commands import demo
from midge.commands.live import draw
from midge.commands.moments import DemoMoment, Happenings
from midge.commands.watching import Showing
from midge.sensor_fleet.demo import Demo

FILM = Path(__file__).parent / "pictures" / "film.svg"
WIDTH, HEIGHT = 92, 26
CELL, LINE = 8.4, 18
KILL, RESTART = 7, 11
"""Frames at which the aggregator is killed and started again."""
MORE = 14
"""Frames after the first release that follows."""
SECONDS = 0.5
"""Of a frame in the film; the last one stays longer."""
LAST = 6

Frame = Sequence[Sequence[Segment]]


def filming(frames: list[Frame]) -> Callable[[Happenings], Showing]:
    """What takes the place of the live view."""
    console = Console(width=WIDTH, height=HEIGHT, file=StringIO(), force_terminal=True, color_system="truecolor")

    def live(happenings: Happenings) -> Showing:
        async def showing(played: Demo, end: Callable[[], None]) -> None:
            before, more = 0, MORE
            while more:
                await asyncio.sleep(1)
                moment = DemoMoment.of(played, happenings)
                if not moment.curve:
                    continue
                frames.append(console.render_lines(draw(moment, WIDTH, HEIGHT), pad=False))
                if len(frames) == KILL:
                    played.kill_aggregator()
                    before = played.progress.version
                if len(frames) == RESTART:
                    await played.restart_aggregator()
                more -= len(frames) > RESTART and played.progress.version > before
            end()

        return showing

    return live


def colour(style: Style) -> str:
    """The colour of a text, as SVG has it."""
    given = style.color or Color.default()
    red, green, blue = given.get_truecolor(THEME)
    share = 0.6 if style.dim else 1.0
    return f"#{int(red * share):02x}{int(green * share):02x}{int(blue * share):02x}"


def row(segments: Sequence[Segment], y: float) -> str:
    """One line of the terminal."""
    parts, x = [], 0
    for segment in segments:
        text, style = segment.text, segment.style or Style()
        if text.strip():
            before = len(text) - len(text.lstrip())
            shown = text.strip().replace(" ", "\N{NO-BREAK SPACE}")
            left, length = (x + before) * CELL + 12, len(shown) * CELL
            ink = colour(style)
            if style.reverse:
                parts.append(
                    f'<rect x="{left - 2:.0f}" y="{y - 14:.0f}" width="{length + 4:.0f}" height="18" fill="#c5c8c6"/>'
                )
                ink = "#292929"
            bold = ' font-weight="bold"' if style.bold else ""
            parts.append(
                f'<text x="{left:.1f}" y="{y:.0f}" textLength="{length:.1f}" fill="{ink}"{bold}>{escape(shown)}</text>'
            )
        x += segment.cell_length
    return "".join(parts)


def film(frames: Sequence[Frame]) -> str:
    """All frames, one after another and again."""
    shown: dict[str, list[int]] = {}
    for number, frame in enumerate(frames):
        for line, segments in enumerate(frame):
            if drawn := row(segments, 44 + line * LINE):
                shown.setdefault(drawn, []).append(number)
    units = len(frames) + LAST - 1
    parts = []
    for drawn, numbers in shown.items():
        if len(numbers) == len(frames):
            parts.append(drawn)
            continue
        on = {unit for number in numbers for unit in ([number] if number < len(frames) - 1 else range(number, units))}
        edges = [unit for unit in range(units) if unit == 0 or (unit in on) != (unit - 1 in on)]
        values = ";".join("visible" if unit in on else "hidden" for unit in edges)
        times = ";".join(f"{unit / units:.4g}" for unit in edges)
        parts.append(
            f'<g>{drawn}<animate attributeName="visibility" calcMode="discrete" dur="{units * SECONDS:g}s" '
            f'repeatCount="indefinite" values="{values}" keyTimes="{times}"/></g>'
        )
    width, height = WIDTH * CELL + 24, HEIGHT * LINE + 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14" xml:space="preserve">'
        f'<title>A demo: the aggregator is killed and started again</title><rect width="{width:.0f}" '
        f'height="{height:.0f}" rx="8" fill="#292929"/><circle cx="20" cy="16" r="5" fill="#ff5f57"/>'
        '<circle cx="38" cy="16" r="5" fill="#febc2e"/><circle cx="56" cy="16" r="5" fill="#28c840"/>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    """Run, and write the film."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=120)
    args = parser.parse_args()
    frames: list[Frame] = []
    demo.live = filming(frames)
    demo._showing = lambda _, happenings, __: demo.live(happenings)  # noqa: SLF001 - there is no terminal here
    midge(
        [
            "demo",
            "--name",
            "film",
            "--calm",
            "--seconds",
            str(args.seconds),
            "--target",
            "0.99",
            "--pooled-seconds",
            "5",
        ]
    )
    if len(frames) <= RESTART:
        sys.exit("The run was too short for a film.")
    FILM.write_text(film(frames), encoding="utf-8")
    print(f"{FILM}: {len(frames)} frames, {FILM.stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
