"""The second half of a run's page, in tables: the bill, what became of the updates, and how to repeat it."""

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sensor_fleet.report.bill import Bill, bill
from sensor_fleet.report.html import Markup, element, figures, join, section, table
from sensor_fleet.report.quantities import MISSING, counted, duration, size, times
from sensor_fleet.report.run import Run, finite_number, mapping
from sensor_fleet.setting import Setting


def bill_of(run: Run) -> Markup:
    """What it cost in bytes, beside the raw data."""
    cost = bill(run)
    if cost is None:
        return Markup("")
    verdict = "".join(element("p", words) for words in cost.verdict())
    return section(
        "The bill",
        "Payload bytes of one device in the mean, without the headers of MQTT, TLS and TCP. The devices of this run "
        "trained without pause; the last rows take what an accepted update cost here for devices that train less.",
        table(("", "sent", "received", "together", "× raw data"), _rows_of(cost), kind="stacked"),
        Markup(f'<div class="verdict">{verdict}</div>') if verdict else Markup(""),
    )


def _rows_of(cost: Bill) -> list[tuple[str, ...]]:
    hours, days = 30 * 24.0, 30.0
    plain = cost.as_float32
    month = cost.monthly
    kinds = [
        (f"This run, {duration(cost.seconds)}", (cost.up, cost.down, cost.total)),
        (
            "A month without pause",
            tuple(None if part is None else month(part) for part in (cost.up, cost.down, cost.total)),
        ),
    ]
    if plain is not None:
        kinds.insert(1, ("The same as float32, whole models", (*plain, sum(plain))))
    for words, number in (("A month, an update an hour", hours), ("A month, an update a day", days)):
        parts = tuple(None if part is None else cost.at(number, part) for part in (cost.up, cost.down, cost.total))
        kinds.append((words, parts))
    rows = [
        (words, *(size(part) for part in parts), _of(parts[2], cost.raw) if cost.raw and parts[2] else MISSING)
        for words, parts in kinds
    ]
    return [*rows, ("Its raw data, sent once", size(cost.raw), MISSING, size(cost.raw), "1" if cost.raw else MISSING)]


def _of(part: float, raw: float) -> str:
    ratio = part / raw
    return times(ratio) if ratio < 1e6 else f"{times(ratio / 1e6)} million"


def updates_of(run: Run) -> Markup:
    """How many updates came to which verdict."""
    verdicts = Counter(update.verdict for update in run.updates)
    rows = [(verdict.replace("_", " "), f"{number:,}") for verdict, number in verdicts.most_common()]
    others = {
        "repeat": "came again, and counted once",
        "held": "refused for now, to be sent again",
        "dropped": "messages that could not be read",
    }
    rows += [(words, f"{run.others[name]:,}") for name, words in others.items() if run.others[name]]
    rows += [("trainings that gave nothing to send", f"{unfit:,}")] if (unfit := _told(run, "unfit")) else []
    rows += [("connections lost by devices", f"{lost:,}")] if (lost := _told(run, "disconnected")) else []
    if not rows:
        return Markup("")
    return section(
        "What became of the updates",
        f"{counted(len(run.updates), 'update')} in {counted(run.others['release'], 'release')} of the model.",
        table(("verdict", "updates"), rows, kind="half"),
    )


def _told(run: Run, event: str) -> int:
    return sum(told.event == event for told in run.happenings)


# -------------------------------------------------------------------- the setting


def setting_of(run: Run) -> Markup:
    """The command that repeats the run, its setting and versions."""
    plain = mapping(run.about.get("setting"))
    if not plain:
        return Markup("")
    data, model, machine = (mapping(run.about.get(name)) for name in ("data", "model", "machine"))
    learned = {name: word for name, word in plain.items() if name != "world" and word is not None}
    rows, world = _words(learned), _words({**mapping(plain.get("world")), "seed": None})
    about = [
        ("rows", f"{data.get('rows', MISSING):,} for training, {data.get('test_rows', MISSING):,} for the test")
        if isinstance(data.get("rows"), int) and isinstance(data.get("test_rows"), int)
        else ("rows", MISSING),
        ("inputs", f"{data.get('kind', MISSING)} of shape {_plain(data.get('shape'))}"),
        ("model", f"{model.get('name', MISSING)}, {_plain(model.get('parameters'))} parameters"),
        *((name, str(version)) for name, version in mapping(run.about.get("versions")).items()),
        ("machine", ", ".join(_plain(word) for word in machine.values()) + " cores" if machine else MISSING),
    ]
    return section(
        "How to repeat it",
        "The same seed deals the same data to the same devices at the same speeds. Which update arrives first is up to "
        "the clock, so that two runs are alike, not equal.",
        element("pre", command(run)),
        figures(
            join(table(("setting", ""), rows), table(("with", ""), about)), table(("world of the devices", ""), world)
        ),
    )


def command(run: Run) -> str:
    """The command that repeats the run, with what differs from the defaults."""
    defaults = Setting().packed()
    words = ["midge", "demo"]
    setting = mapping(run.about.get("setting"))
    world, usual = mapping(setting.get("world")), mapping(defaults.pop("world"))
    given_world = {name: given for name, given in world.items() if name != "seed"}
    for name, given in ({**setting, "world": None} | given_world).items():
        if given not in (None, {**defaults, **usual}.get(name)):
            words += [f"--{name.replace('_', '-')}", *([] if given is True else [str(given)])]
    for name in ("target", "seconds"):
        if (given := finite_number(run.about.get(name))) is not None:
            words += [f"--{name}", f"{given:g}"]
    return shlex.join(words)


def flat_setting(run: Run) -> dict[str, str]:
    """Each setting by its name, in words; those of the world among them."""
    plain = mapping(run.about.get("setting"))
    return dict(_words({**mapping(plain.get("world")), **plain, "world": None}, unset="by default"))


def _words(plain: Mapping[str, Any], unset: str = "") -> list[tuple[str, str]]:
    """Names and values as they are read; what is not set is left out, unless there is a word for it."""
    return [
        (name.replace("_", " "), unset if word is None else _plain(word))
        for name, word in plain.items()
        if name != "world" and (word is not None or unset)
    ]


def _plain(word: Any) -> str:
    match word:
        case None:
            return MISSING
        case bool():
            return "yes" if word else "no"
        case float():
            return f"{word:g}"
        case list() | tuple():
            return " × ".join(_plain(part) for part in word)
        case Mapping():
            return ", ".join(f"{name} {_plain(part)}" for name, part in word.items())
        case _:
            return f"{word:,}" if isinstance(word, int) and word >= 10_000 else str(word)
