"""Text of peers that is shown: it draws nothing but itself.

A name or a sentence from outside can hold what a terminal obeys (ECMA-48 escape sequences), what begins a line of its
own in a log, or what turns the reading direction of all that follows (Unicode's bidirectional controls). All of these
are characters that Python calls unprintable, as it does spaces of another width, which stay. What has a syntax of its
own (HTML, labels of Prometheus, JSON) is escaped by what writes it, besides.
"""

import logging
from typing import Any
from unicodedata import category

LOGGERS = ("aggregator", "broker", "iot_client", "storage")


def inert(text: str) -> str:
    """The text on one line, with a replacement character for each that does not show."""
    return text if text.isprintable() else "".join(c if _shows(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shows(character: str) -> bool:
    return character.isprintable() or category(character) == "Zs"


def inert_all(value: Any) -> Any:
    """The same value with all text in it inert, as far as lists and mappings go."""
    match value:
        case str():
            return inert(value)
        case dict():
            return {inert_all(name): inert_all(each) for name, each in value.items()}
        case list() | tuple():
            return type(value)(inert_all(each) for each in value)
    return value


def _told(record: logging.LogRecord) -> bool:
    """What is logged, with what was put into it; a trace below it is Python's own."""
    record.msg, record.args = inert(record.getMessage()), None
    return True


def quieten_logs() -> None:
    """Have all that Midge logs inert, whoever handles it. A second call changes nothing."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_told)
