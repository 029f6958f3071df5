"""`midge aggregate module:attribute`: serve a federation."""

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.commands.apps import attribute, load_app
from midge.commands.page import add_live_page, live_page
from midge.commands.parts import Parser, Problem, Subparsers, read_config, server_side, user_errors
from midge.commands.places import add_place, moved
from midge.commands.settings import settings_file
from midge.commands.sharding import ShardProcesses, place_here, run_shard
from midge.commands.telling import add_log, in_words, printer
from midge.running import Service, run_until_interrupted
from midge.wire.messages import MICRO
from midge.wire.standby import TAKEOVER
from midge.wire.topics import DISCOVERY, HomeTopics

if TYPE_CHECKING:
    from midge.aggregator.service import Aggregator
    from midge.aggregator.standby.policy import StandbyPolicy
    from midge.configuration.aggregator_file import AggregatorSettings


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "aggregate",
        help="serve a federation: apply updates as they come, publish the model",
        usage="midge aggregate MODULE:ATTRIBUTE [options]\n       midge aggregate --config FILE [options]",
        description="Serve the midge.Aggregator that module:attribute names, or that a settings file describes, "
        "until interrupted. Options go before the file; SIGHUP reads it again.",
    )
    parser.add_argument("app", metavar="MODULE:ATTRIBUTE", nargs="?", help="a midge.Aggregator in a module of yours")
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
    parser.add_argument(
        "--site",
        metavar="NAME",
        action="append",
        help="a gateway that may send sums of its devices' updates (midge gateway); * stands for any characters; "
        "may be given again",
    )
    parser.add_argument(
        "--shards",
        metavar="N",
        type=int,
        help="take updates in by N processes beside this one, each with a part of the devices, to use more than one "
        "processor; a store keeps its number (default: the app's, or 0, which takes them in here)",
    )
    parser.add_argument("--model", metavar="FILE", help="write the model to this file at the end (safetensors)")
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="serve Prometheus metrics on PORT/metrics, and /alive and /ready (host: 127.0.0.1)",
    )
    parser.add_argument(
        "--home-assistant",
        nargs="?",
        const=DISCOVERY,
        metavar="PREFIX",
        help="show the federation in Home Assistant, with a switch to pause it, by MQTT discovery under PREFIX "
        f"({DISCOVERY})",
    )
    _add_standby(parser)
    add_log(parser)
    add_live_page(parser)
    add_place(parser)
    parser.set_defaults(run=run)


def _add_standby(parser: Parser) -> None:
    parser.add_argument(
        "--standby",
        action="store_true",
        help="follow the aggregator that serves on another host, and take over if it is silent; needs its release key",
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="send receipts only for what the standby has on its disk: none is lost with this host",
    )
    parser.add_argument(
        "--alone-after",
        type=float,
        metavar="S",
        help="with --sync: go on without a standby that is away for S seconds (default: wait for it)",
    )
    parser.add_argument(
        "--takeover-after",
        type=float,
        metavar="S",
        help=f"seconds of silence after which a standby takes over (default: {TAKEOVER:g})",
    )


def _standby(args: argparse.Namespace, policy: "StandbyPolicy") -> "StandbyPolicy":
    """How it works together with another one: as the app says, or the options."""
    given = {name: getattr(args, name) for name in ("alone_after", "takeover_after")}
    given |= {"follow": args.standby or None, "sync": args.sync or None}
    with user_errors():
        return replace(policy, **{name: value for name, value in given.items() if value is not None})


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.service import Aggregator  # noqa: PLC0415 - an extra
        from midge.commands.reloading import strategy_for  # noqa: PLC0415
    app, reload = _from_settings(args)
    if app is None:
        if args.app is None:
            raise Problem("Say what to serve: MODULE:ATTRIBUTE, such as server:app, or --config with a settings file.")
        app = load_app(args.app, Aggregator, "a midge.Aggregator")
    fields, bundle = moved(app, args)
    if key := args.release_key or (None if bundle is None else bundle.release_private_key):
        fields["release_key"] = key
    endpoint = getattr(app, "endpoint", None) if bundle is None else bundle.endpoint
    if endpoint is not None:
        fields["credential_files"] = endpoint.credential_files
    if args.raise_epoch:
        fields["raise_epoch"] = True
    if args.site:
        fields["sites"] = args.site
    if args.shards is not None:
        fields["shards"] = args.shards
    if args.replace:
        fields["replace"] = True
    if args.features is not None:
        fields["features"] = [name.strip() for name in args.features.split(",") if name.strip()]
    fields["strategy"] = strategy_for(args, app.config.strategy)
    fields["standby"] = _standby(args, app.config.standby)
    with user_errors():
        config = replace(app.config, **fields)
        app.config = replace(config, on_event=printer(args, "aggregator", config.federation))
    if (place := place_here()) is not None:  # one of its shards, which prints no sentences of its own
        return run_shard(replace(app.config, on_event=None) if in_words(args) else app.config, place)
    if args.metrics is not None:
        _serve_metrics(app, args.metrics)
    with ExitStack() as stack:
        if args.page is not None:
            page = stack.enter_context(live_page(args, app.config.topics, app.config.directory))
            page.observe(app.config.connector)
        service = _service(app, args)
        if app.config.shards:
            service, reload = _with_shards(app, service, reload)
        run_until_interrupted(service, reload)
    if not app.open_now:
        return 0  # a standby that has not served has no model of its own
    path = Path(args.model) if args.model else app.config.directory / "model.safetensors"
    try:
        app.export(path)
    except OSError as error:
        raise Problem(
            f"The model cannot be written to {path} ({error.strerror or error}): it is safe in the store "
            f"{app.config.directory}; start again with another --model."
        ) from error
    if in_words(args):
        print(f"Stopped at version {app.core.version}. The model is in {path}.")
    return 0


