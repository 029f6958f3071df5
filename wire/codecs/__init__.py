"""Codecs: how a device's delta becomes bytes, as chains of small stages that are named on the wire.

`parse("topk:0.01|int8")` returns the codec of a name; the table of stages is in `wire/codecs/names.py`. A stage is a
pair of pure functions on flat float32 vectors. Decoding trusts no input: lengths come from our schema, and non-finite
values are refused. It is elementwise float32 in a fixed order, so that it gives the same bits on every processor.
"""

from midge.wire.codecs.blocks import BFloat16, Float32, Int8
from midge.wire.codecs.delta import EncodedDeltas, decode_delta, decode_measured, encode_delta
from midge.wire.codecs.names import FALLBACK, Chain, Codec, followable, parse
from midge.wire.codecs.stages import NonFinite

__all__ = [
    "FALLBACK",
    "BFloat16",
    "Chain",
    "Codec",
    "EncodedDeltas",
    "Float32",
    "Int8",
    "NonFinite",
    "decode_delta",
    "decode_measured",
    "encode_delta",
    "followable",
    "parse",
]
