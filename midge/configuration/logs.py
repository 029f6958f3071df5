"""The table [log] of both files."""

import logging
from typing import Final, Literal

from pydantic import Field

from midge.configuration.derived import Fields, SettingsTable

LOG: Final[Fields] = {
    "level": (
        Literal["debug", "info", "warning", "error"],
        Field("warning", description="The least level of messages on standard error."),
    ),
}


def set_level(log: SettingsTable | None, *, verbose: bool = False) -> None:
    """Set the level of all messages; `midge --verbose` goes before the file."""
    if not verbose:
        level = "warning" if log is None else log.given().get("level", "warning")
        logging.getLogger().setLevel(level.upper())
