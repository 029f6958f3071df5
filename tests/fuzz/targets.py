"""What is fuzzed: everything that reads bytes of a peer. A target takes any bytes and raises nothing.

Each checks on the way what must hold of what it read; a WireError is the right answer to what cannot be read.
"""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from midge.iot_client.session.trust import Trust
from midge.wire import codecs, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages.proofs import Proof
from tests.aggregator.rig import TOPICS, Rig
from tests.wire.test_hostile_bytes import DECODERS, SCHEMA, decoder

Target = Callable[[bytes], None]
CODECS = (
    "float32",
    "bf16",
    "int8:16",
    "eden:4",
    "eden:1",
    "uq:4|rice",
    "topk:0.1|int8",
    "topk:0.1|eden:4",
    "randk:0.3|sign:16",
    "int4:16:random",
    "stc:0.1",
    "uq:4|rice|zstd",
)
KEY = signing.new_key()
PRIVATE = sealing.derive(KEY)


def delta(data: bytes) -> None:
    """The first byte names a codec, the rest is a delta: values of our schema, all finite, or a WireError."""
    name = CODECS[data[0] % len(CODECS)] if data else "float32"
    try:
        values = codecs.decode_delta(data[1:], SCHEMA, name)
    except WireError:
        return
    assert values.shape == (SCHEMA.size,)
    assert np.isfinite(values).all()


def codec_name(data: bytes) -> None:
    """Any text as a codec's name: a codec or a WireError."""
    try:
        codecs.parse(data.decode(errors="replace"))
    except WireError:
        return


def trust(data: bytes) -> None:
    """Any bytes as an announcement or a receipt to a device with a pinned key: nothing is believed."""
    device = Trust([KEY.public], "f", "a")
    before = device.packed()
    for read in (partial(device.announcement, wall=0.0, now=0.0), device.read_answer):
        try:
            found = read(data)
        except WireError:
            continue
        assert isinstance(found, Proof), "it was believed"  # proofs are compared with an announced root
    assert device.packed() == before


def sealed(data: bytes) -> None:
    """Any bytes as what was sealed to us: nothing is opened."""
    try:
        sealing.unseal(data, PRIVATE, b"about")
    except WireError:
        return
    raise AssertionError("it was opened")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="midge-fuzz-")


@cache
def _life() -> Rig:
    return Rig(Path(_folder().name), bounds=None).start()


def processor(data: bytes) -> None:
    """The first byte names a topic, the rest comes on it to an aggregator: at most one answer, and no harm.

    Zeros in the places of the lineage and the schema's hash stand for the aggregator's own.
    """
    life = _life()
    topics = (TOPICS.update("a"), TOPICS.update("b"), TOPICS.status("a"), TOPICS.report("a"))
    payload = data[1:]
    for name, value in ((b"lineage", life.core.lineage), (b"schema_hash", life.core.schema_hash)):
        payload = payload.replace(name + b"\xc4\x10" + bytes(16), name + b"\xc4\x10" + value)
    step, before = life.core.step, life.model.digest()
    receipts = life.hear((topics[data[0] % 4 if data else 0], payload))
    assert sum(len(receipt.settled) for receipt in receipts) <= 1
    assert life.core.step != step or life.model.digest() == before
    life.posts.clear()
    life.told.clear()


TARGETS: dict[str, Target] = {
    **{name: partial(decoder, decode) for name, decode in DECODERS.items()},
    "frame": partial(decoder, frames.decode),
    "succession": partial(decoder, partial(messages.decode, messages.Succession)),
    "delta": delta,
    "codec_name": codec_name,
    "trust": trust,
    "sealed": sealed,
    "processor": processor,
}
