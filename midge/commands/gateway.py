"""A device without a user's program: trains a ready-made model on a growing CSV file or on a topic of sensors."""

import argparse
import csv
import logging
import re
import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from midge.broker import Endpoint, connector
from midge.broker.mqtt.connection import Connection, Options
from midge.commands.guest import seconds
from midge.commands.numbers import refuse_impossible
from midge.commands.parts import Parser, Problem, other_broker, read_config, user_errors
from midge.iot_client.config import DeviceConfig
from midge.iot_client.data.csv_format import Layout
from midge.iot_client.data.csv_inspection import CsvOptions, header, no_features
from midge.iot_client.data.csv_source import CsvRows
from midge.iot_client.data.mqtt_source import SensorTopic
from midge.iot_client.data.row_reader import Kind
from midge.iot_client.data.samples import Samples, Source
from midge.iot_client.data.samples_file import SamplesError
from midge.iot_client.device import Device
from midge.iot_client.training.sample_trainer import SampleTrainer
from midge.running import endpoint_of
from midge.wire.topics import DEFAULT_ROOT, check_name

log = logging.getLogger("iot_client")


def add_gateway(parser: Parser) -> None:
    """Options that replace a program."""
    # `--missing -200,-9999` is a value and no option, of which none begins with a digit.
    parser._negative_number_matcher = re.compile(r"-\.?\d.*")  # noqa: SLF001
    group = parser.add_argument_group(
        "instead of MODULE:ATTRIBUTE", "Train one of midge's own models in NumPy, chosen by the federation."
    )
    source = group.add_mutually_exclusive_group()
    source.add_argument("--csv", metavar="FILE", help="rows that another program appends; the first line names columns")
    source.add_argument("--sensor-topic", metavar="TOPIC", help="rows from an MQTT topic, such as zigbee2mqtt/pump-17")
    group.add_argument("--sensor-broker", metavar="URL", help="the broker of the sensors (default: the federation's)")
    group.add_argument("--sensor-password-file", metavar="FILE", help="the password for the user in its URL")
    group.add_argument("--label", metavar="NAME", help="the column or field to predict")
    group.add_argument(
        "--features", metavar="A,B,C", help="the columns or fields to predict it from, in the model's order"
    )
    group.add_argument("--classes", metavar="A,B,C", help="names of the classes, in the model's order, if it has any")
    group.add_argument(
        "--missing", metavar="A,B", help="numbers or words that stand for a missing value, such as -200,-9999"
    )
    group.add_argument("--decimal", choices=(".", ","), help="the decimal mark in the CSV (default: detected)")
    group.add_argument("--separator", metavar="CHAR", help="the CSV's delimiter (default: detected)")
    group.add_argument("--encoding", help="encoding of the CSV, such as cp1252 (default: detected)")
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be read, which columns are used and why others are not"
    )
    group.add_argument(
        "--for",
        dest="listen",
        type=seconds,
        metavar="TIME",
        help="with --dry-run: listen to a topic for this time (default: 10s)",
    )
    group.add_argument(
        "--model",
        choices=("auto", "linear", "softmax", "mlp", "autoencoder"),
        default="auto",
        help="refuse a federation with another model (default: accept any)",
    )
    group.add_argument(
        "--train-after", type=int, default=32, metavar="ROWS", help="new rows per training (default: 32)"
    )
    group.add_argument(
        "--keep-rows", type=int, default=10_000, metavar="ROWS", help="most rows that are kept (default: 10000)"
    )
    group.add_argument(
        "--rows-expire",
        type=float,
        metavar="DAYS",
        help="remove rows that are older, also from the disk (default: keep them as long as there is room)",
    )
    group.add_argument("--federation", metavar="NAME", help="the federation's name, unless --config says it")
    group.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    group.add_argument("--outbox", metavar="FILE", help="file for updates that wait (default: NAME.outbox)")


_ITS_OWN = (
    *("sensor_broker", "sensor_password_file", "label", "features", "classes", "missing"),
    *("decimal", "separator", "encoding", "dry_run", "federation", "rows_expire"),
)
"""Options of a gateway that do not apply to a program: unset, they are None or False."""


def refuse_options(args: argparse.Namespace, app: str) -> None:
    """Refuse options that a program would ignore.

    Raises:
        Problem: an option is only for a gateway.
    """
    given = [f"--{name.replace('_', '-')}" for name in _ITS_OWN if getattr(args, name)]
    if given:
        verb, has = ("is", "has") if len(given) == 1 else ("are", "have")
        raise Problem(
            f"{', '.join(given)} {verb} for --csv and --sensor-topic, and {has} no effect on {app}: write it there."
        )


def gateway(args: argparse.Namespace) -> Device:
    """The device that the options describe; without its place yet.

    Raises:
        Problem: something is missing, or cannot be used.
    """
    name, federation = _who(args)
    features = _columns(args)
    classes = names_in(args.classes)
    if args.model == "softmax" and not classes:
        raise Problem("A softmax model predicts classes: name them with --classes, in the order of the model.")
    outbox = Path(args.outbox or f"{name}.outbox").expanduser()
    refuse_impossible(args, {"rows_expire": 30.0}, (), ())
    with user_errors():
        try:
            samples = Samples(
                outbox.with_name(f"{outbox.name}.samples"),
                features,
                args.label,
                kind=kind_of(args),
                rows=args.keep_rows,
                least=args.train_after,
                expire=None if args.rows_expire is None else args.rows_expire * 86_400.0,
                missing_values=names_in(args.missing),
            )
        except SamplesError as error:
            raise Problem(str(error)) from error
        try:
            return _device(args, samples, name=name, federation=federation, outbox=outbox, classes=classes)
        except BaseException:
            samples.close()
            raise


