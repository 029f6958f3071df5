"""The live view of a demo: drawn by rich from a `DemoMoment`, at any size from 80 by 24 on."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from midge.commands.chart import curve
from midge.commands.moments import DemoMoment, latest

FIGURES = 44
"""Cells of the column of figures; the curve gets the rest."""
FEWEST_LINES = 5
"""Events that are always shown."""
SHORTEST = 10.0
"""Least seconds on the curve's time axis."""
PICTURE = (100, 30)
"""Columns and lines of the picture."""

_STYLES = {
    "accepted": "dim",
    "duplicate": "yellow",
    "stale": "yellow",
    "busy": "yellow",
    "paused": "yellow",
    "ready": "green",
    "disconnected": "yellow",
    "lost": "red",
    "killed": "bold red",
    "restarted": "bold green",
    "start": "bold green",
    "learning": "green",
    "waiting": "yellow",
    "stalled": "bold red",
    "held": "bold red",
    "full": "bold red",
    "alarm": "bold red",
    "freeze": "cyan",
    "local_steps": "cyan",
    "serve": "green",
    "joined": "green",
    "left": "yellow",
    "vanished": "red",
}
"""Styles by kind of a line; any other is a refusal or a fault."""


def draw(moment: DemoMoment, width: int, height: int, *, ascii_only: bool = False) -> RenderableType:
    """The view in `height` lines of `width` cells."""
    top = max(len(moment.figures), min(height // 2, height - 4 - FEWEST_LINES))
    room = max(0, height - 3 - top)
    parts: list[RenderableType] = [
        _title(moment, width),
        _top(moment, width, top, ascii_only=ascii_only),
        Text(("-" if ascii_only else "─") * width, style="dim", no_wrap=True),
        *_lines(moment, room),
        _keys(moment),
    ]
    return Group(*parts)


def picture(moment: DemoMoment, path: str) -> None:
    """Write the view as a self-contained SVG image."""
    import io  # noqa: PLC0415
    import re  # noqa: PLC0415

    from rich._export_format import CONSOLE_SVG_FORMAT  # noqa: PLC0415

    width, height = PICTURE
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(draw(moment, width, height))
    plain = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(path, title="midge demo", code_format=plain)


def _title(moment: DemoMoment, width: int) -> Text:
    time = f"{moment.elapsed:.0f} s, {moment.left:.0f} s left"
    text = Text.assemble(("midge demo ", "bold"), (moment.title, ""), no_wrap=True)
    text.truncate(max(0, width - len(time) - 1), overflow="ellipsis")
    text.pad_right(max(1, width - text.cell_len - len(time)))
    return text.append(time, "bold")


def _top(moment: DemoMoment, width: int, height: int, *, ascii_only: bool) -> Table:
    grid = Table.grid(padding=0)
    column = min(FIGURES, width // 2 + 4)
    grid.add_column(width=width - column - 2, no_wrap=True)
    grid.add_column(width=2)
    grid.add_column(width=column, no_wrap=True)
    left = _chart(moment, width - column - 2, height, ascii_only=ascii_only)
    right = [_figure(*figure) for figure in moment.figures[:height]]
    for row in range(height):
        grid.add_row(left[row], "", right[row] if row < len(right) else "")
    return grid


def _figure(name: str, value: str) -> Text:
    style = ""
    if name in ("accuracy", "rmse"):
        style = "bold cyan"
    elif name == "receipted":
        style = "bold green" if "=" in value else ""
    text = Text.assemble((f"{name:<11}", "dim"), (value, style), no_wrap=True)
    text.overflow = "ellipsis"
    return text


def _chart(moment: DemoMoment, width: int, height: int, *, ascii_only: bool) -> list[Text]:
    """The curve with its axes: time below, values at the left."""
    shares = moment.metric == "accuracy"
    values = [value for _, value in moment.curve]
    high = 1.0 if shares or not values else max(values)
    low = 0.0 if shares or not values else min(values)
    labels = [f"{value:.0%}".replace("%", " %") if shares else f"{value:.3g}" for value in (high, low)]
    margin = max(map(len, labels)) + 1
    rows, cells = height - 1, width - margin
    until = max(SHORTEST, moment.elapsed)
    drawn = curve(moment.curve, cells, rows, until=until, low=low, high=high, ascii_only=ascii_only)
    goal = None
    if moment.target is not None and high > low and low <= moment.target <= high:
        goal = round((1 - (moment.target - low) / (high - low)) * (rows - 1))
    texts = []
    for row, line in enumerate(drawn):
        label = labels[0] if row == 0 else labels[1] if row == rows - 1 else ""
        text = Text(f"{label:>{margin - 1}} ", style="dim", no_wrap=True)
        for cell in line:
            if cell != " ":
                text.append(cell, "not dim bright_cyan")
            elif row == goal:
                text.append("." if ascii_only else "┈", "green")
            else:
                text.append(" ")
        texts.append(text)
    end = f"{until:.0f} s"
    middle = moment.metric
    axis = "0".ljust((cells - len(middle)) // 2) + middle
    texts.append(Text(" " * margin + axis.ljust(cells - len(end)) + end, style="dim", no_wrap=True))
    return texts


def _lines(moment: DemoMoment, room: int) -> list[Text]:
    texts = []
    for line in latest(moment.lines, room, moment.began + moment.elapsed):
        text = Text(f"{max(0.0, line.at - moment.began):5.1f} s  ", style="dim", no_wrap=True, overflow="ellipsis")
        texts.append(text.append(line.text, f"not dim {_STYLES.get(line.kind, 'red')}"))
    return texts + [Text("")] * (room - len(texts))


def _keys(moment: DemoMoment) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for key, name in (("a", "aggregator"), ("b", "broker"), ("d", "device")):
        if name == "broker" and not moment.broker_is_ours:
            continue
        dead = name in moment.killed
        text.append(f" {key} ", "reverse")
        text.append(f" {'bring back' if dead else 'kill'} {name}  ", "bold red" if dead else "")
    return text.append(" q ", "reverse").append(" end")
