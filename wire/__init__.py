"""The contract between a device and the aggregator: messages, topics, schema, codecs, chunks and the lineage.

Everything here is pure: bytes and arrays in, bytes and arrays out; no clock, no network, no randomness.
`docs/protocol.md` describes the same in words, for authors of devices in other languages.
"""

from midge.wire.errors import WireError

__all__ = ["WireError"]
