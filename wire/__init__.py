"""The contract between a device and the aggregator: messages, topics, schema, codecs, chunks and the lineage.

Everything here is pure: bytes and arrays in, bytes and arrays out, no clock, no network, no chance. `docs/protocol.md`
says the same in words, for people who write a device in another language.
"""

from midge.wire.errors import WireError

__all__ = ["WireError"]
