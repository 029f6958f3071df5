"""Field names as numbers: a known name in a header travels as its index in `NAMES`, in one byte.

Other names, such as a metric's, travel as text. A reader accepts text for every name, so a peer may send either. The
header is half of the update of a small model, and names were half of the header.
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
    *("alias", "keeps"),
    *("entry", "masking", "helper"),
    *("where", "where_share"),
    *("weigh_examples",),
    *("ledger",),
)
"""Append only; never remove, reorder or insert. The first 128 travel in one byte and are all given: later ones, such as
`site_size`, travel as text.

Keys of users' maps (capabilities, metrics, `where`) are numbered too. A device with a shorter list skips a number that
it does not know, so never append a word that is a likely label, such as "site" or "room".
"""
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def numbered(value: Any) -> Any:
    """Replace known names in a header by numbers, at every depth of dicts, lists and tuples."""
    kind = type(value)
    if kind is dict:
        return {_NUMBERS.get(name, name): numbered(each) for name, each in value.items()}
    if (kind is tuple or kind is list) and value and type(value[0]) in (dict, list, tuple):
        return [numbered(each) for each in value]
    return value


def number(word: str) -> int | str:
    """The number of a name, or the name itself if it has none."""
    return _NUMBERS.get(word, word)


def word(key: object) -> object:
    """The name of a number, or the value unchanged if it is not a known number."""
    return NAMES[key] if type(key) is int and 0 <= key < len(NAMES) else key


def named(pairs: Sequence[tuple[object, Any]]) -> dict[str, Any]:
    """Decode a map from its keys and values; unknown numbers and keys that are neither text nor number are skipped.

    Raises:
        WireError: a name came twice.
    """
    fields: dict[str, Any] = {}
    skipped = 0
    for key, value in pairs:
        if type(key) is str:
            fields[key] = value
        elif type(key) is int and 0 <= key < len(NAMES):
            fields[NAMES[key]] = value
        else:
            skipped += 1  # and never hashed: numbers can be chosen to collide
    if len(fields) + skipped < len(pairs):
        raise WireError("a name that comes twice")
    return fields
