"""`midge broker init`: certificates, rights and configuration for a fleet, in one command."""

import argparse
import getpass
import ipaddress
import re
import time
from pathlib import Path

from midge.commands.parts import Problem, Subparsers, called, user_errors
from midge.wire.topics import DEFAULT_ROOT, check_name, device_name

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORTS = 65_535
_MOST = 100_000


def register(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "init",
        help="make a fleet's certificates, bundles, and its broker's configuration",
        description="Write a directory with everything that a federation with TLS needs: an authority, the broker's "
        "configuration and rights, the aggregator's bundle and one for each device. Its README.md says what is next.",
    )
    parser.add_argument("--name", required=True, help="the federation's name")
    parser.add_argument("--devices", type=int, default=0, metavar="N", help="number of devices, dev0001 and on")
    parser.add_argument(
        "--device", action="append", type=called, default=[], metavar="NAME", help="a device of this name; repeated"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new directory")
    parser.add_argument(
        "--host",
        action="append",
        metavar="HOST",
        help="name or address of the broker's machine; repeated for more, devices use the first",
    )
    parser.add_argument("--port", type=int, default=8883, help="of the broker (default: 8883)")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    parser.add_argument("--days", type=int, default=5 * 365, help="validity of certificates (default: 1825)")
    parser.add_argument("--crl-days", type=int, help="validity of the revocation list (default: the authority's)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--passwords", action="store_true", help="a password for each device instead of a certificate")
    way.add_argument(
        "--join", metavar="URL", help="an existing broker and authority: writes requests and ACL lines for them"
    )
    parser.add_argument("--cafile", metavar="PEM", help="with --join: the authority of the broker's certificate")
    parser.add_argument(
        "--broker-dir", metavar="DIR", help="where the broker's files will lie on its machine (default: DIR/broker)"
    )
    parser.add_argument(
        "--broker-user", metavar="USER", help="the user that runs Mosquitto (default: the current user)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.broker.provisioning.certificates import SecurityMissing  # noqa: PLC0415 - not for those who only run a broker
    from midge.broker.provisioning.create_fleet import device_names, initialise  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import RESERVED, Fleet, FleetError, present  # noqa: PLC0415

    began = time.perf_counter()
    if not 0 <= args.devices <= _MOST:
        raise Problem(f"--devices is {args.devices}: say a number from 0 to {_MOST:,}.")
    for option in ("days", "crl_days"):
        if (days := getattr(args, option)) is not None and not 1 <= days <= _MOST:
            raise Problem(f"--{option.replace('_', '-')} is {days}: say a number of days from 1 on.")
    if not 1 <= args.port <= _PORTS:
        raise Problem(f"--port is {args.port}: a port is a number from 1 to {_PORTS}.")
    if args.cafile and not args.join:
        raise Problem("--cafile goes with --join: otherwise the fleet gets an authority of its own.")
    directory = Path(args.out).expanduser()
    names = [*device_names(args.devices), *args.device]
    with user_errors():
        names = [device_name(name) for name in names]
    if (double := {name for name in names if names.count(name) > 1 or name in RESERVED}) != set():
        raise Problem(f"The device name {min(double)!r} is taken: choose another.")
    hosts, broker = _broker(args)
    with user_errors():
        fleet = Fleet(
            name=check_name(args.name, "federation"),
            root=args.root,
            way="join" if args.join else "passwords" if args.passwords else "certificates",
            hosts=hosts,
            port=args.port,
            broker=broker,
            broker_directory=args.broker_dir or str((directory / "broker").resolve()),
            broker_user=args.broker_user or getpass.getuser(),
            days=args.days,
            list_days=args.crl_days,
        )
        fleet.topics  # noqa: B018 - checks the root
    try:
        initialise(directory, fleet, names, present(), trust=_trust(args.cafile))
    except (FleetError, SecurityMissing) as error:
        raise Problem(str(error)) from error
    _tell(args, directory, len(names), time.perf_counter() - began)
    return 0


def _broker(args: argparse.Namespace) -> tuple[list[str], str]:
    """Hosts, and the broker's address in the bundles."""
    from midge.broker.mqtt.endpoint import Endpoint  # noqa: PLC0415

    if args.join:
        if args.host:
            raise Problem("--host and --join do not go together: the address of --join says where the broker is.")
        with user_errors():
            endpoint = Endpoint.parse(args.join)
        if endpoint.tls is None:
            raise Problem("A fleet joins a broker over TLS: write mqtts:// or wss://.")
        return [endpoint.host], str(endpoint)
    if not args.host:
        raise Problem("Say under which name or address devices reach the broker: --host mqtt.lan")
    for host in args.host:
        if not _HOST.fullmatch(host) and not _is_address(host):
            raise Problem(f"{host!r} is neither a host name nor an address: write --host mqtt.lan, without port.")
    first = f"[{args.host[0]}]" if ":" in args.host[0] else args.host[0]
    return list(dict.fromkeys(args.host)), f"mqtts://{first}:{args.port}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _trust(cafile: str | None) -> bytes | None:
    if cafile is None:
        return None
    try:
        return Path(cafile).expanduser().read_bytes()
    except OSError as error:
        raise Problem(f"{cafile} cannot be read ({error.strerror or error}): name the authority's PEM file.") from error


def _tell(args: argparse.Namespace, directory: Path, devices: int, seconds: float) -> None:
    noun = "device" if devices == 1 else "devices"
    print(f"{directory}: {devices} {noun} of federation {args.name!r}, made in {seconds:.1f} s. Next, see README.md:")
    if args.join:
        print(
            f"  have the requests ({directory}/*/*/*.csr) signed, and {directory}/broker/acl-to-add added to its ACL\n"
            f"  midge broker check --fleet {directory}\n"
            "A gateway must not give Midge its telemetry's certificate: one connection for each identity, see there."
        )
        return
    print(
        f"  mosquitto -c {args.broker_dir or (directory / 'broker').resolve()}/mosquitto.conf\n"
        f"  midge broker check --fleet {directory}\n"
        f"  midge aggregate server:app --config {directory}/aggregator/aggregator.toml"
    )
    if (args.broker_user or getpass.getuser()) == "root":
        print("Made by root: the broker will run as root, unless you say --broker-user and give that user its files.")
