"""`midge replay STORE`: rebuild the model from its journal, and compare; or execute it again with a change."""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midge.commands.output import say
from midge.commands.parts import Problem, Subparsers, existing_store, server_side, user_errors, write_errors
from midge.logs import print_line
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.aggregator.model.model import Model
    from midge.aggregator.store.what_if import Change, Counterfactual

Score = Callable[[Mapping[str, Any]], Mapping[str, float]]


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="rebuild the model from an aggregator's journal: compare digests, or ask what if",
        description=(
            "Rebuild the model from every checkpoint of a store and the journal behind it. All must give the same "
            "bits. Changes nothing: it reads a store on a read-only mount, a backup, or beside a running aggregator. "
            "With --without, --combine or --strategy: execute the journal again with that change, and show the score "
            "of that model beside the real one. Only --promote changes the store."
        ),
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    what_if = parser.add_argument_group("what if")
    what_if.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="leave out this device (may be repeated)"
    )
    what_if.add_argument(
        "--combine", choices=["mean", "trimmed", "centred"], help="how the updates of a step become one"
    )
    what_if.add_argument(
        "--trim", type=float, metavar="SHARE", help="with --combine trimmed, the share at either end (default: 0.1)"
    )
    what_if.add_argument(
        "--strategy",
        choices=["fedasync"],
        help="every update is a step, mixed in as published; "
        "with --combine centred, clipped at the median length in its recorded step",
    )
    what_if.add_argument(
        "--score",
        metavar="MODULE:ATTRIBUTE",
        help="a function from parameters to numbers, or an aggregator with evaluate= (default: of a run of midge "
        "demo, its test rows)",
    )
    what_if.add_argument("--export", metavar="FILE.safetensors", help="write the other model")
    what_if.add_argument(
        "--promote",
        action="store_true",
        help="make it the champion and the next release; the aggregator must be stopped. Whoever has this release and "
        "the one before can compute what was left out",
    )
    what_if.add_argument("--why", default="", help="the reason, with --promote: it stays in the journal")
    what_if.add_argument(
        "--release-floor",
        type=int,
        metavar="N",
        help="with --promote, the least number of devices whose work is in what differs from the releases (default: "
        "that of a release)",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.trim is not None and args.combine != "trimmed":
        raise Problem("--trim is the share that --combine trimmed leaves out: add that, or leave --trim out.")
    if args.release_floor is not None and args.release_floor < 1:
        raise Problem(f"--release-floor is {args.release_floor}: a number of devices, at least 1.")
    if args.without or args.combine or args.strategy:
        return _what_if(args)
    if args.score or args.export or args.promote or args.why or args.release_floor is not None:
        raise Problem("Say what is to be different: --without NAME, --combine or --strategy.")
    with server_side():
        from midge.aggregator.store.reading import ReadOnlyStore  # noqa: PLC0415
        from midge.aggregator.store.replaying import replay  # noqa: PLC0415 - an extra
    with ReadOnlyStore(existing_store(args.store)) as store:
        ways = list(replay(store))
    same = len({way.whole for way in ways}) == 1
    if args.json:
        print(json.dumps({"same": same, "ways": [asdict(way) for way in ways]}))
    else:
        for way in ways:
            say(
                f"checkpoint {way.checkpoint} and {way.records} records: version {way.version}, step {way.step}, "
                f"digest {way.digest}" + ("" if same else f", with what is not released {way.whole}")
            )
        say("All the same." if same else "They differ: the store is damaged. Restore it from a backup.")
    return 0 if same else 1


# ------------------------------------------------------------------------------ what if


def _what_if(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.counterfactual import counterfactual  # noqa: PLC0415 - an extra
        from midge.aggregator.store.reading import ReadOnlyStore  # noqa: PLC0415
        from midge.aggregator.store.what_if import Change  # noqa: PLC0415
    if not args.promote and (args.why or args.release_floor is not None):
        option = "--why" if args.why else "--release-floor"
        raise Problem(f"{option} is about a promotion: add --promote, or leave {option} out.")
    trim = {} if args.trim is None else {"trim": _trim(args)}
    change = Change(frozenset(args.without), args.combine, singly=_strategy(args), **trim)
    path = existing_store(args.store)
    score = _score(args.score, path)
    if args.promote:
        from midge.aggregator.store.store import Store  # noqa: PLC0415 - an extra

        opened: Any = Store(path)  # locked, so that no aggregator serves meanwhile
    else:
        opened = ReadOnlyStore(path)
    with opened as store:
        real, found = counterfactual(store, change)
        scored = {"real": _described(real, score), "counterfactual": _described(found, score)}
        if args.export:
            from midge.model_export.files import write_safetensors  # noqa: PLC0415 - an extra

            with write_errors(args.export, "give another place with --export"):
                write_safetensors(Path(args.export), found.model.used().parameters(), {"change": change.words()})
        promoted = _promoted(store, real, found, change, args) if args.promote else None
    said: dict[str, Any] = {
        "change": {"without": sorted(change.without), "combine": change.combine, "strategy": args.strategy},
        **scored,
        "distance": _distance(real.model, found.model),
        "guarantee": {
            "exact": not found.guarantee.estimated,
            "exact_since_record": found.guarantee.since,
            "complete": found.guarantee.complete,
            "left_out": found.guarantee.left_out,
            "unpooled": found.guarantee.unpooled,
            "remaining": found.guarantee.remaining,
            "pooled": found.guarantee.pooled,
            "unlisted": found.guarantee.unlisted,
            "unnamed": found.guarantee.unnamed,
            "returned": list(found.guarantee.returned),
            "contained": found.guarantee.contained,
            "remade": list(found.guarantee.remade),
            "skipped": found.guarantee.skipped,
            "words": found.guarantee.words(),
        },
        "promoted": promoted,
    }
    if args.json:
        print_line(said)
    else:
        _print(said, change, args)
    return 0


def _trim(args: argparse.Namespace) -> float:
    if not 0 < args.trim < 0.5:
        raise Problem(f"--trim is {args.trim:g}: it must be above 0 and below 0.5, such as 0.1.")
    return float(args.trim)


def _strategy(args: argparse.Namespace) -> Any:
    if args.strategy is None:
        return None
    if args.combine == "trimmed":
        raise Problem("--combine trimmed needs steps of several updates: leave out --strategy fedasync.")
    from midge.aggregator.core.presets import fedasync  # noqa: PLC0415 - an extra

    return fedasync()


def _score(name: str | None, store: Path) -> Score | None:
    """The function that scores a model; of a run of midge demo, its evaluation. None if there is none."""
    if name is not None:
        from midge.commands.apps import attribute  # noqa: PLC0415

        given = attribute(name)
        function = getattr(getattr(given, "config", given), "evaluate", None) or given
        if not callable(function):
            raise Problem(
                f"{name} is of type {type(given).__name__}: name a function, or an aggregator with evaluate=."
            )
        return partial(_scored, name, function)
    about = store.parent / "run.json"
    if not about.is_file():
        return None
    from midge.sensor_fleet.setting import Setting  # noqa: PLC0415 - an extra

    try:
        setting = Setting.unpacked(json.loads(about.read_text())["setting"])
    except (KeyError, TypeError, ValueError):  # of another kind of run
        return None
    with user_errors():
        data, model = setting.load()
    return lambda parameters: model.evaluate(dict(parameters), data.test)


def _scored(name: str, function: Callable[[Any], Any], parameters: Mapping[str, Any]) -> Mapping[str, float]:
    """What the user's function says of a model, as plain numbers."""
    try:
        given = function(parameters)
    except Exception as error:
        from midge.commands.apps import failed  # noqa: PLC0415

        raise failed(error, f"{name} cannot score the model") from error
    try:
        return {str(metric): float(value) for metric, value in dict(given).items()}
    except (TypeError, ValueError) as error:
        raise Problem(f'{name} returned {given!r:.80}: it must be numbers by name, such as {{"loss": 0.5}}.') from error


def _described(found: "Counterfactual", score: Score | None) -> dict[str, Any]:
    parameters = found.model.used().parameters()
    return {
        "digest": found.model.used().digest().hex(),
        "training_digest": found.model.state.digest().hex(),
        "version": found.model.version,
        "steps": found.steps,
        "devices": found.devices,
        "score": None if score is None else dict(score(parameters)),
    }


def _distance(real: "Model", other: "Model") -> float:
    """The L2 distance of two models, as a share of the real one's norm."""
    norm = float(np.linalg.norm(real.x))
    return float(np.linalg.norm(other.x - real.x)) / norm if norm else 0.0


def _promoted(
    store: Any, real: "Counterfactual", found: "Counterfactual", change: "Change", args: argparse.Namespace
) -> dict[str, Any]:
    from midge.aggregator.core.registry import OrderRefused  # noqa: PLC0415 - an extra
    from midge.aggregator.core.registry_decisions import Cause  # noqa: PLC0415
    from midge.aggregator.store.counterfactual import promote  # noqa: PLC0415
    from midge.aggregator.store.model_orders import operator_name  # noqa: PLC0415

    if found.model.used().digest() == real.model.used().digest():
        raise Problem(
            "It cannot be promoted: it is the same model. Without --promote the answer says what stays in it."
        )
    try:
        back = promote(store, found, change, Cause(args.why, operator_name(), time.time()), floor=args.release_floor)
    except OrderRefused as error:
        raise Problem(f"It cannot be promoted: {error}.") from error
    return {"version": back.to, "champion": True, "dropped": len(back.dropped)}


def _print(said: Mapping[str, Any], change: "Change", args: argparse.Namespace) -> None:
    for name, title in (("real", "as it was"), ("counterfactual", change.words())):
        one = said[name]
        score = (one["score"] or {}).items()
        scores = ", ".join(
            f"{metric} {f'{value:.4g}' if math.isfinite(value) else 'no number'}" for metric, value in score
        )
        steps = f"{one['steps']:,} steps of {counted(one['devices'], 'device')}"
        # With a moving average, that is what devices use and what is registered, and not what they train from.
        training = f", of the training state {one['training_digest']}" * (one["training_digest"] != one["digest"])
        say(f"{title}: {scores or 'not scored'}, {steps}, digest {one['digest']}{training}")
    say(f"The models differ by {said['distance']:.2%} of the real one's norm.")
    if said["real"]["score"] is None:
        say("For a score, name what measures a model: --score module:attribute.")
    say(said["guarantee"]["words"])
    if args.export:
        say(f"The model is {args.export}.")
    if said["promoted"]:
        say(
            f"It is version {said['promoted']['version']}, the champion, and the next release: start the aggregator. "
            "Whoever has both models can compute what was left out."
        )
        if dropped := said["promoted"]["dropped"]:
            say(
                f"{counted(dropped, 'accepted update')} that waited for a step ended with the generation before: "
                "in no model, and their devices train again."
            )
