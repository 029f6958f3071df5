"""The settings file of an aggregator: `midge aggregate --config midge.toml`."""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from pydantic import Field

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.aggregator.registry.policy import RegistryPolicy
from midge.configuration.derived import Fields, SettingsTable, of_dataclass, reworded, section
from midge.configuration.logs import LOG
from midge.configuration.models import MODEL, Load, model_of
from midge.configuration.options import BROKER, BROKER_TEXTS, Table, apply, beside, of_options
from midge.configuration.strategies import PLAN, STRATEGY, strategy_of
from midge.configuration.toml_file import SettingsError, TomlFile
from midge.public_aggregator import Aggregator

OPTIONS: Final[Mapping[str, Table]] = {
    "broker": BROKER,
    "store": {"export": "model"},
    "metrics": {"listen": "metrics"},
    "page": {"listen": "page", "token_file": "page_token_file", "names": "page_name"},
    "standby": {
        "follow": "standby",
        "sync": "sync",
        "alone_after": "alone_after",
        "takeover_after": "takeover_after",
    },
    "home_assistant": {"prefix": "home_assistant"},
    "log": {"json_lines": "json", "format": "log"},
}
"""Tables with options of `midge aggregate`: a new option that belongs into the file is one line here."""

FIELDS: Final[Mapping[str, Sequence[str]]] = {
    "federation": (
        *("root", "features", "roles", "moments"),
        *("statistics_devices", "statistics_deadline", "statistics_factor", "sites"),
        "shards",
    ),
    "broker": ("keepalive", "chunk", "smallest_chunk", "memory"),
    "store": ("checkpoint_records", "retention"),
    "security": (
        *("release_key", "announcement_lifetime", "device_keys", "require_signed", "require_sealed"),
        "post_quantum",
        "helper_key",
    ),
}
"""Tables with fields of `AggregatorConfig`: a new field that belongs into the file is one word here."""

FILES: Final = ("release_key", "device_keys", "helper_key")
"""Of these, files and folders that are read: relative to the settings file."""

LEFT_OUT: Final = {
    "connector": "[broker] makes it",
    "federation": "name of [federation]",
    "initial": "[model] makes it",
    "store": "path of [store]",
    "strategy": "a table of its own",
    "limits": "a table of its own",
    "registry": "a table of its own",
    "standby": "a table of its own",
    "evaluate": "evaluate of [model]",
    "on_event": "[log]",
    "replace": "is for one start: midge aggregate --replace",
    "raise_epoch": "is for one start: midge aggregate --raise-epoch",
    "credential_files": "those of [broker]",
}
"""Fields of `AggregatorConfig` that are no key, and why."""

RELOADED: Final = ("log.level", "limits", "strategy", "plan")
"""Keys and tables that SIGHUP changes in a running aggregator."""
FIXED: Final = {
    "strategy.preset": "another method is a decision for a start",
    "strategy.privacy": "devices were promised a budget",
    "strategy.form": "the store keeps what the form needs",
}
"""Of these, what does not change while it runs, and why."""


@cache
def model_for(parser: argparse.ArgumentParser) -> type[SettingsTable]:
    """The model of the file; `parser` is that of `midge aggregate`."""
    tables: dict[str, Fields] = {name: of_options(parser, table) for name, table in OPTIONS.items()}
    for key, text in BROKER_TEXTS.items():
        tables["broker"][key] = reworded(tables["broker"][key], text)
    tables["federation"] = {
        "name": (str | None, Field(None, description="The federation's name; that of the bundle unless given."))
    }
    tables["store"] = {
        "path": (str, Field(description="A folder of this aggregator's own, relative to the working directory.")),
        **tables["store"],
    }
    for name, names in FIELDS.items():
        tables.setdefault(name, {}).update(of_dataclass(AggregatorConfig, names))
    tables["log"].update(LOG)
    limits = section("Limits", of_dataclass(IngressLimits))
    registry = section("Registry", of_dataclass(RegistryPolicy))
    return section(
        "AggregatorSettings",
        {
            "broker": _table("broker", tables.pop("broker"), "Where the broker is."),
            "federation": _table("federation", tables.pop("federation"), "Whom the devices join."),
            "model": (MODEL, Field(description="What is learned.")),
            "strategy": (STRATEGY, Field(None, description="When and how updates become the next model.")),
            "plan": (PLAN, Field(None, description="How devices shall train.")),
            "store": _table("store", tables.pop("store"), "Where the model and the journal are kept.", needed=True),
            "limits": (limits, Field(None, description="How much devices may send, and when one is quarantined.")),
            "registry": (registry, Field(None, description="How versions are registered, tried and promoted.")),
            **{name: _table(name, keys, TEXTS[name]) for name, keys in tables.items()},
        },
        "Settings of an aggregator: midge aggregate --config FILE.",
    )


