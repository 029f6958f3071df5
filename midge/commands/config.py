"""`midge config`: check a settings file, print an example of one, or its JSON schema."""

import argparse
import json
from pathlib import Path
from typing import Any

from midge.commands import aggregate, device
from midge.commands.arguments import CommandParser
from midge.commands.guest import check_guest
from midge.commands.parts import Subparsers, read_config, server_side
from midge.commands.settings import has_tables
from midge.configuration.toml_file import Key, SettingsError, TomlFile

_SAMPLES: dict[str, dict[Key, Any]] = {
    "aggregator": {
        ("broker", "url"): "mqtt://localhost",
        ("federation", "name"): "pumps",
        ("federation", "features"): ["speed", "pressure", "temperature"],
        ("model", "kind"): "linear",
        ("model", "task"): "regression",
        ("strategy", "preset"): "balanced",
        ("store", "path"): "pumps",
    },
    "device": {
        ("broker", "url"): "mqtt://localhost",
        ("federation", "name"): "pumps",
        ("device", "name"): "pump-1",
        ("data", "csv"): "pump-1.csv",
        ("data", "label"): "power",
        ("data", "features"): ["speed", "pressure", "temperature"],
    },
}
_HEADS = {
    "aggregator": "An aggregator: midge aggregate --config midge.toml. Files that are read are relative to this one, "
    "what is written to the working directory. Passwords and keys stand in files of their own.",
    "device": "A device: midge device --config device.toml. Files that are read are relative to this one, what is "
    "written to the working directory. Passwords and keys stand in files of their own.",
}


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("config", help="check a settings file; print an example of one, or its schema")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    checking = actions.add_parser(
        "check",
        help="check a settings file of an aggregator or a device, or a bundle",
        description="Check a settings file and everything that it makes, without connecting or writing anything.",
    )
    checking.add_argument("file", metavar="FILE", help="a settings file, or a bundle of `midge broker init`")
    checking.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key; repeated")
    checking.set_defaults(run=check)
    for name, run, text in (
        ("example", print_example, "print a settings file that is valid and means the defaults"),
        ("schema", print_schema, "print the JSON schema of a settings file, for editors"),
    ):
        printing = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        printing.add_argument("--device", action="store_true", help="of a device (default: of an aggregator)")
        if name == "example":
            printing.add_argument("--full", action="store_true", help="with every key and its meaning")
        printing.set_defaults(run=run)


def parser_of(command: Any, name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    subparsers = CommandParser(prog="midge").add_subparsers()
    command.register(subparsers)
    found: argparse.ArgumentParser = subparsers.choices[name]
    return found


def model(kind: str) -> Any:
    """The model of a settings file: of an "aggregator" or a "device"."""
    if kind == "device":
        from midge.configuration import device_file  # noqa: PLC0415 - each for those who have one

        return device_file.model_for(parser_of(device, "device"))
    with server_side():
        from midge.configuration import aggregator_file  # noqa: PLC0415 - an extra
    return aggregator_file.model_for(parser_of(aggregate, "aggregate"))


def is_device(file: TomlFile) -> bool:
    """Whether a settings file is a device's: it has a table that no aggregator has."""
    return not {"model", "store"} & file.values.keys() and bool({"device", "data"} & file.values.keys())


def check(args: argparse.Namespace) -> int:
    path = Path(args.file).expanduser()
    if not has_tables(path):
        bundle = read_config(args.file)
        print(f"{path} is a bundle: {bundle.name} of federation {bundle.topics.federation!r}, at {bundle.endpoint}.")
        return 0
    file = TomlFile(path, args.set)
    if is_device(file):
        _check_device(file)
        print(f"{path} is right: a device.")
        return 0
    print(f"{path} is right: {_check_aggregator(file)}")
    return 0


def _check_device(file: TomlFile) -> None:
    from midge.configuration.device_file import apply_file  # noqa: PLC0415 - for those who have one

    parser = parser_of(device, "device")
    args = parser.parse_args([])
    apply_file(file, args, parser)
    check_guest(args)
    if not args.app and args.csv is None and args.sensor_topic is None:
        raise SettingsError(f"{file.path}: add app to [device], or csv or sensor_topic to [data].")
    if args.config is None and args.broker is None:
        raise SettingsError(f"{file.path}: broker.url is missing: add the broker's address, or the bundle.")


def _check_aggregator(file: TomlFile) -> str:
    with server_side():
        from midge.configuration.aggregator_file import AggregatorSettings  # noqa: PLC0415 - an extra
    parser = parser_of(aggregate, "aggregate")
    args = parser.parse_args([])
    settings = AggregatorSettings(file, parser)
    app = aggregate.from_settings(settings, args)
    config = app.config
    values = sum(tensor.size for tensor in config.schema.tensors if tensor.shared)
    return f"federation {config.federation!r}, a model of {values:,} values, strategy {config.strategy.name}."


def print_example(args: argparse.Namespace) -> int:
    from midge.configuration.listing import example  # noqa: PLC0415 - for those who want one

    kind = "device" if args.device else "aggregator"
    print(example(model(kind), _SAMPLES[kind], schema_name(kind), full=args.full, head=_HEADS[kind]), end="")
    return 0


def print_schema(args: argparse.Namespace) -> int:
    print(schema_text("device" if args.device else "aggregator"))
    return 0


def schema_text(kind: str) -> str:
    """The JSON schema of a settings file: of an "aggregator" or a "device"."""
    from midge.configuration.listing import schema  # noqa: PLC0415 - for those who want one

    return json.dumps(schema(model(kind)), indent=2)


def schema_name(kind: str) -> str:
    """The name of a schema's file, which the first line of an example gives to editors."""
    return f"midge-{kind}.schema.json"
