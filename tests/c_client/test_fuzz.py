"""What comes over the wire or out of flash may be anything: no sanitizer finds a fault in the C client."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from midge.wire import frames, lineage, messages, steps
from midge.wire.schema import Schema, Tensor
from tests.c_client.compiled import HERE, SANITIZED, compiled
from tests.wire import test_golden as golden

ROUNDS = 150_000


def packet(topic: str, payload: bytes) -> bytes:
    """An MQTT PUBLISH at QoS 1."""
    name = topic.encode()
    rest = struct.pack(">H", len(name)) + name + b"\0\7" + payload
    length = bytearray()
    left = len(rest)
    while True:
        length.append(left & 0x7F | (0x80 if left > 0x7F else 0))
        left >>= 7
        if not left:
            return b"\x32" + bytes(length) + rest


def seeds() -> Iterator[bytes]:
    """The golden vectors, and what goes further: chunks of what a device fetches, packets, a snapshot."""
    rng = np.random.default_rng(2)
    schema = Schema([Tensor("layers.0.weight", (5, 100), "float32", "trained"), Tensor("t", (4,), "float32", "frozen")])
    state = lineage.State(schema, rng.integers(-9, 9, 500).astype(np.int32), -20, bytes(16))
    snapshot = lineage.encode_snapshot(state)
    coded = steps.encode_step(rng.integers(-2, 3, 1000).astype(np.int32), -20)
    yield snapshot
    yield coded
    yield steps.encode_integers(rng.integers(-1, 2, 4096).astype(np.int32))
    for index in (0, 1, 3):  # of a frame of 9,024 bytes
        header = messages.Part(
            lineage=golden.ID, generation=0, version=20, span=4, part=index, parts=12, sha256=golden.SHA
        )
        part = frames.encode(header, bytes(752))
        yield part
        yield packet(f"midge/1/pumps/model/train/20/4-{index}", part)
    for name, topic in (
        ("aggregator-status", "aggregator"),
        ("announcement", "model/train"),
        ("receipt", "receipt/pump-17"),
        ("hello-question", "status/pump-17"),
    ):
        yield packet(f"midge/1/pumps/{topic}", (golden.FOLDER / f"v1-{name}.bin").read_bytes())
    announcement = golden.ANNOUNCEMENT.model_copy(
        update={"lineage": golden.ID, "version": 21, "moments": (), "frames": (messages.FrameInfo(21, 0, 900, 2),)}
    )
    yield messages.encode_announcement(announcement)


def test_no_input_makes_a_fault(tmp_path: Path) -> None:
    program = compiled(tmp_path / "fuzz", [HERE / "fuzz.c"], *SANITIZED)
    files = [*golden.FOLDER.glob("v1-*.bin")]
    for number, seed in enumerate(seeds()):
        files.append(tmp_path / f"seed-{number}")
        files[-1].write_bytes(seed)
    command = [str(program), str(ROUNDS), "1", *map(str, sorted(files))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ROUNDS} inputs")
