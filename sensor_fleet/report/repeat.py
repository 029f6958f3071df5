"""Repeating a run: its command with the options that differ from the defaults, its setting and its versions."""

import shlex
from collections.abc import Mapping
from typing import Any

from midge.sensor_fleet.report.quantities import MISSING
from midge.sensor_fleet.report.run import Run, finite_number, mapping
from midge.sensor_fleet.setting import Setting

_OF_STRATEGIES = {"alpha": ("fedasync",), "form": ("fedasync",), "staleness": ("fedasync", "fedbuff")}
"""Settings that only these strategies use."""


def command(run: Run) -> str:
    """The command that repeats the run."""
    return shlex.join(_fleet_words(run) if run.of_profile else _demo_words(run))


def _demo_words(run: Run) -> list[str]:
    defaults = Setting().packed()
    words = ["midge", "demo"]
    given = mapping(run.about.get("setting"))
    world, usual = mapping(given.get("world")), mapping(defaults.pop("world"))
    given_world = {name: word for name, word in world.items() if name != "seed"}
    for name, word in ({**given, "world": None} | given_world).items():
        if word not in (None, {**defaults, **usual}.get(name)):
            words += [_option(name), *([] if word is True else [str(word)])]
    for name in ("target", "seconds"):
        if (number := finite_number(run.about.get(name))) is not None:
            words += [_option(name), f"{number:g}"]
    return words


def _fleet_words(run: Run) -> list[str]:
    given = mapping(run.about.get("setting"))
    words = ["midge", "fleet", "--live" if run.live else "--virtual"]
    for name in ("profile", "devices", "days", "data", "model", "strategy", "buffer_size", "learning_rate"):
        if (word := given.get(name)) is not None and (name, word) != ("strategy", "balanced"):
            words += [_option(name), f"{word:g}" if isinstance(word, float) else str(word)]
    for name in ("local_steps", "batch_size", "codec"):
        if (word := given.get(name)) is not None:
            words += [_option(name), str(word)]
    interval = finite_number(given.get("interval"))
    numbers = {
        "interval": None if interval is None else interval / 3600,
        **{name: finite_number(given.get(name)) for name in ("drift", "fresh", "micro", "speed_up")},
        "target": run.target,
    }
    for name, number in numbers.items():
        words += [] if number is None else [_option(name), f"{number:g}"]
    return [*words, "--seed", str(given.get("seed", 0))]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def setting(run: Run) -> dict[str, list[tuple[str, str]]] | None:
    """The training, the world and the versions of a run, as names and words; None if they are not recorded."""
    plain = _in_use(mapping(run.about.get("setting")))
    if not plain:
        return None
    data, model, machine = (mapping(run.about.get(name)) for name in ("data", "model", "machine"))
    rows, test_rows = data.get("rows"), data.get("test_rows")
    known = isinstance(rows, int) and isinstance(test_rows, int)
    return {
        "learned": _words({name: word for name, word in plain.items() if name != "world"}),
        "world": _words({**mapping(plain.get("world")), "seed": None}),
        "about": [
            ("rows", f"{rows:,} for training, {test_rows:,} for testing" if known else MISSING),
            ("inputs", f"{data.get('kind', MISSING)} of shape {_plain(data.get('shape'))}"),
            ("model", f"{model.get('name', MISSING)}, {_plain(model.get('parameters'))} parameters"),
            *((name, str(version)) for name, version in mapping(run.about.get("versions")).items()),
            ("machine", ", ".join(_plain(word) for word in machine.values()) + " cores" if machine else MISSING),
        ],
    }


def weighting(run: Run) -> str:
    """How late updates were weighted, in a sentence; empty if not recorded."""
    given = mapping(run.about.get("setting"))
    match given.get("strategy"), given.get("staleness"):
        case "balanced", _:
            return (
                "Updates of slow devices count in full: one counts less if it is later than is usual for its "
                "device, or opposes most others."
            )
        case (("fedasync" | "fedbuff"), "constant"):
            return "Updates count the same at any staleness."
        case (("fedasync" | "fedbuff"), ("polynomial" | "hinge") as rule):
            return f"The staler an update is, the less it counts ({rule})."
        case _:
            return ""


def flat_setting(run: Run) -> dict[str, str]:
    """All settings by name, in words, including those of the world."""
    plain = _in_use(mapping(run.about.get("setting")))
    return dict(_words({**mapping(plain.get("world")), **plain, "world": None}, unset="by default"))


def _in_use(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the strategy uses."""
    passed_over = {name for name, users in _OF_STRATEGIES.items() if plain.get("strategy") not in (None, *users)}
    return {name: word for name, word in plain.items() if name not in passed_over}


def _words(plain: Mapping[str, Any], unset: str = "") -> list[tuple[str, str]]:
    """Names and values in words; unset values are left out, unless `unset` names them."""
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
