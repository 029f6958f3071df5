"""`midge model list | register | promote | rollback | export`: the registered versions of a federation's model."""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midge.commands.parts import (
    Parser,
    Problem,
    Subparsers,
    add_bundle,
    add_tls,
    existing_store,
    pairs,
    read_federation,
    read_release_key,
    server_side,
    user_errors,
    write_errors,
)
from midge.commands.words import whom
from midge.wire.inert import inert
from midge.wire.plurals import counted
from midge.wire.topics import ALIASES, DEFAULT_ROOT

if TYPE_CHECKING:
    from midge.aggregator.core.registry import Registry

NOT_MEANT = " Is the capability spelled as the devices say it? `midge status --json` shows what they say."
_FORMATS = ("safetensors", "onnx", "hub")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("model", help="list, register, promote, roll back or export versions of the model")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    _action(
        actions,
        "list",
        run_list,
        help="list the registered versions",
        description="List the registered versions of a store, with what they were measured to do and the names that "
        "stand for them. Changes nothing: it reads a store beside its aggregator, at rest, or a backup.",
    )
    registering = _action(
        actions,
        "register",
        run_register,
        help="register a release",
        description="Have the aggregator keep a release whole, as a version to use, to export or to go back to. With "
        "--candidate, a share of the devices uses it until it is promoted or taken back; if there is no champion yet, "
        "it becomes that.",
    )
    registering.add_argument("--version", type=int, default=0, metavar="N", help="default: the newest release")
    registering.add_argument("--candidate", action="store_true", help="let a share of the devices try it")
    registering.add_argument(
        "--share", type=float, metavar="S", help="of the devices (default: the federation's; with --where, all of them)"
    )
    registering.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only devices with this capability try it, such as site=north; several must all hold",
    )
    promoting = _action(
        actions,
        "promote",
        run_promote,
        help="make a registered version the champion",
        description="Make a registered version the champion, which every device uses for predictions. What devices "
        "train from is not changed.",
    )
    promoting.add_argument("version", metavar="VERSION", nargs="?", type=int, default=0, help="default: the candidate")
    backing = _action(
        actions,
        "rollback",
        run_rollback,
        help="go on from a registered version, or take the candidate back",
        description="Let the training go on from a registered version, as a new generation: devices fetch it, and "
        "updates that were trained since are refused and trained again. It becomes the champion. With --candidate, "
        "only the candidate is taken back, and the training goes on as it is.",
    )
    backing.add_argument("version", metavar="VERSION", nargs="?", type=int, default=0, help="default: the champion")
    backing.add_argument("--candidate", action="store_true", help="only take the candidate back")
    for each in (registering, promoting, backing):
        over = each.add_argument_group("over the broker", "in place of STORE, the broker's address: mqtt://host")
        over.add_argument("--federation", metavar="NAME", help="the federation's name")
        over.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
        over.add_argument("--release-key", metavar="FILE", help="the private key that signs the order")
        add_bundle(each)
        add_tls(each)
        each.add_argument("--why", default="", help="the reason, kept with the decision")
        each.add_argument(
            "--wait", type=float, default=30.0, metavar="S", help="seconds to wait for the aggregator (default: 30)"
        )
    exporting = _action(
        actions,
        "export",
        run_export,
        help="write a registered version to files",
        description="Write a registered version as safetensors, as ONNX, or as a folder as the Hugging Face Hub has "
        "them: README.md with a model card, config.json, model.safetensors.",
    )
    exporting.add_argument(
        "version", metavar="VERSION", nargs="?", default="champion", help="a number, champion (default) or candidate"
    )
    exporting.add_argument("--to", required=True, metavar="PATH", help="FILE.safetensors, FILE.onnx, or a folder")
    exporting.add_argument("--format", choices=_FORMATS, help="default: by the ending of PATH, otherwise hub")
    exporting.add_argument("--input", metavar="SHAPE", help="of one input of a convolutional model, such as 28x28")
    exporting.add_argument(
        "--module", metavar="MODULE:ATTRIBUTE", help="the torch module of the model, for ONNX; needs --input"
    )
    exporting.add_argument(
        "--reconstructs", action="store_true", help="the model is an autoencoder: its outputs are its inputs again"
    )
    exporting.add_argument("--license", default="other", help="for the model card, such as apache-2.0")


