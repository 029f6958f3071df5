"""The page of one run: what came of it, in words, numbers and figures."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from sensor_fleet.progress import HELD
from sensor_fleet.report import devices, learning
from sensor_fleet.report.bill import Bill, bill
from sensor_fleet.report.html import Markup, element, facts, figure, figures, key, page, section, table, value
from sensor_fleet.report.lives import lives
from sensor_fleet.report.quantities import MISSING, counted, duration, percent, score, size, times
from sensor_fleet.report.run import Run, mapping
from sensor_fleet.report.svg import Drawing
from sensor_fleet.setting import Setting

KEY: Final = (
    ("training", "training"),
    ("sending", "sending, until the receipt"),
    ("waiting", "waiting for a newer model"),
    ("away", "no connection"),
)


def report(run: Run) -> str:
    """The page, as HTML that stands by itself."""
    return page(
        f"{run.name}: a Midge run",
        [
            element("p", f"Midge · report of the run {run.name}", "eyebrow"),
            _warning(run),
            element("h1", headline(run)),
            element("p", _lead(run), "lead"),
            _facts(run),
            _learning(run),
            _staleness(run),
            _devices(run),
            _bill(run),
            _updates(run),
            _setting(run),
            element("footer", "Made by midge report from the files of the run. This page loads nothing from anywhere."),
        ],
    )


# ----------------------------------------------------------------------- the top


def headline(run: Run) -> str:
    """What came of it in a sentence."""
    fleet, reached = counted(len(run.names), "device"), score(run.value, run.metric)
    what = reached if run.metric == "accuracy" else f"an RMSE of {reached}"
    if run.value is None:
        if run.evaluations:
            return f"{fleet} trained for {duration(run.seconds)}, and the model did not stay finite"
        return f"{fleet} ran for {duration(run.seconds)}, and no model was evaluated"
    if run.seconds_to_target is not None:
        target = score(run.target, run.metric)
        return f"{fleet} held {target} after {duration(run.seconds_to_target)}, and none of them sent its data"
    ending = f"{what} accuracy" if run.metric == "accuracy" else what
    if run.target is not None and run.finished:
        return f"{fleet} came to {ending} in {duration(run.seconds)}, and missed {score(run.target, run.metric)}"
    return f"{fleet} came to {ending} in {duration(run.seconds)}, and none of them sent its data"


def _lead(run: Run) -> str:
    name = "accuracy" if run.metric == "accuracy" else "RMSE"
    told = []
    if run.central is not None and run.central.value is not None:
        told.append(
            f"The same model trained on all rows pooled in one place comes to {score(run.central.value, run.metric)}"
        )
    if run.alone is not None and run.alone.mean is not None:
        alone = f"a device that trains alone to {score(run.alone.mean, run.metric)} in the mean"
        told.append(f"and {alone}" if told else alone[0].upper() + alone[1:])
    sentence = " ".join(told) + f" ({name} on the same test rows)." if told else ""
    if told and run.value is not None and run.alone is not None and run.alone.mean is not None:
        gain = run.better * (run.value - run.alone.mean)
        if gain <= 0:
            sentence += " Federating did not help: training alone is better."
    return sentence


def _warning(run: Run) -> Markup:
    words = []
    if not run.finished:
        words.append(
            f"This run did not come to its end: its last event is from {duration(run.seconds)} after the start. "
            "What was written until then is here; the rest cannot be known."
        )
    if run.unreadable:
        words.append(f"{counted(run.unreadable, 'line')} of its files could not be read and are left out.")
    return element("p", " ".join(words), "warning") if words else Markup("")


def _facts(run: Run) -> Markup:
    name = "Accuracy" if run.metric == "accuracy" else "RMSE, less is better"
    rows = [(name, value(run.value, score(run.value, run.metric), "fleet-ink"), "federated, on the test rows")]
    if (central := run.central) is not None:
        some = "" if central.rows == central.of_rows else f" on {central.rows:,} of {central.of_rows:,} rows"
        note = f"{central.steps:,} steps{some}"
        rows.append(("Pooled, central", value(central.value, score(central.value, run.metric)), note))
    if (alone := run.alone) is not None:
        some = f"{len(alone.values)} of {alone.of} devices" if len(alone.values) < alone.of else f"{alone.of} devices"
        spread = score(alone.deviation, run.metric).removesuffix("%")
        note = f"mean ± {spread} of {some}"
        rows.append(("Each device alone", value(alone.mean, score(alone.mean, run.metric), "alone-ink"), note))
    accepted = len(run.accepted)
    turned = len(run.updates) - accepted
    note = f"{turned:,} not accepted" if turned else "all that came" if accepted else ""
    rows.append(("Updates accepted", value(accepted, f"{accepted:,}"), note))
    taus = [update.staleness for update in run.accepted]
    if taus:
        note = f"steps; 90% up to {learning.quantile(taus, 0.9)}, at most {max(taus)}"
        rows.append(("Staleness, median", value(learning.median(taus), str(learning.median(taus))), note))
    if (cost := bill(run)) is not None:
        note = f"{size(cost.up)} up, {size(cost.down)} down" if cost.down is not None else "sent; received is not known"
        rows.append(("Bytes a device", value(cost.total, size(cost.total)), note))
    return facts(rows)


# ------------------------------------------------------------------- the sections


def _learning(run: Run) -> Markup:
    if not run.evaluations:
        return Markup("")
    under = (
        f"Thin: each evaluation. Bold: the mean of the last {HELD}, by which a target has to be held. "
        + _how_baselines(run)
        + _outages(run)
    )
    return section(
        "How the model learned",
        under.strip(),
        figures(figure("Against time", "", lambda room: learning.over_time(run, room), full=True)),
        figures(
            figure(
                "Against bytes",
                "All that a device sent and received, in the mean; dotted: what it sent. The two points are the "
                "baselines: pooling costs the raw data once, training alone costs nothing.",
                lambda room: learning.over_bytes(run, room),
                full=True,
            )
        ),
    )


def _outages(run: Run) -> str:
    """What of the server side was killed and came back."""
    if not run.killed:
        return ""
    told = [f"{what} for {duration((end or max(run.times)) - start)}" for start, end, what in run.killed]
    return f" Shaded: killed was {', '.join(told)}."


def _how_baselines(run: Run) -> str:
    told = []
    if run.central is not None:
        told.append(f"Pooled: the devices' own trainer on all rows, {run.central.steps:,} steps.")
    if run.alone is not None:
        number = len(run.alone.values)
        of = f"{number} of {run.alone.of} devices, drawn by the seed," if number < run.alone.of else "each device"
        told.append(
            f"Alone: {of} on its own rows and its own normalisation, {run.alone.steps or 0:,} steps; "
            "the band is one standard deviation to each side."
        )
    return " ".join(told)


def _staleness(run: Run) -> Markup:
    taus = sorted(update.staleness for update in run.accepted)
    if not taus:
        return Markup("")
    total = math.fsum(update.weight for update in run.accepted)
    fresh = math.fsum(update.weight for update in run.accepted if update.staleness <= learning.median(taus))
    number = sum(tau <= learning.median(taus) for tau in taus)
    share = (
        f"The freshest {percent(number / len(taus), 0)} of the updates carry {percent(fresh / total, 0)} of all weight"
    )
    return section(
        "Staleness",
        "How many steps the model had gone between the version that a device trained from and the arrival of its "
        "update. Nobody waits for slow devices; their work comes late and counts less.",
        figures(
            figure(
                f"Half of the updates are at most {counted(learning.median(taus), 'step')} stale",
                f"The stalest that was accepted came {counted(taus[-1], 'step')} late.",
                lambda room: learning.staleness(run, room),
            ),
            figure(
                share if total else "The weight of updates",
                "The weight that each update was given, by its staleness. Large dots are many updates.",
                lambda room: learning.weights(run, room),
            ),
        ),
    )


def _devices(run: Run) -> Markup:
    found = lives(run)
    chosen = devices.shown(run, found)
    ends = Counter(how for life in found.values() for _, how in life.ends)
    some = f"{len(chosen)} of {len(found)}, evenly from" if len(chosen) < len(found) else "From"
    gone = ", ".join(f"{number} {how}" for how, number in sorted(ends.items()))

    def draw(room: tuple[float, float]) -> Drawing | None:
        return devices.timeline(chosen, room[0])

    return section(
        "The devices",
        "What each device did all the time, how much it took part, and how well the model suits it in the end.",
        figures(
            figure(
                f"What {counted(len(found), 'device')} did",
                f"{some} the quickest to the slowest. On the right: the part of its life that a device spent training."
                + (f" Over all: {gone}." if gone else ""),
                draw,
                full=True,
                key=key(KEY, "killed, or left for good" if ends else ""),
            )
        ),
        figures(
            figure(_title_of_participation(run), "A point is a device.", lambda room: devices.participation(run, room)),
            figure(
                _title_of_spread(run),
                "The final model on the rows that each device trained with. Lines: the means of the slowest quarter "
                "and of the others." + _left_out(run),
                lambda room: devices.on_own_rows(run, room),
            ),
        ),
    )


def _title_of_participation(run: Run) -> str:
    apart = devices.slowest(run)
    if apart is None or not run.accepted:
        return "How much each took part"
    slow = set(apart.slow)
    share = sum(update.device in slow for update in run.accepted) / len(run.accepted)
    return f"The slowest quarter gave {percent(share, 1 if share < 0.1 else 0)} of the accepted updates"


def _title_of_spread(run: Run) -> str:
    means = devices.means_of_groups(run)
    if means is None:
        return "How well it suits each"
    slow, others = (score(mean, run.metric) for mean in means)
    return f"On their own rows: {slow} for the slowest quarter, {others} for the others"


def _left_out(run: Run) -> str:
    if run.own is None or len(run.own.values) >= run.own.of:
        return ""
    return f" {len(run.own.values)} of {run.own.of} devices."


def _bill(run: Run) -> Markup:
    cost = bill(run)
    if cost is None:
        return Markup("")
    verdict = "".join(element("p", words) for words in cost.verdict())
    return section(
        "The bill",
        "Payload bytes of one device in the mean, without the headers of MQTT, TLS and TCP. The devices of this run "
        "trained without pause; the last rows take what an accepted update cost here for devices that train less.",
        table(("", "sent", "received", "together", "of its raw data"), _rows_of(cost)),
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
        (words, *(size(part) for part in parts), f"{times(parts[2] / cost.raw)}×" if cost.raw and parts[2] else MISSING)
        for words, parts in kinds
    ]
    return [*rows, ("Its raw data, sent once", size(cost.raw), MISSING, size(cost.raw), "1×" if cost.raw else MISSING)]


def _updates(run: Run) -> Markup:
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
        table(("verdict", "updates"), rows),
    )


def _told(run: Run, event: str) -> int:
    return sum(told.event == event for told in run.happenings)


# -------------------------------------------------------------------- the setting


def _setting(run: Run) -> Markup:
    plain = mapping(run.about.get("setting"))
    if not plain:
        return Markup("")
    data, model, machine = (mapping(run.about.get(name)) for name in ("data", "model", "machine"))
    flat = {**plain, **mapping(plain.get("world"))}
    rows = [(name.replace("_", " "), _plain(word)) for name, word in flat.items() if name != "world"]
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
        figures(table(("setting", ""), rows), table(("with", ""), about)),
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
        if run.about.get(name) is not None:
            words += [f"--{name}", str(run.about[name])]
    return shlex.join(words)


def _plain(word: Any) -> str:
    match word:
        case None:
            return "by default"
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