def _device(
    args: argparse.Namespace, samples: Samples, *, name: str, federation: str, outbox: Path, classes: list[str]
) -> Device:
    """The device that trains on these samples.

    Raises:
        ValueError: an option is invalid.
    """
    from midge.iot_client.board.conditions import enough_new, every_feature  # noqa: PLC0415

    trainer = SampleTrainer(samples, model=args.model)

    def _wherever(options: Options) -> AbstractAsyncContextManager[Connection]:
        return app.config.connector(options)

    sources: list[Source] = []
    if args.csv is not None:
        sources.append(CsvRows(Path(args.csv).expanduser(), classes=classes, options=csv_options(args)))
    elif args.sensor_broker is not None:
        sources.append(SensorTopic(connector(sensors(args)), args.sensor_topic, classes=classes))
    else:  # the federation's broker, also after the device is moved
        sources.append(SensorTopic(_wherever, args.sensor_topic, classes=classes))
    app = Device(
        DeviceConfig(
            connector=connector(endpoint_of("mqtt://localhost")),
            federation=federation,
            name=name,
            root=args.root,
            train=trainer,
            predict=trainer.predict,
            outbox=outbox,
            samples=samples,
            sources=sources,
            moments=samples.moments,
            end_if_unsuited=True,
            conditions=[enough_new(samples, args.train_after), every_feature(samples)],
        )
    )
    return app


def _who(args: argparse.Namespace) -> tuple[str, str]:
    """The device's name and the federation's."""
    if args.config is None and args.broker is None:
        raise Problem("Say where: --broker URL and --federation NAME, or --config with a bundle.")
    bundle = None if args.config is None else read_config(args.config, args.broker)
    federation = bundle.topics.federation if bundle is not None else args.federation
    if federation is None:
        raise Problem("Say which federation: --federation NAME, or --config with a bundle.")
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "device"
    with user_errors():
        return check_name(args.name or (bundle.name if bundle is not None else host), "device name"), federation


def sensors(args: argparse.Namespace) -> Endpoint:
    """The broker in --sensor-broker."""
    return other_broker(args.sensor_broker, args.sensor_password_file)


def kind_of(args: argparse.Namespace) -> Kind:
    """The kind of the samples."""
    if args.label is None:
        return "reconstruction"
    return "classification" if names_in(args.classes) else "regression"


def csv_options(args: argparse.Namespace) -> CsvOptions:
    """The file format from the options.

    Raises:
        ValueError: there is no such encoding.
    """
    separator = {"tab": "\t", "\\t": "\t", "space": " "}.get(args.separator, args.separator or "")
    if len(separator) > 1:
        raise ValueError(f"--separator takes one character, tab or space, not {separator!r}.")
    return CsvOptions(separator, args.encoding or "", args.decimal or "")


def _columns(args: argparse.Namespace) -> Sequence[str]:
    """The features; if none are named, all columns of a CSV except the label and those that are no inputs."""
    if args.label is None and args.model != "autoencoder":
        raise Problem(
            "Say with --label which column or field to predict; or --model autoencoder, which learns from rows "
            "without a label what is normal."
        )
    if args.label is not None and args.model == "autoencoder":
        raise Problem("An autoencoder learns what is normal without a label: leave --label out.")
    if args.features:
        return names_in(args.features)
    if args.csv is None:
        raise Problem(
            "Say with --features which fields it is predicted from, in the order of the model: --features a,b. "
            "--dry-run shows which fields there are."
        )
    path = Path(args.csv).expanduser()
    with user_errors():
        layout = header(path, [] if args.label is None else [args.label], csv_options(args))
        features, out = file_columns(args, path, layout)
    if out:
        left = ", ".join(f"{name!r} ({why})" for name, why in out.items())
        log.warning("Features are %s. Left out: %s; --features says otherwise.", ", ".join(features), left)
    return features


def file_columns(args: argparse.Namespace, path: Path, layout: Layout) -> tuple[list[str], dict[str, str]]:
    """The features of a CSV, and why the other columns are none.

    Raises:
        Problem: no column is left.
    """
    columns = list(dict.fromkeys(layout.columns))
    if args.features:
        features = names_in(args.features)
        return features, {name: "not among --features" for name in columns if name not in (*features, args.label)}
    out = no_features(path, args.label, layout)
    features = [name for name in columns if name != args.label and name not in out]
    if not features:
        left = ", ".join(f"{name!r} ({why})" for name, why in out.items()) or "there is no other column than the label"
        raise Problem(f"{path} has no column that is an input by its look: {left}. Name some: --features A,B.")
    return features, out


def names_in(text: str | None) -> list[str]:
    """Names separated by commas; one that contains a comma is in double quotes."""
    found = next(csv.reader([text or ""], skipinitialspace=True), [])
    return [name.strip() for name in found if name.strip()]
