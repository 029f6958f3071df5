"""`midge broker renewals` and `midge broker authority`: renewal of a fleet's credentials over MQTT."""

import argparse
from pathlib import Path
from typing import Any

from midge.commands.membership import add_fleet, do, tell
from midge.commands.parts import Subparsers
from midge.commands.telling import add_log, printer
from midge.running import run_until_interrupted


def register(actions: Subparsers) -> None:
    renewing = actions.add_parser(
        "renewals",
        help="answer requests for new credentials, on the machine with the authority's key",
        description=(
            "Answer devices' requests for new certificates or passwords over MQTT, renew the certificates on this "
            "machine, and report what expires. Until interrupted; it need not run always: an hour each week is "
            "enough."
        ),
    )
    add_fleet(renewing)
    add_log(renewing)
    renewing.set_defaults(run=serve)
    certificate = actions.add_parser(
        "new-key",
        help="give the broker a new key and certificate",
        description="Make a new key and certificate for the broker of a fleet, and notify the broker.",
    )
    add_fleet(certificate)
    certificate.set_defaults(run=new_key)
    authority = actions.add_parser("authority", help="replace the authority that signs certificates")
    steps = authority.add_subparsers(title="steps", required=True, metavar="STEP")
    for name, words in (
        ("succeed", "make the next authority: devices learn to trust it, and it signs nothing yet"),
        ("switch", "let it sign from now on; devices request new certificates"),
        ("finish", "stop trusting the previous one"),
    ):
        step = steps.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        add_fleet(step)
        if name != "succeed":
            step.add_argument("--force", action="store_true", help="even if this cuts off devices that are not ready")
        step.set_defaults(run=follow, step=name)


def _directory(args: argparse.Namespace) -> Path:
    return Path(args.fleet or "fleet")


def serve(args: argparse.Namespace) -> int:
    from midge.broker.provisioning.fleet_registry import read_fleet  # noqa: PLC0415
    from midge.broker.provisioning.issuing import IssuingService  # noqa: PLC0415 - an extra

    show = printer(args, "authority", do(lambda: read_fleet(_directory(args))).topics.federation)
    run_until_interrupted(do(lambda: IssuingService(_directory(args), show)))
    return 0


def new_key(args: argparse.Namespace) -> int:
    from midge.broker.provisioning.own_certificates import replace_broker_key  # noqa: PLC0415 - an extra

    return tell(do(lambda: replace_broker_key(_directory(args))), "The broker has a new key and certificate.")


def follow(args: argparse.Namespace) -> int:
    from midge.broker.provisioning import manage_devices  # noqa: PLC0415 - an extra

    directory = _directory(args)
    steps: dict[str, Any] = {
        "succeed": lambda: manage_devices.succeed_authority(directory),
        "switch": lambda: manage_devices.switch_authority(directory, force=args.force),
        "finish": lambda: manage_devices.finish_authority(directory, force=args.force),
    }
    words = {
        "succeed": "The next authority is trusted, and signs nothing yet. `midge broker renewals` tells devices.",
        "switch": "The next authority signs from now on; devices renew their certificates by themselves.",
        "finish": "The previous authority is no longer trusted.",
    }
    return tell(do(steps[args.step]), words[args.step])
