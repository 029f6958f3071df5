"""The settings file of a device: `midge device --config pump-17.toml`. Its keys are the options of the command."""

import argparse
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from pydantic import Field

from midge.configuration.derived import SettingsTable, reworded, section
from midge.configuration.logs import LOG
from midge.configuration.options import BROKER, BROKER_TEXTS, Table, apply, of_options
from midge.configuration.toml_file import TomlFile

OPTIONS: Final[Mapping[str, Table]] = {
    "broker": BROKER,
    "federation": {"name": "federation", "root": "root"},
    "device": {
        "name": "name",
        "outbox": "outbox",
        "capabilities": "capability",
        "no_survey": "no_survey",
        "release_key": "release_key",
        "signing_key": "signing_key",
        "helper_key": "helper_key",
        "k_min": "k_min",
        "epsilon": "epsilon",
        "delta": "delta",
        "wait": "wait",
    },
    "data": {
        name: name
        for name in (
            *("csv", "sensor_topic", "sensor_broker", "sensor_password_file", "label", "features", "classes"),
            *("missing", "decimal", "separator", "encoding", "model", "train_after", "keep_rows", "rows_expire"),
        )
    },
    "conditions": {
        name: name for name in ("on_mains", "battery_above", "cooler_than", "cpu_idle", "hours", "unmetered")
    },
    "costs": {name: name for name in ("bytes_per_month", "joules_per_month", "watts", "joules_per_byte")},
    "sleep": {"wake_every": "wake_every", "awake": "awake", "once": "once"},
    "process": {"isolate": "isolate", "memory": "memory"},
    "predictions": {
        "topic": "publish",
        "retained": "publish_retained",
        "broker": "publish_broker",
        "password_file": "publish_password_file",
        "alarm": "alarm",
    },
    "keep": {
        "rows": "try_rows",
        "margin": "try_margin",
        "alpha": "try_alpha",
        "limit": "try_limit",
        "off": "take_any_model",
    },
    "log": {"json_lines": "json", "format": "log"},
}
"""Tables with options of `midge device`: a new option that belongs into the file is one word here."""

LEFT_OUT: Final = {
    "help": "of the command line",
    "app": "app of [device]",
    "set": "of the command line",
    "accept_loss": "of `midge device verify`",
    "new": "of `midge device consent`",
    "dry_run": "tries a source, once",
    "listen": "goes with --dry-run",
}
"""Options of `midge device` that are no key, and why."""

TEXTS: Final = {
    "broker": "Where the broker is.",
    "federation": "Which federation; that of the bundle unless given.",
    "device": "Who takes part. Either `app`, or a source in [data].",
    "data": "Rows from a CSV file or an MQTT topic, and a model of Midge's own.",
    "conditions": "When it trains: only while all of these hold.",
    "costs": "What it may use.",
    "sleep": "When it sleeps.",
    "process": "Training in a process of its own.",
    "predictions": "What it predicts: for each row that comes, as JSON.",
    "keep": "When it goes on using its model because a new one is worse on its own rows.",
    "log": "What is printed.",
}


@cache
def model_for(parser: argparse.ArgumentParser) -> type[SettingsTable]:
    """The model of the file; `parser` is that of `midge device`."""
    tables = {name: of_options(parser, table) for name, table in OPTIONS.items()}
    for key, text in BROKER_TEXTS.items():
        tables["broker"][key] = reworded(tables["broker"][key], text)
    tables["device"] = {
        "app": (str | None, Field(None, description="A midge.Device in a module of yours: module:attribute.")),
        **tables["device"],
    }
    tables["log"].update(LOG)
    fields: dict[str, tuple[Any, Any]] = {
        name: (section(name.capitalize(), keys, TEXTS[name]), Field(None, description=TEXTS[name]))
        for name, keys in tables.items()
    }
    return section("DeviceSettings", fields, "Settings of a device: midge device --config FILE.")


def apply_file(file: TomlFile, args: argparse.Namespace, parser: argparse.ArgumentParser) -> Any:
    """Put what the file says where the command line said nothing; the checked file.

    Raises:
        SettingsError: a mistake in the file.
    """
    tables: Any = file.checked(model_for(parser))
    for name, table in OPTIONS.items():
        try:
            apply(getattr(tables, name), table, args, parser, file.path.parent)
        except ValueError as error:
            raise file.wrong(error, (name,)) from error
    app = (tables.device.given() if tables.device is not None else {}).get("app")
    if app is not None and not args.app and args.csv is None and args.sensor_topic is None:
        args.app = [app]
    return tables
