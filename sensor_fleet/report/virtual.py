"""The page of a profile's fleet, virtual or live: what came of it, what each class gave and got, and the bill."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensor_fleet.progress import HELD
from sensor_fleet.report import learning, scales
from sensor_fleet.report.html import Markup, element, facts, figure, figures, page, section, table, value
from sensor_fleet.report.quantities import MISSING, counted, duration, energy, percent, score, size, times
from sensor_fleet.report.run import Run, finite_number, mapping
from sensor_fleet.report.svg import Ladder
from sensor_fleet.simulation.result import MONTH

Size = tuple[float, float]


@dataclass(frozen=True, slots=True)
class OfClass:
    """One hardware class of the run, as its files have it."""

    name: str
    plain: Mapping[str, Any]
    own: Mapping[str, Any]
    taus: Mapping[int, int]

    def number(self, name: str) -> float:
        """A number of it; 0 where it is not there."""
        return finite_number(self.plain.get(name)) or 0.0


def classes_of(run: Run) -> list[OfClass]:
    """All classes, as the profile lists them."""
    result = mapping(run.result)
    own, taus = mapping(result.get("own")), mapping(result.get("staleness"))
    return [
        OfClass(name, mapping(plain), mapping(own.get(name)), {int(s): int(n) for s, n in taus.get(name, ())})
        for name, plain in mapping(result.get("classes")).items()
    ]


def profile_report(run: Run) -> str:
    """The page, as HTML that stands by itself."""
    found = classes_of(run)
    return page(
        f"{run.name}: a {_kind(run)} fleet",
        [
            element("p", f"Midge · {_kind(run)} fleet · {run.name}", "eyebrow"),
            element("h1", _headline(run)),
            element("p", _lead(run), "lead"),
            _facts(run),
            _learning(run),
            _classes(found),
            _stale(run, found),
            _fair(run, found),
            _bill(run, found),
            _setting(run),
            element("footer", f"{_MADE[run.live]} This page loads nothing from anywhere."),
        ],
    )


# ----------------------------------------------------------------------- the top


_MADE = {
    False: "Made by midge fleet --virtual: aggregator and devices' sessions were the real ones; clock, links and "
    "hardware were the profile's.",
    True: "Made by midge fleet --live: devices, connections, broker and aggregator were real ones; links, outages and "
    "the speed of hardware were the profile's. Times are the profile's too.",
}


def _kind(run: Run) -> str:
    return "live" if run.live else "virtual"


def _headline(run: Run) -> str:
    fleet, length = counted(run.size, "device"), duration(run.seconds)
    if run.value is None:
        return f"{fleet} ran for {length} of {_kind(run)} time, and no model came of it"
    what = score(run.value, run.metric) + (" accuracy" if run.metric == "accuracy" else " RMSE")
    if run.seconds_to_target is not None:
        held = "held" if run.live else "would hold"
        return f"{counted(run.size, 'device')} {held} {score(run.target, run.metric)} after {_days(run)}"
    came, miss = ("came", "missed") if run.live else ("would come", "miss")
    missed = "" if run.target is None else f", and {miss} {score(run.target, run.metric)}"
    return f"{fleet} {came} to {what} in {length}{missed}"


def _days(run: Run) -> str:
    return duration(run.seconds_to_target)


def _lead(run: Run) -> str:
    profile = mapping(run.about.get("profile"))
    about = str(profile.get("about") or "")
    result = mapping(run.result)
    each = finite_number(result.get("trainings"))
    told = f"Profile {profile.get('name', MISSING)}. {about}".strip()
    if each and run.size:
        told += f" A device trained {each / run.size:.1f} times in the mean."
    return told


def _facts(run: Run) -> Markup:
    result = mapping(run.result)
    up, down = run.traffic
    joules = finite_number(result.get("joules"))
    number = max(run.size, 1)
    name = "Accuracy" if run.metric == "accuracy" else "RMSE, less is better"
    target = score(run.target, run.metric) if run.target is not None else "no target was set"
    rows = [
        (name, value(run.value, score(run.value, run.metric), "fleet-ink"), "on the test rows"),
        ("Time to the target", value(run.seconds_to_target, duration(run.seconds_to_target)), target),
        ("Updates accepted", value(run.taken, f"{run.taken:,}"), f"{run.turned:,} not accepted"),
        ("Sent, a device", value(None if up is None else up / number, size(None if up is None else up / number)), ""),
        (
            "Received, a device",
            value(None if down is None else down / number, size(None if down is None else down / number)),
            "announcements among it",
        ),
        (
            "Energy, a device",
            value(joules, energy(None if joules is None else joules / number)),
            "for training and the link",
        ),
    ]
    return facts(rows)


def _learning(run: Run) -> Markup:
    if not run.evaluations:
        return Markup("")
    return section(
        "How the model learned",
        f"Thin: each evaluation. Bold: the mean of the last {HELD}, by which a target has to be held.",
        figures(figure("Against time", "", lambda room: learning.over_time(run, room), full=True)),
        figures(
            figure(
                "Against bytes",
                "All that a device sent and received, in the mean; dotted: what it sent.",
                lambda room: learning.over_bytes(run, room),
                full=True,
            )
        ),
    )


# ------------------------------------------------------------------- by hardware


def _classes(found: Sequence[OfClass]) -> Markup:
    rows = [
        (
            one.name,
            f"{one.number('devices'):,.0f}",
            _short(one.number("training_seconds")),
            f"{one.number('trainings'):,.0f}",
            size(one.number("bytes_up")),
            size(one.number("bytes_down")),
            energy(one.number("joules")),
        )
        for one in found
    ]
    if not rows:
        return Markup("")
    return section(
        "Energy and bytes by hardware",
        "Bytes and energy are of one device in the mean, over the whole run: payload bytes, without the headers of "
        "MQTT, TLS and TCP. What the device takes while it rests is not in it.",
        table(("", "devices", "a training", "trainings", "sent", "received", "energy"), rows),
        figures(
            figure(
                "Energy of a device",
                "Training and link, in a month at this pace.",
                lambda room: _bars(found, room, "monthly_joules", energy, "energy in a month"),
            ),
            figure(
                "Bytes of a device",
                "Both ways, in a month at this pace.",
                lambda room: _bars(found, room, "monthly_bytes", size, "bytes in a month"),
            ),
        ),
    )


def _short(seconds: float) -> str:
    """A duration that may be of milliseconds."""
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g}\N{NO-BREAK SPACE}ms"


def _bars(found: Sequence[OfClass], room: Size, name: str, words: Any, axis: str) -> Ladder | None:
    values = [one.number(name) for one in found]
    if not any(values):
        return None
    return _rows(
        [(one.name, words(number)) for one, number in zip(found, values, strict=True)],
        [[(0.0, number, "fleet")] for number in values],
        room,
        scales.linear(0, max(values) * 1.05, words, count=3, tight=True),
        x_name=axis,
    )


def _rows(
    rows: Sequence[tuple[str, str]],
    bars: Sequence[Sequence[tuple[float, float, str]]],
    room: Size,
    x: scales.Scale,
    *,
    x_name: str,
) -> Ladder:
    """A row for each name and word: its bars (from, to, classes)."""
    words = ", ".join(f"{name} {word}" for name, word in rows)
    drawing = Ladder(room[0], f"{x_name}: {words}.", rows, x, x_name=x_name)
    for place, parts in enumerate(bars):
        for low, high, classes in parts:
            drawing.bar(place, low, high, classes, ": ".join(rows[place]))
    return drawing


def _stale(run: Run, found: Sequence[OfClass]) -> Markup:
    if not run.taus:
        return Markup("")
    some = [one for one in found if one.taus]
    return section(
        "Staleness",
        "How many steps the model had gone between the version that a device trained from and its update's arrival.",
        figures(
            figure("All updates", "", lambda room: learning.staleness(run, room)),
            figure(
                "By hardware",
                "From the freshest to the stalest tenth; the number is the median.",
                lambda room: _spans(some, room),
            ),
        ),
    )


def _spans(found: Sequence[OfClass], room: Size) -> Ladder | None:
    if not found:
        return None
    spans = [(_at(one.taus, 0.1), _at(one.taus, 0.5), _at(one.taus, 0.9)) for one in found]
    return _rows(
        [(one.name, f"{mid}") for one, (_, mid, _) in zip(found, spans, strict=True)],
        [[(low, high + 0.5, "fleet faded"), (mid, mid + 0.5, "fleet")] for low, mid, high in spans],
        room,
        scales.of_counts(max(high for *_, high in spans) + 1, tight=True),
        x_name="steps stale",
    )


def _at(taus: Mapping[int, int], share: float) -> int:
    """The least staleness that a share of the updates does not exceed."""
    total, seen = sum(taus.values()), 0
    for tau, number in sorted(taus.items()):
        seen += number
        if seen >= share * total:
            return tau
    return 0


def _fair(run: Run, found: Sequence[OfClass]) -> Markup:
    rows = []
    for one in found:
        own = {name: finite_number(one.own.get(name)) for name in ("mean", "low", "high")}
        spread = MISSING
        if own["low"] is not None and own["high"] is not None:
            spread = f"{score(own['low'], run.metric)} – {score(own['high'], run.metric)}"
        rows.append(
            (
                one.name,
                percent(one.number("devices") / max(run.size, 1)),
                percent(one.number("share_of_updates")),
                percent(one.number("share_of_weight")),
                percent(one.number("took_part")),
                score(own["mean"], run.metric),
                spread,
            )
        )
    if not rows:
        return Markup("")
    return section(
        "Fairness",
        "Whom the model heard, and whom it serves. A class whose part of the weight is far below its part of the fleet "
        "has little say; the last columns are the final model on devices' own rows, the mean and four of five devices.",
        table(
            ("", "of the fleet", "of updates", "of weight", "took part", "on own rows", "10% – 90%"),
            rows,
        ),
    )


def _bill(run: Run, found: Sequence[OfClass]) -> Markup:
    up, down = run.traffic
    if up is None or down is None or not run.seconds or not found:
        return Markup("")
    month = MONTH / run.seconds
    rows = [
        (
            one.name,
            size(one.number("bytes_up") * month),
            size(one.number("bytes_down") * month),
            size(one.number("monthly_bytes")),
            energy(one.number("monthly_joules")),
        )
        for one in found
    ]
    joules = finite_number(mapping(run.result).get("joules")) or 0.0
    whole = (size(up * month), size(down * month), size((up + down) * month), energy(joules * month))
    rows.append(("the whole fleet", *whole))
    raw = finite_number(mapping(run.result).get("raw_bytes"))
    told = ""
    if raw:
        each = (up + down) / run.size * month
        told = (
            f"A device's raw data, as it lies there now, is {size(raw)}; taking part costs {size(each)} a month. "
            + ("By bytes alone, sending the data once is cheaper" if raw < each else "Sending the data would cost more")
            + ", as long as no new data comes. Data that keeps coming is another matter."
        )
    return section(
        "The monthly bill",
        "At the pace of this run, in thirty days: payload bytes and energy of one device, and of all together.",
        table(("", "sent", "received", "together", "energy"), rows, kind="stacked"),
        Markup(f'<div class="verdict">{element("p", told)}</div>') if told else Markup(""),
    )


# -------------------------------------------------------------------- the setting


def command(run: Run) -> str:
    """The command that repeats the run."""
    setting = mapping(run.about.get("setting"))
    words = ["midge", "fleet", "--live" if run.live else "--virtual"]
    for name in ("profile", "devices", "days", "data", "model", "strategy", "buffer_size", "learning_rate"):
        if (given := setting.get(name)) is not None and (name, given) != ("strategy", "balanced"):
            words += [f"--{name.replace('_', '-')}", f"{given:g}" if isinstance(given, float) else str(given)]
    for name in ("local_steps", "batch_size", "codec"):
        if (given := setting.get(name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(given)]
    if (interval := finite_number(setting.get("interval"))) is not None:
        words += ["--interval", f"{interval / 3600:g}"]
    for name in ("drift", "fresh"):
        if (number := finite_number(setting.get(name))) is not None:
            words += [f"--{name}", f"{number:g}"]
    if (speed_up := finite_number(setting.get("speed_up"))) is not None:
        words += ["--speed-up", f"{speed_up:g}"]
    if (target := finite_number(run.about.get("target"))) is not None:
        words += ["--target", f"{target:g}"]
    return shlex.join([*words, "--seed", str(setting.get("seed", 0))])


def _pace(run: Run) -> str:
    """How long the simulation took."""
    took = finite_number(mapping(run.result).get("took"))
    return MISSING if not took else f"{duration(took)}, {times(run.seconds / took)} of the profile's seconds in one"


def _particulars(run: Run) -> list[tuple[str, str]]:
    """What is to be said of the clock, or of real connections."""
    result = mapping(run.result)
    if not run.live:
        return [("events of the clock", f"{finite_number(result.get('events')) or 0:,.0f}")]
    live, number = mapping(result.get("live")), max(run.size, 1)

    def each(name: str) -> str:
        moved = finite_number(live.get(name))
        return size(None if moved is None else moved / number)

    lag = finite_number(mapping(live.get("lag")).get("p99"))
    return [
        ("sent and received with MQTT's headers, a device", f"{each('wire_up')} and {each('wire_down')}"),
        ("Last Wills that the aggregator heard", f"{finite_number(live.get('lost')) or 0:,.0f}"),
        ("made, and waiting for a receipt at the end", f"{live.get('made', MISSING)} and {live.get('held', MISSING)}"),
        ("lateness of timers, 99%", MISSING if lag is None else _short(lag)),
    ]


def _setting(run: Run) -> Markup:
    profile = mapping(run.about.get("profile"))
    rows = []
    for plain in profile.get("classes", ()):
        one = mapping(plain)
        link, there = mapping(one.get("link")), mapping(one.get("availability"))
        rows.append(
            (
                str(one.get("name")),
                percent(finite_number(one.get("share")), 0),
                MISSING if one.get("samples_per_second") is None else f"{one['samples_per_second']:,.0f}/s",
                size(finite_number(one.get("memory"))),
                *(
                    MISSING if link.get(way) is None else f"{size(finite_number(link[way]))}/s"
                    for way in ("up", "down")
                ),
                percent(finite_number(link.get("loss"))),
                str(there.get("kind")),
            )
        )
    model, result = mapping(run.about.get("model")), mapping(run.result)
    about = [
        ("model", f"{model.get('name', MISSING)}, {finite_number(model.get('parameters')) or 0:,.0f} values"),
        ("versions of the model", f"{finite_number(result.get('versions')) or 0:,.0f}"),
        ("took", _pace(run)),
        *_particulars(run),
        *((name, str(word)) for name, word in mapping(run.about.get("versions")).items()),
    ]
    return section(
        "How to repeat it",
        "The same command gives the same fleet, not the same run: real connections take their own time."
        if run.live
        else "The same command gives the same result, bit for bit on the same machine, with any number of --workers.",
        element("pre", command(run)),
        table(("class", "share", "trains rows", "memory", "up", "down", "loss", "there"), rows),
        figures(table(("with", ""), about, kind="half")),
    )
