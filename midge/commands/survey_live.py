"""`midge survey URL`: asks the devices of a live federation for statistics of their rows, and pools these."""

import argparse
import asyncio
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from midge.broker import PublishRefused
from midge.broker.mqtt.fleet_survey import FleetSurvey, SurveyAnswers
from midge.commands.gateway import names_in
from midge.commands.parts import Problem, read_config, read_federation, read_release_key, server_side, user_errors
from midge.wire import sealing
from midge.wire.messages.survey import REASONS
from midge.wire.plurals import counted
from midge.wire.topics import Topics

if TYPE_CHECKING:
    from midge.sensor_fleet.survey.survey import Survey
    from midge.wire.signing import PrivateKey

_NAMED: Final = 8
"""Most devices that a sentence names."""


def survey_federation(args: argparse.Namespace) -> "tuple[Survey, str, list[str], dict[str, Any]]":
    """The survey, what it is of, who answered in sentences, and the same for `--json`."""
    from midge.sensor_fleet.survey.answers import most_alike, survey_answers  # noqa: PLC0415 - an extra
    from midge.sensor_fleet.survey.survey import check_k_min  # noqa: PLC0415

    with user_errors():
        check_k_min(args.k_min)
    if not 0 < args.seconds < float("inf"):
        raise Problem(f"--seconds is {args.seconds:g}: say how long to wait for answers, such as 60.")
    connect, topics = read_federation(args)
    asking = FleetSurvey(topics, _keys(args), **_requirements(args, topics))
    try:
        answers = asyncio.run(asking.run(connect, args.seconds))
    except PublishRefused as error:
        raise Problem(
            f"{error} The aggregator's user may, while no aggregator runs; the operator's may in fleets made by this "
            "version: `midge device list DIR --renew` rewrites the ACL of an older one."
        ) from error
    if asking.objection:
        raise Problem(f"No device of {topics.federation!r} would answer: {asking.objection}. Say --release-key FILE.")
    pool = most_alike(answers.rows)
    others = () if pool is None else pool.others
    notes = list(_notes(answers, others, named=not args.no_names))
    if pool is None:
        raise Problem(f"No device of {topics.federation!r} gave statistics of its rows. {' '.join(notes)}")
    try:
        found = survey_answers(
            pool, k_min=args.k_min, named=not args.no_names, classes=names_in(args.classes) if args.classes else ()
        )
    except ValueError as error:
        raise Problem(f"{' '.join(notes)} But {error}") from error
    return (
        found,
        f"federation {topics.federation}",
        notes,
        {"answers": _plain(answers, others, named=not args.no_names)},
    )


def _keys(args: argparse.Namespace) -> "list[PrivateKey]":
    """The keys that sign the request: the given one or the aggregator's bundle's, and the P-256 key beside it."""
    file = args.release_key
    if file is None and args.config is not None:
        file = read_config(args.config, args.url).release_private_key
    if file is None:
        return []
    beside = Path(f"{file}.p256").expanduser()
    with user_errors():
        return [read_release_key(str(file)), *([read_release_key(str(beside))] if beside.is_file() else [])]


def _requirements(args: argparse.Namespace, topics: Topics) -> dict[str, Any]:
    """Whether answers are sealed, and how they are verified."""
    found: dict[str, Any] = {"sealed": True}
    try:
        sealing.required()
    except ModuleNotFoundError:
        found["sealed"] = False  # an open federation without the library: its updates are not sealed either
    if args.device_keys is not None:
        with server_side():
            from midge.aggregator.ingress.authentication import Credentials, DeviceKeys  # noqa: PLC0415
        with user_errors():
            found["authenticate"] = Credentials(topics, device_keys=DeviceKeys(args.device_keys)).own_body
    return found


def _notes(answers: SurveyAnswers, others: Collection[str], *, named: bool) -> Iterator[str]:
    """Who answered, and who did not, in sentences."""

    def told(names: Collection[str], one: str, many: str) -> Iterator[str]:
        shown = sorted(names)[:_NAMED]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        who = f" ({', '.join(shown)}{more})" if named else ""
        if names:
            yield f"{counted(len(names), 'device')} {one if len(names) == 1 else many}{who}."

    yield f"{counted(len(answers.answered), 'device')} answered, {len(answers.rows)} of them with statistics."
    yield from told(others, "has other columns than most: left out", "have other columns than most: left out")
    for state, reason in REASONS.items():
        those = [device for device, each in answers.states.items() if each == state]
        yield from told(those, f"gave no statistics: {reason}", f"gave no statistics: {reason}")
    yield from told(answers.malformed, "sent an answer that cannot be used", "sent answers that cannot be used")
    for device, why in sorted(answers.malformed.items())[: _NAMED if named else 0]:
        yield f"The answer of {device}: {why}."
    yield from told(answers.silent, "is online and did not answer", "are online and did not answer")
    yield from told(answers.asleep - answers.answered, "is asleep", "are asleep")


def _plain(answers: SurveyAnswers, others: Collection[str], *, named: bool) -> dict[str, Any]:
    states: Counter[str] = Counter(answers.states.values())
    plain: dict[str, Any] = {
        "answered": len(answers.answered),
        "pooled": len(answers.rows) - len(others),
        "other_columns": len(others),
        **{state: states[state] for state in REASONS},
        "malformed": len(answers.malformed),
        "silent": len(answers.silent),
        "asleep": len(answers.asleep - answers.answered),
    }
    if named:
        plain["names"] = {
            "other_columns": sorted(others),
            **{state: sorted(d for d, each in answers.states.items() if each == state) for state in REASONS},
            "malformed": dict(sorted(answers.malformed.items())),
            "silent": sorted(answers.silent),
            "asleep": sorted(answers.asleep - answers.answered),
        }
    return plain
