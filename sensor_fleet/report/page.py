"""The page of one run: what came of it, in words, numbers and figures."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Final

from sensor_fleet.progress import HELD
from sensor_fleet.report import devices, learning
from sensor_fleet.report.bill import bill
from sensor_fleet.report.html import Markup, element, facts, figure, figures, key, page, section, value
from sensor_fleet.report.lives import Life, lives
from sensor_fleet.report.particulars import bill_of, setting_of, updates_of
from sensor_fleet.report.quantities import counted, duration, percent, score, size
from sensor_fleet.report.run import Run
from sensor_fleet.report.svg import Drawing

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
            bill_of(run),
            updates_of(run),
            setting_of(run),
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
        target = (
            score(run.target, run.metric) + " accuracy"
            if run.metric == "accuracy"
            else f"an RMSE of {score(run.target, run.metric)}"
        )
        return f"{fleet} held {target} after {duration(run.seconds_to_target)}, and none of them sent its data"
    ending = f"{what} accuracy" if run.metric == "accuracy" else what
    if not run.finished:
        return f"{fleet} had come to {ending} when the run was cut off after {duration(run.seconds)}"
    if run.target is not None:
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
        is_left_out = "is left out" if run.unreadable == 1 else "are left out"
        words.append(f"{counted(run.unreadable, 'line')} of its files could not be read and {is_left_out}.")
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
                "All that a device sent and received, in the mean; dotted: what it sent." + _points(run),
                lambda room: learning.over_bytes(run, room),
                full=True,
            )
        ),
    )


def _outages(run: Run) -> str:
    """What of the server side was killed and came back."""
    if not run.killed:
        return ""
    told = [
        f"{what} was killed, and {'did not come back' if end is None else 'back after ' + duration(end - start)}"
        for start, end, what in run.killed
    ]
    return f" Shaded: {'; '.join(told)}."


def _points(run: Run) -> str:
    if run.central is None and run.alone is None:
        return ""
    return " The points are the baselines: pooling costs the raw data once, training alone costs nothing."


def _how_baselines(run: Run) -> str:
    if run.central is None and run.alone is None:
        return "Pooled training and devices alone were not measured: that is done when a run comes to its end."
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
                _title_of_lives(run, found),
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


def _title_of_lives(run: Run, found: Mapping[str, Life]) -> str:
    absent = len(run.names) - len(found)
    never = f"; {absent} never came" if absent else ""
    return f"What {counted(len(found), 'device')} did{never}"


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
