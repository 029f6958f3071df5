"""`midge aggregate module:attribute`: serve a federation."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from midge.commands.apps import load_app
from midge.commands.parts import Problem, Subparsers, server_side, user_errors
from midge.commands.places import add_place, moved
from midge.commands.telling import printer
from midge.running import run_until_interrupted
from midge.wire.messages import MICRO


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "aggregate",
        help="serve a federation: apply updates as they come, publish the model",
        description="Serve the midge.Aggregator that module:attribute names, until interrupted.",
    )
    parser.add_argument("app", metavar="MODULE:ATTRIBUTE", help="a midge.Aggregator in a module of yours")
    parser.add_argument("--replace", action="store_true", help="take over the topics from another store's model")
    parser.add_argument(
        "--release-key", metavar="PEM", help="sign announcements with this private key (default: that of --config)"
    )
    parser.add_argument(
        "--raise-epoch",
        action="store_true",
        help="let devices follow to this store if it is older than what they have seen, or another one",
    )
    parser.add_argument(
        "--features",
        metavar="A,B,C",
        help="names of the model's inputs, in order: devices whose own differ do not train (default: the app's, or "
        "what the first two devices agree on; '' compares nothing)",
    )
    parser.add_argument(
        "--plan",
        choices=[MICRO],
        help="micro: for a fleet of microcontrollers, whatever the app's plan says: int8:256 without error feedback, "
        "one update at a time, models in parts of 1 KiB",
    )
    parser.add_argument("--model", metavar="FILE", help="write the model to this file at the end (safetensors)")
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="serve Prometheus metrics on PORT/metrics, and /alive and /ready (host: 127.0.0.1)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each event")
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.service import Aggregator  # noqa: PLC0415 - an extra
    app = load_app(args.app, Aggregator, "a midge.Aggregator")
    fields, bundle = moved(app, args)
    if key := args.release_key or (None if bundle is None else bundle.release_private_key):
        fields["release_key"] = key
    endpoint = getattr(app, "endpoint", None) if bundle is None else bundle.endpoint
    if endpoint is not None:
        fields["credential_files"] = endpoint.credential_files
    if args.raise_epoch:
        fields["raise_epoch"] = True
    if args.replace:
        fields["replace"] = True
    if args.features is not None:
        fields["features"] = [name.strip() for name in args.features.split(",") if name.strip()]
    if args.plan == MICRO:
        fields["strategy"] = replace(app.config.strategy, plan=app.config.strategy.plan.micro())
    with user_errors():
        app.config = replace(app.config, **fields, on_event=printer(as_json=args.json))
    if args.metrics is not None:
        _serve_metrics(app, args.metrics)
    run_until_interrupted(app)
    path = Path(args.model) if args.model else app.config.directory / "model.safetensors"
    try:
        app.export(path)
    except OSError as error:
        raise Problem(
            f"The model cannot be written to {path} ({error.strerror or error}): it is safe in the store "
            f"{app.config.directory}; start again with another --model."
        ) from error
    if not args.json:
        print(f"Stopped at version {app.core.version}. The model is in {path}.")
    return 0


def _serve_metrics(app: Any, place: str) -> None:
    from midge.aggregator.metrics.prometheus import serve  # noqa: PLC0415 - who wants it

    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        raise Problem(f"--metrics is {place!r}: name a port, such as 9100, or with an address, 0.0.0.0:9100.")
    try:
        serve(app, int(port), host.strip("[]") or "127.0.0.1")
    except (OSError, OverflowError) as error:
        raise Problem(f"The metrics cannot be served on port {port} ({error}): name a free one.") from error
