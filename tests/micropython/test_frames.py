"""What comes from an aggregator, as the MicroPython client reads it: headers, offers, snapshots, steps, digests."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.wire import frames, lineage, offers
from midge.wire.lineage import State
from midge.wire.schema import Schema, Tensor
from tests.micropython.board import ask
from tests.needs import micropython
from tests.wire.test_golden import FOLDER, SCHEMA, STATE

pytestmark = micropython
WIDE = Schema(
    [
        Tensor("layers.0.weight", (70, 60), "float32", "trained"),
        Tensor("input_mean", (60,), "float32", "frozen"),
        Tensor("layers.0.bias", (70,), "float32", "trained"),
        Tensor("own", (3,), "float32", "local"),
        Tensor("plant", (5,), "float32", "site"),
    ]
)
FROZEN = np.arange(60, dtype="<f4").tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def test_every_golden_payload_is_read_as_it_is_here(tmp_path: Path) -> None:
    payloads = [path.read_bytes() for path in sorted(FOLDER.glob("*.bin")) if "delta" not in path.name]
    payloads = [payload for payload in payloads if payload[:1] != b"\x96"]  # the schema, which is no frame
    assert len(payloads) > 30
    answer = ask("follow.py", {"headers": [payload.hex() for payload in payloads]}, tmp_path)
    for payload, (header, body, again) in zip(payloads, answer["headers"], strict=True):
        expected, rest = frames.decode(payload)
        assert header == _plain(expected)
        assert body == bytes(rest).hex()
        assert again


def test_bytes_that_are_no_msgpack_are_refused(tmp_path: Path) -> None:
    good = frames.pack({"a": [1, "two", b"three", {"b": None}]})
    bad = [good[:cut] for cut in range(len(good))]
    bad += [
        good + b"\0",
        b"\xc1",
        b"\xd4\x01\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 50 + b"\0",
    ]
    answer = ask("follow.py", {"refused": [data.hex() for data in bad]}, tmp_path)
    assert answer["refused"] == [None] * len(bad)


def test_offers_and_the_way_there(tmp_path: Path) -> None:
    there = [(9, 0, 9000, 9), (9, 1, 500, 1), (8, 4, 700, 2), (9, 40, 2000, 1), (4, 0, 8000, 8), (4, 0, 8000, 2)]
    packed = offers.pack(there).hex()
    asked = [
        (packed, 4, 9, 4096),
        (packed, None, 9, 4096),
        (packed, 7, 9, 400),
        (packed, None, 9, 999),
        (packed, 3, 8, 1024),
    ]
    answer = ask("follow.py", {"routes": asked}, tmp_path)["routes"]
    assert [sorted(map(tuple, found)) for found, _ in answer] == [sorted(there)] * len(asked)
    assert [way for _, way in answer] == [
        [[8, 4, 700, 2], [9, 1, 500, 1]],
        [[4, 0, 8000, 2], [8, 4, 700, 2], [9, 1, 500, 1]],
        None,  # of no part that this device takes
        None,
        [[4, 0, 8000, 8], [8, 4, 700, 2]],
    ]


def _steps(rng: np.random.Generator, size: int, count: int) -> list[npt.NDArray[np.int32]]:
    steps = []
    for number in range(count):
        step = np.zeros(size, np.int32)
        some = rng.random(size) < (0.02, 0.3, 1.0)[number % 3]
        step[some] = rng.integers(-(2**12), 2**12, int(some.sum())) << int(rng.integers(0, 6))
        steps.append(step)
    return steps


def test_snapshots_steps_and_merged_steps_lead_to_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for schema, frozen in ((SCHEMA, STATE.frozen), (WIDE, FROZEN)):
        state = State(schema, rng.integers(-(2**24), 2**24, schema.size).astype(np.int32), -20, frozen)
        asked, expected = [(0, lineage.encode_snapshot(state))], [state]
        steps = _steps(rng, schema.size, 6)
        for step in steps[:3]:
            state = state.advance(step)
            asked.append((1, lineage.encode_step(step, -20)))
            expected.append(state)
        merged = lineage.merge(steps[3:])
        expected.append(state.advance(merged))
        asked.append((3, lineage.encode_step(merged, -20)))
        small = lineage.on_grid(rng.normal(size=schema.size).astype(np.float32), schema, frozen, bits=6)
        expected.append(small)
        asked.append((0, lineage.encode_snapshot(small)))
        question = {"frames": [(span, frame.hex()) for span, frame in asked]}
        for state, (digest, right, values) in zip(
            expected, ask("follow.py", question, tmp_path)["frames"], strict=True
        ):
            assert digest == state.digest().hex()
            assert right
            assert np.array_equal(np.array(values, np.float32), state.values())


def test_a_damaged_frame_is_no_version(tmp_path: Path) -> None:
    """Whatever bytes come, the device goes on with a snapshot: it neither ends nor believes them."""
    rng = np.random.default_rng(5)
    state = State(WIDE, rng.integers(-(2**20), 2**20, WIDE.size).astype(np.int32), -18, FROZEN)
    whole = lineage.encode_snapshot(state)
    asked = [(0, whole.hex())]
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(3):
            broken[int(rng.integers(0, len(broken)))] = int(rng.integers(0, 256))
        asked.append((0, bytes(broken[: int(rng.integers(1, len(broken) + 1))]).hex()))
    other = lineage.encode_step(np.ones(WIDE.size, np.int32), -17)
    asked += [(0, whole.hex()), (1, other.hex()), (0, whole.hex())]
    found = ask("follow.py", {"frames": asked}, tmp_path)["frames"]
    good = state.digest().hex()
    assert [digest for digest, _, _ in found].count(good) == 3
    assert all(lost for digest, lost, _ in found if digest != good)
