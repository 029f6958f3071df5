"""Sanitising text of peers before it is shown.

A name or a sentence from outside can hold terminal escapes (ECMA-48), line breaks that forge a log entry, or characters
that reverse the reading direction (Unicode's bidirectional controls). Python calls all of these unprintable, and also
spaces of other widths, which are kept. Output with a syntax of its own (HTML, Prometheus labels, JSON) must be escaped
by its writer as well.
"""

import logging
from typing import Any
from unicodedata import category

LOGGERS = ("aggregator", "broker", "iot_client", "storage")


def inert(text: str) -> str:
    """The text on one line, with a replacement character for each unprintable one."""
    return text if text.isprintable() else "".join(c if _shows(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shows(character: str) -> bool:
    return character.isprintable() or category(character) == "Zs"


def inert_all(value: Any) -> Any:
    """The same value with all text in it sanitised, through lists and mappings."""
    match value:
        case str():
            return inert(value)
        case dict():
            return {inert_all(name): inert_all(each) for name, each in value.items()}
        case list() | tuple():
            return type(value)(inert_all(each) for each in value)
    return value


def _sanitise(record: logging.LogRecord) -> bool:
    """Sanitise a log record's message with its arguments; a traceback comes from Python itself."""
    record.msg, record.args = inert(record.getMessage()), None
    return True


def quieten_logs() -> None:
    """Sanitise all log records of Midge, for every handler. A second call changes nothing."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_sanitise)
