"""SIGHUP of `midge aggregate`: its settings file is read again, and what may change while it runs is changed."""

import argparse
import logging
import time
from dataclasses import replace
from typing import Any

from midge.aggregator.core.strategy import Strategy
from midge.aggregator.store.errors import StoreError
from midge.configuration.aggregator_file import AggregatorSettings, changes, fixed
from midge.configuration.logs import set_level
from midge.configuration.toml_file import SettingsError, TomlFile
from midge.wire.messages import MICRO

log = logging.getLogger("midge")


def strategy_for(args: argparse.Namespace, strategy: Strategy) -> Strategy:
    """The strategy with what the options say of it."""
    return replace(strategy, plan=strategy.plan.micro()) if args.plan == MICRO else strategy


class SettingsReload:
    """Called on SIGHUP. If anything in the file cannot change or is wrong, nothing changes.

    Args:
        args: the command line, which goes before the file.
        settings: what the file said at the start.
        app: the aggregator.
    """

    def __init__(self, args: argparse.Namespace, settings: AggregatorSettings, app: Any) -> None:
        self._args, self._settings, self._app = args, settings, app

    def __call__(self) -> None:
        path = self._settings.file.path
        try:
            newer = AggregatorSettings(TomlFile(path, self._args.set), self._args.parser)
            changed = changes(self._settings.file.values, newer.file.values)
            self._refuse(changed)
            strategy = strategy_for(self._args, newer.strategy())
            self._app.config = replace(self._app.config, strategy=strategy, limits=newer.limits())
        except (SettingsError, ValueError, StoreError) as error:
            log.error("%s Nothing was changed.", error)  # noqa: TRY400 - a sentence for the operator, no traceback
            return
        self._settings = newer
        set_level(newer.tables.log, verbose=self._args.verbose)
        self._app.config.on_event({"event": "reloaded", "time": time.time(), "file": str(path), "changed": changed})

    def _refuse(self, changed: list[str]) -> None:
        refused = {key: why for key in changed if (why := fixed(key)) is not None}
        if refused:
            told = "; ".join(f"{key} cannot change while it runs ({why})" for key, why in refused.items())
            raise SettingsError(f"{self._settings.file.path}: {told}: start the aggregator again for that.")