def _action(actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], **words: str) -> Parser:
    parser: Parser = actions.add_parser(name, **words)
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.add_argument("--json", action="store_true", help="as one JSON object, on the last line")
    parser.set_defaults(run=run)
    return parser


# ------------------------------------------------------------------------------ listing


def run_list(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.registered import facts, registered_in  # noqa: PLC0415 - an extra
    reading = registered_in(existing_store(args.store))
    registry = reading.registry
    versions = [
        {**facts(each, registry), "whole": reading.snapshots[version] is not None}
        for version, each in registry.versions.items()
    ]
    found = {
        "federation": reading.federation,
        "versions": versions,
        "aliases": registry.named,
        "share": registry.share,
        "where": dict(registry.where),
        "why": registry.why,
        "trial": registry.trial.evidence().packed() if registry.candidate else None,
    }
    if args.json:
        print(json.dumps(found))
        return 0
    if not versions:
        print(f"No version is registered. To register the newest release: midge model register {args.store}")
    for each in versions:
        names = f"  {', '.join(each['aliases'])}" if each["aliases"] else ""
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(each["at"]))
        damaged = "" if each["whole"] else "  ITS VALUES ARE DAMAGED: see midge store verify"
        print(inert(f"{each['version']:>8}  {made}  {each['digest'][:8]}  {_measured(each)}{names}{damaged}"))
    if registry.candidate:
        trial = registry.trial.evidence()
        print(
            inert(
                f"Tried by {registry.share:.0%} of {whom(registry.where)}: better on {trial.better} of "
                f"{trial.devices}, worse on {trial.worse}; evidence {trial.e_better:.3g} for it "
                f"and {trial.e_worse:.3g} against."
            )
        )
    return 0


def _measured(said: Mapping[str, Any]) -> str:
    """The metrics in one line: the server's, and the devices' medians."""
    metrics = said["metrics"]
    words = [f"{name} {value:.4g}" for name, value in metrics["server"].items()]
    words += [
        f"{name} {spread['median']:.4g} on {metrics['devices']} devices"
        for name, spread in metrics["federated"].items()
    ]
    return ", ".join(words) or "not measured"


# ------------------------------------------------------------------------------- orders


def run_register(args: argparse.Namespace) -> int:
    if (args.share is not None or args.where) and not args.candidate:
        raise Problem("--share and --where go with --candidate: without it, no device uses the version yet.")
    where = pairs(args.where, "--where")
    return _give(args, "register", args.version, attempt=args.candidate, share=args.share, where=where)


def run_promote(args: argparse.Namespace) -> int:
    return _give(args, "promote", args.version)


def run_rollback(args: argparse.Namespace) -> int:
    if args.candidate and args.version:
        raise Problem("With --candidate there is no version to name: only the candidate is taken back.")
    return _give(args, "withdraw" if args.candidate else "rollback", args.version)


def _give(args: argparse.Namespace, verb: Any, version: int, **fields: Any) -> int:
    """Leave an order for the aggregator, and wait for its answer."""
    with server_side():
        from midge.aggregator.store import model_orders as orders  # noqa: PLC0415 - an extra
    with user_errors():
        order = orders.ModelOrder(verb, version, why=args.why, **fields)
    if "://" in args.store or args.config is not None:
        said = _sent(args, orders.packed(order))
    else:
        path = existing_store(args.store)
        orders.give(path, order)
        found = asyncio.run(orders.awaited(path, order, args.wait))
        when = "when it runs and has its broker, within a day at most"
        said = found or {"ok": False, "waits": True, "why": f"the aggregator did not answer yet: it follows it {when}"}
    said = {"verb": verb, **said}
    if args.json:
        print(json.dumps(said))
    elif not said["ok"]:
        print(inert(f"{'Not yet' if said.get('waits') else 'Refused'}: {said['why']}."))
    else:
        named = ", ".join(f"{name} {number}" for name, number in said["aliases"].items()) or "no version has a name"
        print(f"Done: {named}.")
        if (meant := said.get("meant")) is not None:
            known = f"{meant['devices']} of {counted(meant['known'], 'known device')}"
            print(f"The candidate is for {known}." + ("" if meant["devices"] else NOT_MEANT))
    return 0 if said["ok"] else 1


