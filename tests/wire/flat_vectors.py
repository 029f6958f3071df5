"""The vectors as two flat files, for devices in other languages: golden/vectors.txt and golden/vectors.h.

`python -m tests.wire.flat_vectors` writes both, from the golden vectors and from what is made here: inputs, schemas and
cases that those lack. A record is a name, what is to be done with it, and hexadecimal digits; the head of the file says
how to read it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.iot_client.training import residual
from midge.iot_client.training.update_encoder import encode
from midge.wire import (
    chunks,
    codecs,
    envelopes,
    frames,
    lineage,
    messages,
    offers,
    participation,
    sharing,
    signing,
    steps,
    topics,
)
from midge.wire.lineage import State
from midge.wire.messages import Announcement, DeviceState, FrameInfo, Hello, Receipt, Succession
from midge.wire.schema import Schema, Tensor
from tests.wire.test_golden import (
    ANNOUNCEMENT,
    CHAINS,
    DELTA,
    FOLDER,
    ID,
    LARGE,
    LARGE_DELTA,
    SCHEMA,
    STATE,
    VECTORS,
)
from tests.wire.vector_files import Record, header, text

TEXT, HEADER = FOLDER / "vectors.txt", FOLDER / "vectors.h"
SEALED = Path(__file__).parents[1] / "security" / "golden" / "sealed.json"
P256_SIGNATURE = (
    "f41e13b2a13e2ff97f52432e797a470458b3002432674c4218a898fcf32898ea"
    "48cde3fc7562829d33f72bfdc87b099afa382443d1df189e9ec41c7d796db362"
)
"""Of a hello, by the key of P-256 whose scalar is the bytes 0 to 31: each that is made is another, so one is kept."""
_SMALL = Schema([Tensor("w", (100,), "float32", "trained"), Tensor("b", (), "float32", "trained")])
_BOTH = Schema(
    [
        Tensor("a", (300,), "float32", "trained"),
        Tensor("bias", (3,), "float32", "trained"),
        Tensor("mean", (2,), "float32", "averaged"),
        Tensor("b", (257,), "float32", "trained"),
    ]
)
_ONE = Schema([Tensor("w", (40, 10), "float32", "trained")])


# ------------------------------------------------------------------------- of the golden ones


def golden() -> Iterator[Record]:
    """Every message, and every delta with what it was made of."""
    for name in VECTORS:
        data = (FOLDER / f"v1-{name}.bin").read_bytes()
        told = json.loads((FOLDER / f"v1-{name}.json").read_text())
        if name.startswith("delta-"):
            yield from _delta(name, data)
        elif name == "schema":
            yield Record("schema", "schema", {"bytes": data, "schema": SCHEMA, "hash": SCHEMA.hash})
        else:
            header, body = frames.decode(data)
            del header
            fields = told[0] if isinstance(told, list) and name != "step" else told
            if name == "step":
                fields = {"size": len(told[0]), "exponent": told[1]}
            yield Record(name, "read", {"bytes": data, "fields": fields, **({"body": body} if len(body) else {})})


def _delta(name: str, data: bytes) -> Iterator[Record]:
    chain = CHAINS.get(name.removeprefix("delta-"))
    schema, delta = (SCHEMA, DELTA) if chain is None else (LARGE, LARGE_DELTA)
    codec = chain or {"delta-float32": "float32", "delta-int8": "int8:16", "delta-int8-partial": "int8"}[name]
    tensors = (1, 5) if name.endswith("partial") else None
    first = "delta-float32" if chain is None else "delta-bf16"
    made = {"input": delta} if name == first else {"input-of": first}
    given: dict[str, Any] = {"schema": schema, "codec": codec, "tensors": tensors, **made, "bytes": data}
    yield Record(name, "delta", {**given, "values": codecs.decode_delta(data, schema, codec, tensors)})


# ------------------------------------------------------------------------------- the model


def integers() -> Iterator[Record]:
    """Coded integers with what the golden ones lack: shifts, low bits, sections and blocks."""
    plain = np.zeros(2048, np.int32)
    plain[[0, 3, 4, 90, 411, 700, 1023, 1500, 2046]] = [1, -3, 2, 1, -1, 3, -2, 1, 2]
    yield _coded("integers-one-section", plain)
    yield _coded("integers-shift", plain * 4)
    far = np.zeros(2048, np.int32)
    far[[5, 900, 1500, 2047]] = [1, -1, 1, 70_000]
    yield _coded("integers-far-apart-and-large", far)
    yield _coded("integers-sections", np.concatenate([plain, far, np.zeros(2048, np.int32), plain[:77] * 16]))
    two = np.zeros(131_072 + 3000, np.int32)
    two[:2048], two[70_000], two[131_072 - 1], two[131_072] = plain * 8, -9, 5, -(2**31) + 1
    two[131_072 + 2048 :] = -np.arange(952) % 3
    yield _coded("integers-two-blocks", two)
    yield _coded("integers-none", np.zeros(10, np.int32))


def _coded(name: str, values: npt.NDArray[np.int32]) -> Record:
    data = steps.encode_integers(values)
    assert np.array_equal(steps.decode_integers(memoryview(data), values.size), values)
    where = np.flatnonzero(values)
    pairs = [[int(place), int(values[place])] for place in where]
    return Record(name, "integers", {"size": values.size, "bytes": data, "values": pairs})


def model() -> Iterator[Record]:
    """Lists of frames, merged steps with their digests, the log of releases."""
    listed = {
        "long": (
            FrameInfo(90, 1, 500, 1),
            FrameInfo(90, 40, 9000, 3),
            FrameInfo(88, 31, 70, 1),
            FrameInfo(50, 0, 70_000, 2),
        ),
        "short": (FrameInfo(7, 30, 127, 1), FrameInfo(7, 1, 128, 1), FrameInfo(0, 0, 1, 1)),
        "large": (FrameInfo(2**40, 0, 2**40, 2**20),),
        "none": (),
    }
    for name, frame in listed.items():
        yield Record(
            f"offers-{name}", "offers", {"bytes": offers.pack(frame), "frames": [list(each) for each in frame]}
        )
    small = Schema([Tensor("w", (3, 2), "float32", "trained"), Tensor("steps", (), "int64", "frozen")])
    state = State(small, np.array([0, 1, -1, 2**20, -(2**30), 7], np.int32), -24, small.freeze({"steps": np.array(9)}))
    first, second = np.array([1, 0, 0, -5, 0, 0], np.int32), np.array([-1, 3, 0, 2, 2**20, 0], np.int32)
    merged = lineage.merge([first, second])
    one = state.advance(first)
    assert one.advance(second).digest() == state.advance(merged).digest()
    yield Record(
        "steps-merged",
        "steps",
        {
            "schema": small,
            "schema-hash": small.hash,
            "exponent": -24,
            "frozen": state.frozen,
            "state": state.integers,
            "digest": state.digest(),
            "step-1": lineage.encode_step(first, -24),
            "digest-1": one.digest(),
            "step-2": lineage.encode_step(second, -24),
            "digest-2": one.advance(second).digest(),
            "merged": lineage.encode_step(merged, -24),
            "snapshot-2": lineage.encode_snapshot(one.advance(second)),
        },
    )
    zero = State(_ONE, np.zeros(400, np.int32), -24, b"")
    yield Record(
        "snapshot-filling", "read", {"bytes": lineage.encode_snapshot(zero), "schema": _ONE, "digest": zero.digest()}
    )
    log = b""
    for version, digest in ((1, STATE.digest()), (2, STATE.digest()[::-1])):
        after = lineage.logged(log, 3, version, digest)
        given = {"before": log, "generation": 3, "version": version, "digest": digest, "log": after}
        yield Record(f"log-{version}", "log", given)
        log = after


# --------------------------------------------------------------------------- a device's part


def names() -> Iterator[Record]:
    """Slots, who takes part, turns, cuts."""
    for device in ("pump-17", "a", "x" * 64, "AA-BB-CC-DD-EE-FF"):
        yield Record(f"slot-{device[:20]}", "slot", {"device": device, "slot": topics.slot(device)})
    for device, version in (("pump-17", 20), ("a", 20), ("a", 2**40)):
        said = f"{ID.hex()}/1/{version}/{device}"
        share = int.from_bytes(hashlib.sha256(said.encode()).digest()[:8]) / 2**64
        assert participation.takes_part(device, ID, 1, version, min(1.0, share + 1e-9))
        assert not participation.takes_part(device, ID, 1, version, max(0.0, share - 1e-9))
        given: dict[str, Any] = {"device": device, "lineage": ID, "generation": 1, "version": version, "hashed": said}
        yield Record(
            f"share-{device}-{version}", "share", {**given, "hash": hashlib.sha256(said.encode()).digest()[:8]}
        )
    for rate, devices, size, count in ((8e6, 50, 4000, 4), (8e6, 0, 4000, 4), (0, 50, 4000, 4), (1e9, 2, 100, 2)):
        given = {"rate": rate, "devices": devices, "bytes": size, "messages": count}
        yield Record(
            f"spread-{rate:g}-{devices}", "spread", {**given, "seconds": sharing.spread(rate, devices, size, count)}
        )
    for size, chunk in ((1000, 256), (1024, 256), (1025, 256), (1, 256), (0, 256), (40_000_000, 262_144)):
        count = chunks.count(size, chunk)
        each = chunks.part_size(size, count)
        given = {"size": size, "chunk": chunk, "parts": chunks.count(size, each), "each": each}
        yield Record(f"cut-{size}-{chunk}", "cut", {**given, "last": size - each * (chunks.count(size, each) - 1)})


def encoders() -> Iterator[Record]:
    """The default codec with error feedback, update by update, and int8."""
    noise = np.random.Philox(key=2)

    def drawn(size: int) -> npt.NDArray[np.float64]:
        """Between −1 and 1, from bits that every version of NumPy makes alike."""
        return (noise.random_raw(size) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1

    worlds: dict[str, tuple[Schema, Callable[[int], npt.NDArray[np.float64]]]] = {
        "uq": (_BOTH, lambda _: drawn(_BOTH.size) ** 9),
        "uq-small-alone": (_SMALL, lambda _: drawn(_SMALL.size)),
        "uq-all-alike": (_ONE, lambda _: np.sign(drawn(_ONE.size)) / 4),
        "uq-zeros": (_ONE, lambda _: np.zeros(_ONE.size)),
        "uq-clipped": (_ONE, lambda number: drawn(_ONE.size) ** 3 * 0.25**number),
    }
    for name, (schema, draw) in worlds.items():
        left: bytes | None = None
        for number in range(3):
            delta = np.asarray(draw(number)).astype(np.float32)
            before = residual.unpack(left, ID, schema) if left else None
            coded, (left,) = encode(delta[None], "uq:4|rice", ID, schema, feedback=True, left=[left], seeds=[0])
            assert left is not None
            after = residual.unpack(left, ID, schema)
            assert after is not None
            yield Record(
                f"{name}-{number + 1}",
                "encode",
                {
                    "schema": schema,
                    "codec": "uq:4|rice",
                    "input": delta,
                    "left": np.zeros(schema.size, np.float32) if before is None else before.values,
                    "norms": [] if before is None else list(before.norms),
                    "bytes": coded.body(0),
                    "values": codecs.decode_delta(coded.body(0), schema, "uq:4|rice"),
                    "after": after.values,
                },
            )
    delta = (drawn(_ONE.size) * 2.0**-7).astype(np.float32)
    body = codecs.encode_delta(delta, _ONE, "int8:256")
    given = {"schema": _ONE, "codec": "int8:256", "input": delta, "bytes": body}
    yield Record("int8-two-blocks", "delta", {**given, "values": codecs.decode_delta(body, _ONE, "int8:256")})


# ------------------------------------------------------------------------------------ keys


def keys() -> Iterator[Record]:
    """Signatures, succession and seals, by keys that are known."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    old = signing.PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    new = signing.PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64))))
    link = envelopes.sign_succession(
        old, Succession(federation="pumps", number=1, key=new.public.raw, since=1_767_225_600.0)
    )
    announced: Announcement = ANNOUNCEMENT
    envelope = envelopes.sign_announcement(new, "pumps", announced, [link])
    inner, _ = messages.decode(messages.Envelope, envelope)
    for name, key, purpose, data, carried in (
        ("succession", old, signing.SUCCESSION, messages.decode(messages.Envelope, link)[0], link),
        ("announcement", new, signing.ANNOUNCEMENT, inner, envelope),
    ):
        ((_, signature),) = data.signatures
        given: dict[str, Any] = {
            "seed": key.seed,
            "key": key.public.encoded,
            "key-id": key.public.id,
            "purpose": purpose,
        }
        covered = signing.signed_bytes(purpose, "pumps", data.body)
        yield Record(
            f"signed-{name}",
            "verify",
            {**given, "context": "pumps", "signed": covered, "signature": signature, "bytes": carried},
        )
    hello = frames.encode(Hello(state=DeviceState.READY, outbox=5, first=2, next=4))
    receipt = frames.encode(Receipt(outbox=5, hi=3))
    for name, signer, purpose, head in (
        ("hello", old, signing.DEVICE, hello),
        ("receipt", new, signing.RECEIPT, receipt),
    ):
        covered = signing.signed_bytes(purpose, "pumps/pump-17", head)
        signature = signer.sign(purpose, "pumps/pump-17", head)
        given = {"seed": signer.seed, "key": signer.public.encoded, "purpose": purpose, "context": "pumps/pump-17"}
        yield Record(
            f"signed-{name}", "verify", {**given, "signed": covered, "signature": signature, "bytes": head + signature}
        )
    device = signing.PrivateKey(ec.derive_private_key(int.from_bytes(bytes(range(32))), ec.SECP256R1()))
    signature = bytes.fromhex(P256_SIGNATURE)
    covered = signing.signed_bytes(signing.DEVICE, "pumps/pump-17", hello)
    assert device.public.verifies(signature, signing.DEVICE, "pumps/pump-17", hello)
    given = {"key": device.public.encoded, "purpose": signing.DEVICE, "context": "pumps/pump-17"}
    yield Record(
        "signed-hello-p256", "verify", {**given, "signed": covered, "signature": signature, "bytes": hello + signature}
    )
    secret = signing.MacKey(bytes(range(32)))
    signature = secret.sign(signing.DEVICE, "pumps/pump-17", hello)
    given = {"secret": bytes(range(32)), "purpose": signing.DEVICE, "context": "pumps/pump-17"}
    yield Record(
        "signed-hello-hmac", "verify", {**given, "signed": covered, "signature": signature, "bytes": hello + signature}
    )
    for number, each in enumerate(json.loads(SEALED.read_text()), 1):
        yield Record(
            f"sealed-{number}", "open", {key: each[key] for key in ("private", "public", "info", "body", "sealed")}
        )


def records() -> list[Record]:
    """All of them."""
    return [*golden(), *integers(), *model(), *names(), *encoders(), *keys()]


def main() -> None:
    """Write both files."""
    TEXT.write_text(text(records()), encoding="utf-8")
    HEADER.write_text(header(records()), encoding="utf-8")


if __name__ == "__main__":
    main()
