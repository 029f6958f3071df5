"""Field names as numbers: in a header a known name travels as its place in `NAMES`, in one byte.

A name that is not here, such as a metric's, travels as text, and text is understood for every name: so a peer may send
either. The header of an update of a small model is half of what is sent; names were half of the header.
"""

from collections.abc import Sequence
from typing import Any

from midge.wire.errors import WireError

NAMES = (
    *("kind", "update", "offer", "chunk", "fetch", "statistics", "report", "hello", "receipt", "aggregator"),
    *("announcement", "part", "succession", "outbox", "first", "seq", "lineage", "generation", "base", "schema_hash"),
    *("tensors", "codec", "size", "sha256", "examples", "steps", "seconds", "plan", "metrics", "parts"),
    *("sealed", "version", "span", "channel", "names", "missing", "state", "next", "wakes", "capabilities"),
    *("verdict", "why", "retry_after", "repeat", "weight", "staleness", "hi", "settled", "grants", "boot"),
    *("step", "revision", "learning_rate", "local_steps", "epochs", "batch_size", "proximal", "feedback"),
    *("narrow_codec", "fewest_steps", "most_steps", "evaluate", "seed", "name", "channels", "share", "interval"),
    *("bytes_per_month", "joules_per_month", "federation", "phase", "digest", "frames", "moments", "participation"),
    *("issued", "expires", "parent", "epoch", "seal_key", "byte_rate", "devices", "body", "signatures", "chain"),
    *("number", "key", "since", "loss", "accuracy", "cores", "machine", "memory_mib", "rows_per_second"),
    *("steps_per_second", "link", "features"),
    *("token", "claim", "to", "base_digest", "log"),
    *("health", "accepted", "verdicts", "alarms", "waits", "confided", "confides", "hidden", "hides"),
    *("rest", "trouble", "largest", "smallest_chunk", "class", "micro_codec", "verifies", "vouch"),
)
"""Append; never remove, reorder or insert. Up to 127 travel in one byte."""
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def numbered(value: Any) -> Any:
    """A header of plain dicts, lists and tuples, with numbers for the names that are known, at every depth."""
    kind = type(value)
    if kind is dict:
        return {_NUMBERS.get(name, name): numbered(each) for name, each in value.items()}
    if (kind is tuple or kind is list) and value and type(value[0]) in (dict, list, tuple):
        return [numbered(each) for each in value]
    return value


def number(word: str) -> int | str:
    """The number of a word, or the word where it has none."""
    return _NUMBERS.get(word, word)


def word(said: object) -> object:
    """The word that a number says; what is no number of one stays as it is."""
    return NAMES[said] if type(said) is int and 0 <= said < len(NAMES) else said


def named(pairs: Sequence[tuple[object, Any]]) -> dict[str, Any]:
    """A map whose keys came as numbers or text, without those that are of a later list, or no names at all.

    Raises:
        WireError: a name came twice.
    """
    found: dict[str, Any] = {}
    passed = 0
    for key, value in pairs:
        if type(key) is str:
            found[key] = value
        elif type(key) is int and 0 <= key < len(NAMES):
            found[NAMES[key]] = value
        else:
            passed += 1  # and never hashed: numbers can be chosen to collide
    if len(found) + passed < len(pairs):
        raise WireError("a name that comes twice")
    return found
