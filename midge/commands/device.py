"""`midge device`: take part in a federation with a program or a ready-made model; see how a device does."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from midge.broker.provisioning.bundles import Bundle
from midge.broker.provisioning.held_credentials import SIGNING
from midge.commands import forgetting, membership
from midge.commands.apps import load_app
from midge.commands.arguments import like
from midge.commands.gateway import add_gateway, gateway, refuse_options
from midge.commands.guest import add_guest, make_guest
from midge.commands.keeping import add_keeping, keep
from midge.commands.parts import Problem, Subparsers, called, pairs, user_errors
from midge.commands.places import add_place, moved
from midge.commands.publishing import add_publishing, publish
from midge.commands.settings import settings_file
from midge.commands.telling import add_log, in_words, printer
from midge.iot_client.data.csv_source import CsvError
from midge.iot_client.device import Device
from midge.iot_client.masking_requirement import RequireSecure
from midge.running import run_until_interrupted
from midge.wire.plurals import counted

VERBS = ("status", "verify", "doctor", "proof", "consent", "conform", *membership.VERBS, *forgetting.VERBS)
"""What `midge device` does besides taking part."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "device",
        help="take part in a federation: train on this device's data, send updates",
        usage="midge device MODULE:ATTRIBUTE [options]\n       midge device --csv FILE --label COLUMN [options]\n"
        "       midge device --sensor-topic TOPIC --label FIELD --features A,B,C [options]\n"
        "       midge device --config FILE [options]\n"
        "       midge device --csv FILE --label COLUMN --dry-run [--json]\n"
        "       midge device status OUTBOX [options]\n       midge device verify OUTBOX [--accept-loss]\n"
        "       midge device doctor [options]\n       midge device proof SEQ [OUTBOX] [options]\n"
        "       midge device consent on|off|status [OUTBOX] [options]\n"
        "       midge device conform URL --device NAME [options]\n"
        "       midge device add|revoke|rotate NAME… [options], midge device list [options]\n"
        "       midge device forget|readmit NAME --store DIR",
        description="Take part with the midge.Device that module:attribute names, or with rows from a file or a topic, "
        "until interrupted. `status` shows what an outbox holds and what the device has cost; `verify` "
        "looks for damage in it and in what lies beside it, and changes nothing; `doctor` looks at the board: clock, "
        "disk, versions, broker. `proof` proves that an update of this device is in a release. `consent off` is the "
        "owner's switch: nothing is trained on or sent until `consent on`; `consent status` says what was given, and "
        "what can be taken back. `conform` tries a "
        "device of any language by the rules of the protocol.",
    )
    parser.add_argument("app", metavar="MODULE:ATTRIBUTE", nargs="*", help="a midge.Device in a module of yours")
    parser.add_argument(
        "--name", type=called, help="another name than the app's; its outbox is then NAME.outbox beside the app's"
    )
    parser.add_argument(
        "--release-key", metavar="PEM", help="trust only what this public key signs (default: that of --config)"
    )
    parser.add_argument(
        "--signing-key",
        metavar="PEM",
        help="sign messages with this private key (default: --config's certificate's)",
    )
    parser.add_argument(
        "--helper-key",
        metavar="PEM",
        help="send only masked updates, which the mask helper with this public key sums",
    )
    parser.add_argument(
        "--k-min", type=int, default=5, metavar="N", help="with --helper-key: fewest devices in a sum (default: 5)"
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        metavar="E",
        help="with --helper-key: most ε that this device spends in all, by its own count; a plan without noise is "
        "refused (default: no limit)",
    )
    parser.add_argument(
        "--delta", type=float, default=1e-5, metavar="D", help="with --epsilon: its δ (default: %(default)g)"
    )
    parser.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what this device is, for its status, such as site=north: a candidate of the model can be tried by it",
    )
    parser.add_argument(
        "--no-survey",
        action="store_true",
        help="answer no `midge survey` of the operator: no statistics of the rows leave the device for one",
    )
    add_log(parser)
    parser.add_argument(
        "--wait",
        action="store_true",
        help="keep trying although the very first connection fails; later ones always are",
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="of verify: put a damaged outbox aside, with the updates that wait in it; the next start begins a new one",
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="of consent: the outbox is not there yet, and its device starts without consent",
    )
    add_place(parser)
    add_guest(parser)
    add_gateway(parser)
    add_publishing(parser)
    add_keeping(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.commands import device_proof, device_status, device_verify, doctor, dry_run  # noqa: PLC0415 - not for those who take part

    _read_settings(args)
    match args.app:
        case ["status", outbox]:
            return device_status.run(args, outbox)
        case ["status"]:
            raise doctor.no_outbox() if args.outbox is None else Problem(f"Say: midge device status {args.outbox}")
        case ["verify", outbox]:
            return device_verify.run(args, outbox)
        case ["verify"]:
            raise Problem("Say whose outbox to look at: midge device verify OUTBOX, such as pump-17.outbox.")
        case ["proof", seq, *named] if len(named) <= 1:
            return device_proof.run_proof(args, seq, named)
        case ["proof", *_]:
            raise Problem("Say which update: midge device proof SEQ OUTBOX, such as 12 pump-17.outbox.")
        case ["consent", ("on" | "off" | "status") as verb, *named] if len(named) <= 1:
            return device_proof.run_consent(args, verb, named)
        case ["consent", *_]:
            raise Problem("Say midge device consent on, off or status, and the outbox, such as pump-17.outbox.")
        case ["doctor"]:
            return doctor.run(args)
    if args.dry_run:
        return dry_run.run(_described(args))
    return take_part(args, _app(args))


def _read_settings(args: argparse.Namespace) -> None:
    """Put what a settings file says where the command line said nothing."""
    if (file := settings_file(args)) is not None:
        from midge.configuration.device_file import apply_file  # noqa: PLC0415 - for those who have one
        from midge.configuration.logs import set_level  # noqa: PLC0415

        args.config = None
        tables: Any = apply_file(file, args, args.parser)
        set_level(tables.log, verbose=args.verbose)


def _described(args: argparse.Namespace) -> argparse.Namespace:
    """Options that describe a source, for a dry run."""
    if args.app or (args.csv is None and args.sensor_topic is None):
        raise Problem("--dry-run tries a source of rows: say --csv FILE or --sensor-topic TOPIC.")
    return args


def _app(args: argparse.Namespace) -> Device:
    """The device of the user's module, or the one that the options describe."""
    described = args.csv is not None or args.sensor_topic is not None
    if args.app and ":" not in args.app[0] and (meant := like(args.app[0], VERBS)):
        raise Problem(f"There is no `midge device {args.app[0]}`{meant}")
    if described == bool(args.app) or len(args.app) > 1:
        raise Problem(
            "Say one thing to run: MODULE:ATTRIBUTE, such as pump:app, or --csv FILE, or --sensor-topic TOPIC."
        )
    if described:
        return gateway(args)
    refuse_options(args, args.app[0])
    app: Device = load_app(args.app[0], Device, "a midge.Device")
    return app


def take_part(args: argparse.Namespace, app: Device) -> int:
    """Apply the options to the device, and run it until interrupted."""
    fields, bundle = moved(app, args)
    if bundle is not None:
        fields |= _renewing(args)
    if args.capability:
        fields["capabilities"] = {**(app.config.capabilities or {}), **pairs(args.capability, "--capability")}
    if args.no_survey:
        fields["survey"] = False
    with user_errors():
        app.config = replace(app.config, **fields)
    name = args.name or (bundle and bundle.name)
    if name and (name != app.name or (args.name and args.app)):
        with user_errors():
            app.config = app.config.renamed(name)
    if args.app and args.outbox is not None:
        app.config = replace(app.config, outbox=args.outbox)
    _trust(app, args, bundle)
    publish(app, args)
    keep(app, args)
    make_guest(app, args)
    show = printer(args, "device", app.config.federation, app.name)
    app.config = replace(app.config, on_event=show, wait=app.config.wait or args.wait)
    try:
        run_until_interrupted(app)
    except CsvError as error:
        raise Problem(str(error)) from error
    if in_words(args):
        print(f"{app.name} has left. Waiting in its outbox for the next time: {counted(app.holding, 'update')}.")
    return 0


def _renewing(args: argparse.Namespace) -> dict[str, Any]:
    """A bundle's credentials, renewed over MQTT from now on."""
    from midge.broker.provisioning.bundles import BundleError  # noqa: PLC0415 - not for those without a bundle
    from midge.broker.provisioning.held_credentials import HeldCredentials  # noqa: PLC0415
    from midge.iot_client.connection.renewal import connecting  # noqa: PLC0415

    try:
        held = HeldCredentials(Path(args.config).expanduser(), broker=args.broker)
    except BundleError as error:
        raise Problem(str(error)) from error
    return {"connector": connecting(held), "credentials": held} if held.renewable else {}


def _trust(app: Device, args: argparse.Namespace, bundle: Bundle | None) -> None:
    """Trusted and signing keys, if the options or the bundle name them; otherwise the app's."""
    own = None if bundle is None or bundle.endpoint.tls is None else bundle.endpoint.tls.keyfile
    # The aggregator knows the first key: it keeps signing when the connection's key changes.
    if own is not None and (first := own.with_name(SIGNING)).is_file():
        own = first
    release = args.release_key or (None if bundle is None else bundle.release_key)
    signing = args.signing_key or own
    required: dict[str, Any] = {}
    secure = app.config.secure
    if args.epsilon is not None and not args.helper_key and secure is None:
        raise Problem("--epsilon limits what masked updates spend: give --helper-key too.")
    with user_errors():
        if args.helper_key:
            secure = RequireSecure(helper_key=Path(args.helper_key), k_min=args.k_min)
        if secure is not None and args.epsilon is not None:
            secure = replace(secure, epsilon=args.epsilon, delta=args.delta)
    if secure is not app.config.secure:
        required["secure"] = secure
    if release or signing or required:
        try:
            with user_errors():
                if required:  # the app's own keys go with it
                    release, signing = release or app.config.release_key, signing or app.config.signing_key
                app.config = replace(app.config, release_key=release, signing_key=signing, **required)
        except ModuleNotFoundError as error:
            raise Problem(str(error)) from error
