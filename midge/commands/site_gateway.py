"""`midge gateway run | certify`: the aggregator of a site's devices, which is one device of the federation above."""

import argparse
import time
from pathlib import Path

from midge.broker import Endpoint, connector
from midge.broker.provisioning.bundles import Bundle
from midge.commands.parts import (
    Parser,
    Problem,
    Subparsers,
    other_broker,
    read_config,
    server_side,
    user_errors,
    write_errors,
)
from midge.commands.telling import add_log, in_words, printer
from midge.running import run_until_interrupted
from midge.storage.files import PUBLIC, atomic_write
from midge.wire.topics import DEFAULT_ROOT, check_name

_DAY = 86_400.0


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "gateway",
        help="a site's gateway: the aggregator of its devices, one device of the federation",
        description="A site's gateway: it serves the devices at the site's broker, and takes part in the federation at "
        "another broker as one device, which sends sums of their updates and passes versions on.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    run = actions.add_parser(
        "run",
        help="serve a site until interrupted",
        description="Serve a site until interrupted. The federation's aggregator must know it: midge aggregate --site "
        "NAME. Passwords of brokers are in files, never in arguments.",
    )
    run.add_argument("--name", metavar="SITE", help="the site's name: that of a device in the federation")
    run.add_argument("--federation", metavar="NAME", help="the federation's name (default: that of --above-config)")
    run.add_argument("--root", default=DEFAULT_ROOT, help="topic root at both brokers (default: %(default)s)")
    run.add_argument("--store", metavar="DIR", required=True, help="a directory of this gateway's own")
    _add_side(run, "above", "the federation's broker")
    _add_side(run, "below", "the site's broker")
    run.add_argument("--release-key", metavar="PEM", help="the federation's public release key: trust nothing else")
    run.add_argument("--key", metavar="PEM", help="our own private key: midge release-key new FILE")
    run.add_argument("--certificate", metavar="FILE", help="what midge gateway certify made of that key")
    run.add_argument("--device-keys", metavar="DIR", help="public keys of the site's devices: NAME.pub or NAME.crt")
    run.add_argument("--require-signed", action="store_true", help="refuse devices without a key there")
    run.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="share of the site's devices that must have given something before a sum is sent (default: %(default)s)",
    )
    run.add_argument(
        "--patience",
        type=float,
        metavar="S",
        help="seconds until one of fewer is (default: half of the devices' usual interval)",
    )
    run.add_argument("--codec", help="of the sums (default: that of the federation's plan)")
    run.add_argument(
        "--plain",
        action="store_true",
        help="sum all updates as they are: no bound on unusual ones, nor one weight for a device with several",
    )
    add_log(run)
    run.set_defaults(run=serve)
    certify = actions.add_parser(
        "certify",
        help="certify a gateway's key with the release key",
        description="Certify a gateway's key, so that devices which pin the release key take its receipts. Runs where "
        "the private release key is.",
    )
    certify.add_argument(
        "key", metavar="PRIVATE_KEY", help="the gateway's private key, of which it reads the public part"
    )
    certify.add_argument("--name", metavar="SITE", required=True, help="the site's name")
    certify.add_argument("--federation", metavar="NAME", required=True)
    certify.add_argument("--release-key", metavar="PEM", required=True, help="the federation's private release key")
    certify.add_argument("--days", type=float, default=730.0, help="how long it is valid (default: %(default)s)")
    certify.add_argument("--out", metavar="FILE", help="where to write it (default: PRIVATE_KEY.site)")
    certify.set_defaults(run=make_certificate)


def _add_side(parser: Parser, side: str, what: str) -> None:
    parser.add_argument(f"--{side}", metavar="URL", help=f"{what}, such as mqtt://localhost:1883")
    parser.add_argument(f"--{side}-config", metavar="TOML", help=f"a bundle of `midge broker init` for {what}")
    parser.add_argument(f"--{side}-password-file", metavar="FILE", help=f"the password at {what}: the first line")


def _side(args: argparse.Namespace, side: str) -> tuple[Endpoint, Bundle | None]:
    url, config = getattr(args, side), getattr(args, f"{side}_config")
    if config is not None:
        bundle = read_config(config, url)
        return bundle.endpoint, bundle
    if url is None:
        raise Problem(f"Say where: --{side} with the broker's address, or --{side}-config with a bundle.")
    with user_errors():
        return other_broker(url, getattr(args, f"{side}_password_file")), None


def serve(args: argparse.Namespace) -> int:
    with server_side():
        from midge.gateway.config import GatewayConfig  # noqa: PLC0415 - an extra
        from midge.gateway.pace import SitePace  # noqa: PLC0415
        from midge.gateway.service import Gateway  # noqa: PLC0415
    (above, bundle), (below, _) = _side(args, "above"), _side(args, "below")
    federation = args.federation or (None if bundle is None else bundle.topics.federation)
    name = args.name or (None if bundle is None else bundle.name)
    if federation is None or name is None:
        raise Problem("Name the federation and the site: --federation NAME --name SITE.")
    release_key = args.release_key or (None if bundle is None else bundle.release_key)
    with user_errors():
        check_name(name, "site")
        config = GatewayConfig(
            above=connector(above),
            below=connector(below),
            federation=federation,
            root=args.root if bundle is None else bundle.topics.root,
            name=name,
            store=args.store,
            pace=SitePace(args.share, args.patience),
            codec=args.codec,
            robust=not args.plain,
            release_key=release_key,
            signing_key=args.key,
            certificate=b"" if args.certificate is None else _read(args.certificate),
            device_keys=args.device_keys,
            require_signed=args.require_signed,
            on_event=printer(args, "gateway", federation),
        )
    if in_words(args):
        print(f"Site {name} of {federation}: devices at {below}, the federation at {above}.", flush=True)
    run_until_interrupted(Gateway(config))
    return 0


def make_certificate(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.publish.announcement_signer import load_release_keys  # noqa: PLC0415 - an extra
    from midge.wire import envelopes, sealing, signing  # noqa: PLC0415
    from midge.wire.messages import SiteCertificate  # noqa: PLC0415

    with user_errors():
        key = signing.read_private(_read(args.key), args.key)
        release = load_release_keys(Path(args.release_key)).keys[-1][1]
        certificate = SiteCertificate(
            federation=args.federation,
            name=args.name,
            key=key.public.raw,
            seal_key=sealing.public(sealing.derive(key)),
            expires=time.time() + _DAY * args.days,
        )
    path = Path(args.out or f"{args.key}.site")
    with write_errors(path):
        atomic_write(path, envelopes.certify_site(release, certificate), mode=PUBLIC)
    print(f"{path} certifies the gateway of {args.name}: midge gateway run --key {args.key} --certificate {path} …")
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}).") from error
