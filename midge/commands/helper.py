"""`midge helper run` and `midge helper roster`: the mask helper of secure aggregation, run by another party."""

import argparse
from pathlib import Path

from midge.commands.parts import Problem, Subparsers, add_federation, read_endpoint, user_errors
from midge.commands.telling import add_log, printer
from midge.running import run_until_interrupted


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "helper",
        help="the mask helper of secure aggregation, which another party runs",
        description="The mask helper of secure aggregation: it sums the masks of devices' updates, and sees no update. "
        "It must be run by a party that does not run the aggregator.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    run = actions.add_parser(
        "run",
        help="serve a federation until interrupted",
        description="Serve a federation: answer the aggregator with sums of masks over at least K_MIN distinct devices "
        "of the roster, and make a new sealing key each day.",
    )
    add_federation(run)
    run.add_argument("--directory", metavar="DIR", required=True, help="of its ledger and its opening keys")
    run.add_argument("--key", metavar="PEM", required=True, help="its own private key: midge release-key new FILE")
    run.add_argument(
        "--release-key", metavar="PEM", required=True, action="append", help="the aggregator's public release key"
    )
    run.add_argument("--roster", metavar="DIR", required=True, help="public keys of the devices: NAME.pub or NAME.crt")
    run.add_argument("--k-min", type=int, default=5, help="fewest devices in a sum (default: %(default)s)")
    run.add_argument(
        "--post-quantum",
        action="store_true",
        help="have devices seal seeds to keys of ML-KEM-768 and X25519; devices of earlier versions do not train then",
    )
    add_log(run)
    run.set_defaults(run=serve)
    digest = actions.add_parser(
        "roster",
        help="print the digest of a roster, which devices may pin",
        description="Print the digest of a roster: devices that pin it (roster=) train under no other.",
    )
    digest.add_argument("roster", metavar="DIR", help="public keys of the devices: NAME.pub or NAME.crt")
    digest.set_defaults(run=show_roster)


def serve(args: argparse.Namespace) -> int:
    from midge.broker import connector  # noqa: PLC0415
    from midge.mask_helper.config import HelperConfig, read_roster  # noqa: PLC0415 - an extra
    from midge.mask_helper.service import HelperService  # noqa: PLC0415
    from midge.wire import signing  # noqa: PLC0415

    if args.url is None or args.federation is None:
        raise Problem("Name the broker and the federation: midge helper run mqtt://localhost --federation NAME …")
    with user_errors():
        config = HelperConfig(
            connector=connector(read_endpoint(args, args.url)),
            federation=args.federation,
            root=args.root,
            directory=Path(args.directory),
            key=signing.read_private(_read(args.key), args.key),
            release_keys=[signing.read_public(_read(path), path) for path in args.release_key],
            roster=read_roster(Path(args.roster)),
            least=args.k_min,
            post_quantum=args.post_quantum,
            on_event=printer(args, "helper", args.federation),
        )
    run_until_interrupted(HelperService(config))
    return 0


def show_roster(args: argparse.Namespace) -> int:
    from midge.mask_helper.config import read_roster  # noqa: PLC0415 - an extra
    from midge.wire.masking import roster_digest  # noqa: PLC0415

    with user_errors():
        roster = read_roster(Path(args.roster))
    print(f"{roster_digest(roster).hex()} of {len(roster)} devices")
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}): name a key in PEM.") from error