def _from_settings(args: argparse.Namespace) -> "tuple[Aggregator | None, Callable[[], None] | None]":
    """The aggregator that a settings file describes, and what SIGHUP calls then."""
    file = settings_file(args)
    if file is None:
        return None, _nothing_to_reload if "NOTIFY_SOCKET" in os.environ else None
    from midge.commands.reloading import SettingsReload  # noqa: PLC0415 - for those who have one
    from midge.configuration.aggregator_file import AggregatorSettings  # noqa: PLC0415
    from midge.configuration.logs import set_level  # noqa: PLC0415

    if args.app is not None:
        raise Problem(f"{args.app} and {file.path} both describe an aggregator: give one of them.")
    settings = AggregatorSettings(file, args.parser)
    args.config = None
    app = from_settings(settings, args)
    set_level(settings.tables.log, verbose=args.verbose)
    return app, SettingsReload(args, settings, app)


def from_settings(settings: "AggregatorSettings", args: argparse.Namespace) -> "Aggregator":
    """The aggregator of a settings file; what it says of options is put into `args`.

    Raises:
        Problem: it is in no place.
        SettingsError: it cannot be made.
    """
    settings.apply(args)
    if args.config is None and args.broker is None:
        raise Problem(f"{settings.file.path}: broker.url is missing: add the broker's address, or the bundle.")
    federation = None if args.config is None else read_config(args.config, args.broker).topics.federation
    return settings.aggregator(attribute, federation)


def _nothing_to_reload() -> None:
    """Say that a program has no file to read again: `systemctl reload` must not end it."""
    logging.getLogger("midge").warning("There is no settings file to read again; start again for another program.")


def _service(app: Any, args: argparse.Namespace) -> Service:
    """The aggregator, alone or one of two, and what shows it to Home Assistant."""
    service: Service = app
    if app.config.standby.follow:
        from midge.aggregator.standby.service import StandbyAggregator  # noqa: PLC0415 - who has one

        if args.home_assistant is not None:
            raise Problem("Home Assistant is shown by the aggregator alone: leave out --home-assistant with --standby.")
        service = StandbyAggregator(app)
    if args.home_assistant is not None:
        from midge.aggregator.home_assistant_bridge import ShownAggregator  # noqa: PLC0415 - who wants it

        with user_errors():
            service = ShownAggregator(app, HomeTopics(app.config.topics, args.home_assistant))
    return service


def _with_shards(
    app: Any, service: Service, reload: Callable[[], None] | None
) -> tuple[Service, Callable[[], None] | None]:
    """A service with its shards, and what SIGHUP calls: it also has them read the settings again."""
    processes = ShardProcesses(app, service)

    def everywhere() -> None:
        if reload is not None:
            reload()
            processes.restart()

    return processes, None if reload is None else everywhere


def _serve_metrics(app: Any, place: str) -> None:
    from midge.aggregator.metrics.prometheus import serve  # noqa: PLC0415 - who wants it

    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        raise Problem(f"--metrics is {place!r}: name a port, such as 9100, or with an address, 0.0.0.0:9100.")
    try:
        serve(app, int(port), host.strip("[]") or "127.0.0.1")
    except (OSError, OverflowError) as error:
        raise Problem(f"The metrics cannot be served on port {port} ({error}): name a free one.") from error