def _sent(args: argparse.Namespace, order: bytes) -> dict[str, Any]:
    """Send an order over the broker, signed; what came of it, as far as the names show."""
    from midge.broker.mqtt.federation_view import send_order  # noqa: PLC0415
    from midge.wire import overview  # noqa: PLC0415

    if args.release_key is None:
        raise Problem("Say --release-key FILE: over the broker, only an order that it signed is followed.")
    args.url = args.store
    connect, topics = read_federation(args)
    asking = overview.ordering(read_release_key(args.release_key), topics.federation, order)
    names = asyncio.run(send_order(connect, topics, asking, args.wait))
    if names is not None:
        return {"ok": True, "aliases": names}
    why = (
        "the names have not changed: it was refused, changes no name, or the aggregator is away; its log, and `midge "
        "model list` beside its store, say which"
    )
    return {"ok": False, "waits": True, "why": why}


# ------------------------------------------------------------------------------- export


def run_export(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.registered import facts, registered_in  # noqa: PLC0415 - an extra
    from midge.wire.lineage import decode_snapshot  # noqa: PLC0415

    reading = registered_in(existing_store(args.store))
    registry = reading.registry
    version = _number(args.version, registry)
    if version not in registry.versions:
        listed = ", ".join(map(str, registry.versions)) or "none"
        raise Problem(f"Version {version} is not registered in {args.store}; registered are: {listed}.")
    data = reading.snapshots[version]
    if data is None:
        raise Problem(f"The values of version {version} are damaged: see `midge store verify {args.store}`.")
    about = {"federation": reading.federation, **facts(registry.versions[version], registry)}
    target, parameters = Path(args.to), decode_snapshot(data).parameters()
    form = args.format or {".safetensors": "safetensors", ".onnx": "onnx"}.get(target.suffix, "hub")
    with write_errors(target, "give another place with --to"):
        _write(form, target, parameters, about, args)
    said = {"ok": True, "version": version, "digest": about["digest"], "format": form, "path": str(target)}
    print(json.dumps(said) if args.json else f"{target}: version {version} as {form}, digest {about['digest'][:8]}.")
    return 0


def _number(name: str, registry: "Registry") -> int:
    if name in ALIASES:
        if name not in registry.named:
            raise Problem(f"There is no {name}: name a version; `midge model list` shows them.")
        return registry.named[name]
    if not name.isdecimal():
        raise Problem(f"{name!r} is no version: name a number, champion or candidate.")
    return int(name)


def _write(
    form: str, target: Path, parameters: Mapping[str, Any], about: Mapping[str, Any], args: argparse.Namespace
) -> None:
    from midge.model_export import files, onnx_model  # noqa: PLC0415 - an extra

    shape: tuple[int, ...] | None = _shape(args.input)
    task: Literal["reconstruction"] | None = "reconstruction" if args.reconstructs else None
    match form:
        case "safetensors":
            files.write_safetensors(target, parameters, about)
        case "onnx" if args.module is not None:
            if shape is None:
                raise Problem("Say the shape of one input of the torch module: --input 28x28, for example.")
            files.write_onnx(target, onnx_model.of_torch(_module(args.module), parameters, shape), about)
        case "onnx":
            files.write_onnx(target, onnx_model.of_ours(parameters, shape, task), about)
        case _:
            files.write_hub_folder(target, parameters, about, shape=shape, task=task, license_=args.license)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sides = text.split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise Problem(f"--input is {text!r}: name the sides of one input, such as 64 or 28x28.")
    return tuple(int(side) for side in sides)


def _module(name: str) -> Any:
    from midge.commands.apps import load_app  # noqa: PLC0415

    try:
        from midge.iot_client.training.torch_onnx import Module  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem('--module needs torch: pip install "midge[torch]"') from error
    return load_app(name, Module, "a torch module")