TEXTS: Final = {
    "security": "Keys: files, never their contents.",
    "home_assistant": "What Home Assistant is shown.",
    "standby": "A second host that follows this store, and takes over: the same on both.",
    "page": "A live page of the federation.",
    "metrics": "Numbers for Prometheus.",
    "log": "What is printed.",
}


def _table(name: str, keys: Fields, text: str, *, needed: bool = False) -> tuple[Any, Any]:
    return section(name.capitalize(), keys, text), Field(description=text) if needed else Field(None, description=text)


class AggregatorSettings:
    """What a settings file says of an aggregator.

    Args:
        file: the file.
        parser: of `midge aggregate`.

    Raises:
        SettingsError: a mistake in the file.
    """

    def __init__(self, file: TomlFile, parser: argparse.ArgumentParser) -> None:
        self.file = file
        self.tables: Any = file.checked(model_for(parser))
        self.folder = file.path.parent

    def given(self, table: str) -> dict[str, Any]:
        """Keys of a table that were written."""
        found: SettingsTable | None = getattr(self.tables, table)
        return {} if found is None else found.given()

    def apply(self, args: argparse.Namespace) -> None:
        """Put what the tables of options say where the command line said nothing.

        Raises:
            SettingsError: a value that an option does not take.
        """
        for name, table in OPTIONS.items():
            try:
                apply(getattr(self.tables, name), table, args, args.parser, self.folder)
            except ValueError as error:
                raise self.file.wrong(error, (name,)) from error

    def strategy(self) -> Strategy:
        """The strategy.

        Raises:
            SettingsError: values that cannot work together.
        """
        try:
            return strategy_of(self.given("strategy"), self.given("plan"))
        except ValueError as error:
            raise self.file.wrong(error, ("strategy", "plan")) from error

    def limits(self) -> IngressLimits:
        """The rate limits.

        Raises:
            SettingsError: values that cannot work together.
        """
        try:
            return IngressLimits(**self.given("limits"))
        except ValueError as error:
            raise self.file.wrong(error, ("limits",)) from error

    def registry(self) -> RegistryPolicy:
        """How versions are registered.

        Raises:
            SettingsError: a value is out of range.
        """
        try:
            return RegistryPolicy(**self.given("registry"))
        except ValueError as error:
            raise self.file.wrong(error, ("registry",)) from error

    def aggregator(self, load: Load, federation: str | None = None) -> Aggregator:
        """The aggregator, as `midge.Aggregator` makes it with the same arguments.

        Args:
            load: gives what `module:attribute` names.
            federation: the name in a bundle, if the file has none.

        Raises:
            SettingsError: something is missing, or contradicts another value.
        """
        name = self.given("federation").pop("name", federation)
        strategy, limits, registry = self.strategy(), self.limits(), self.registry()
        if name is None:
            raise SettingsError(f"{self.file.path}: federation.name is missing: add it, or name a bundle in [broker].")
        fields = {
            key: value for table, names in FIELDS.items() for key, value in self.given(table).items() if key in names
        }
        for key in FILES:
            if fields.get(key) is not None:
                fields[key] = beside(self.folder, fields[key])
        model = self._model(fields, load)
        try:
            if strategy.privacy is not None:
                model.pop("moments", None)
            roles = {**model.pop("roles", {}), **(fields.pop("roles", None) or {})}
            return Aggregator(
                self.given("broker").get("url", "mqtt://localhost"),
                federation=name,
                store=self.given("store")["path"],
                strategy=strategy,
                limits=limits,
                registry=registry,
                roles=roles or None,
                **{**model, **fields},
            )
        except ValueError as error:
            raise self.file.wrong(error) from error

    def _model(self, fields: Mapping[str, Any], load: Load) -> dict[str, Any]:
        names = fields.get("features")
        given = self.given("model")
        if "path" in given:
            given["path"] = beside(self.folder, given["path"])
        try:
            return model_of(given, len(names) if names else None, load)
        except ValueError as error:
            raise self.file.wrong(error, ("model",)) from error


def changes(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> list[str]:
    """Keys that differ between two files, in order."""
    found: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) or isinstance(new, dict):
            found += changes(old or {}, new or {}, f"{above}{key}.")
        elif old != new:
            found.append(f"{above}{key}")
    return found


def fixed(key: str) -> str | None:
    """Why a key does not change while the aggregator runs; None if it may."""
    for name, why in FIXED.items():
        if key == name or key.startswith(f"{name}."):
            return why
    if any(key == name or key.startswith(f"{name}.") for name in RELOADED):
        return None
    return "it is read at the start only"
