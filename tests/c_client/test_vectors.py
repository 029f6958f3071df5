"""The C client reads and writes the golden vectors, and encodes updates to the bytes that Python makes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from midge.iot_client.training import update_encoder
from midge.wire import codecs, frames, lineage, messages, offers, steps, topics
from midge.wire.participation import takes_part
from midge.wire.schema import Schema, Tensor
from tests.c_client.compiled import HERE, SANITIZED, Runner, compiled
from tests.wire import test_golden as golden

NAMES = sorted(path.stem.removeprefix("v1-") for path in golden.FOLDER.glob("v1-*.bin") if "-delta-" not in path.stem)

PACKET = 4096
"""Bytes of the receive buffer in `runner.c`."""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("runner")
    with Runner(compiled(folder / "runner", [HERE / "runner.c"], *SANITIZED)) as found:
        yield found


def vector(name: str) -> bytes:
    return (golden.FOLDER / f"v1-{name}.bin").read_bytes()


def values(name: str) -> Any:
    return json.loads((golden.FOLDER / f"v1-{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_each_header_is_read_and_written_again_to_the_same_bytes(runner: Runner, name: str) -> None:
    assert runner.ask("transcode", vector(name)) == vector(name).hex()


@pytest.mark.parametrize("form", ["", "-named"])
def test_what_an_aggregator_says_is_read(runner: Runner, form: str) -> None:
    expected = values(f"announcement{form}")
    found = json.loads(runner.ask("announcement", vector(f"announcement{form}")))
    assert found.pop("read")
    plan = found.pop("plan")
    assert found == {name: expected[name] for name in found}
    assert plan == {name: expected["plan"][name] for name in plan}
    assert json.loads(runner.ask("announced", vector("announcement"))) == [
        [frame[0], frame[1], min(frame[2], 2**32 - 1), frame[3]] for frame in values("announcement")["frames"]
    ]
    status, (said, _) = (
        json.loads(runner.ask("status", vector(f"aggregator-status{form}"))),
        values("aggregator-status"),
    )
    assert (status["state"], status["boot"], status["why"]) == (said["state"], said["boot"], said["why"])
    receipt, (said, _) = json.loads(runner.ask("receipt", vector(f"receipt{form}"))), values("receipt")
    assert (receipt["outbox"], receipt["hi"], receipt["grants"]) == (said["outbox"], said["hi"], len(said["grants"]))
    for each, wanted in zip(receipt["settled"], said["settled"], strict=True):
        assert each.pop("final") == messages.Verdict(wanted["verdict"]).final
        assert each == {name: wanted[name] for name in each}
    part, (said, body) = json.loads(runner.ask("part", vector(f"part{form}"))), values("part")
    assert part.pop("body") == body
    assert part.pop("sha256") == said["sha256"][:32]
    assert part == {name: said[name] for name in part if name != "read"} | {"read": True}


def test_tokens_questions_and_troubles_are_read(runner: Runner) -> None:
    assert json.loads(runner.ask("status", vector("aggregator-token")))["token"] == 1_800_000_000_000
    assert json.loads(runner.ask("receipt", vector("receipt-token")))["token"] == 1_800_000_000_000
    assert json.loads(runner.ask("hello", vector("hello-question")))["number"] == 2**62
    assert json.loads(runner.ask("hello", vector("hello-answer")))["to"] == 2**62
    trouble = frames.encode({"kind": "trouble", "why": "slot '0' is not that of 'pump-17'"})
    assert json.loads(runner.ask("receipt", trouble))["why"] == "slot '0' is not that of 'pump-17'"


def test_a_status_that_is_cut_short_still_says_what_a_device_needs(runner: Runner) -> None:
    full = vector("aggregator-status")
    assert json.loads(runner.ask("status", full[:45]))["boot"] == 77
    assert json.loads(runner.ask("status", full[:45]))["state"] == "paused"


def test_what_a_device_says_is_made_to_the_same_bytes(runner: Runner) -> None:
    assert runner.ask("say", "joining", 5, 2**62) == vector("hello-question").hex()
    assert runner.ask("say", "lost", 0, 0) == vector("hello-of-defaults").hex()
    expected = frames.encode(messages.Fetch(lineage=golden.ID, version=12, span=4, parts=(0, 3)))
    assert runner.ask("say", "fetch", 1, 0) == expected.hex()


def test_a_greeting_says_what_fits_the_receive_buffer(runner: Runner) -> None:
    """The largest body, with all that may stand before it in a packet."""
    greeting = bytes.fromhex(runner.ask("say", "ready", 1, 0))
    header = frames.unpack(greeting[2:], pairs=dict)
    largest = header.get(113)  # the number of `largest`
    part = messages.Part(
        lineage=golden.ID, generation=2**31, version=2**32 - 1, span=2**31, part=255, parts=256, sha256=golden.SHA[:16]
    )
    topic = topics.Topics("pumps").part(2**32 - 1, 2**31, 255)
    assert 3 + 2 + len(topic) + 2 + len(frames.encode(part)) + largest <= PACKET


def test_states_and_steps_are_taken_in(runner: Runner) -> None:
    for name in ("snapshot", "snapshot-named"):
        found, expected = json.loads(runner.ask("snapshot", vector(name))), values("snapshot")
        assert found.pop("frozen") == golden.STATE.frozen.hex()
        expected["schema_hash"] = golden.SCHEMA.hash.hex()
        assert found == {key: expected[key] for key in found}
    for name in ("step", "step-named"):
        found = json.loads(runner.ask("step", golden.STEP.size, vector(name)))
        assert found["integers"] == golden.STEP.tolist()


def test_tensors_of_a_site_are_not_the_clients(runner: Runner) -> None:
    """As local ones: it takes the model without them."""
    schema = Schema([Tensor("plant", (5,), "float32", "site"), *golden.SCHEMA.tensors])
    state = replace(golden.STATE, schema=schema)
    found = json.loads(runner.ask("snapshot", lineage.encode_snapshot(state)))
    assert found["integers"] == golden.STATE.integers.tolist()
    assert found["digest"] == state.digest().hex()


@pytest.mark.parametrize("name", ["float32", "int8", "int8-partial", "uq"])
def test_deltas_are_encoded_to_the_same_bytes(runner: Runner, name: str) -> None:
    large = name == "uq"
    schema, delta = (golden.LARGE, golden.LARGE_DELTA) if large else (golden.SCHEMA, golden.DELTA)
    codec = {"float32": "float32", "int8": "int8:16", "int8-partial": "int8", "uq": "uq:3|rice"}[name]
    listed = ",1,5," if name == "int8-partial" else "-"
    assert runner.ask("schema", frames.pack(schema.packed()), listed) == "ok"
    found = json.loads(runner.ask("store", codec, delta.astype("<f4").tobytes()))
    assert found["body"] == vector(f"delta-{name}").hex()


SHAPES = {
    "one small tensor": (100,),
    "one large tensor": (1500,),
    "just small": (256,),
    "just large": (257,),
    "a perceptron": (16 * 40, 16, 3 * 16, 3),
    "large ones between small ones": (3, 900, 0, 20, 300, 1),
}


def schema_of(sizes: tuple[int, ...]) -> Schema:
    return Schema([Tensor(f"t{index}", (size,), "float32", "trained") for index, size in enumerate(sizes)])


def kinds(rng: np.random.Generator, size: int) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Vectors of which some are rare in life."""
    normal = rng.standard_normal(size)
    yield (normal * 0.01).astype(np.float32)
    yield (normal**5 * 1e-3).astype(np.float32)
    yield np.full(size, 0.25, np.float32)
    yield np.zeros(size, np.float32)
    yield np.where(rng.random(size) < 0.002, normal * 1e6, 0).astype(np.float32)
    yield (normal * 1e-38).astype(np.float32)
    yield (np.rint(normal * 2) / 2).astype(np.float32)
    yield (normal * 1e30).astype(np.float32)


@pytest.mark.parametrize("codec", ["uq:4|rice", "uq:2.55|rice", "uq:9|rice", "int8:256", "int8:100", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_has_the_bytes_of_pythons_encoder(runner: Runner, shape: str, codec: str) -> None:
    schema, rng = schema_of(SHAPES[shape]), np.random.default_rng(5)
    for delta in kinds(rng, schema.size):
        assert runner.ask("schema", frames.pack(schema.packed()), "-") == "ok"
        found = json.loads(runner.ask("store", codec, delta.astype("<f4").tobytes()))
        assert found["result"] == 0
        assert found["body"] == codecs.encode_delta(delta, schema, codec).hex()


def test_what_is_left_out_goes_into_the_next_update_as_in_python(runner: Runner) -> None:
    schema, rng, left = schema_of((700, 30)), np.random.default_rng(6), None
    assert runner.ask("schema", frames.pack(schema.packed()), "-") == "ok"
    assert runner.ask("feedback", 1) == "ok"
    for number in range(14):
        delta = (rng.standard_normal(schema.size) ** 3 * (5.0 if number < 4 else 0.1)).astype(np.float32)
        coded, (left,) = update_encoder.encode(
            delta[None], "uq:4|rice", bytes(16), schema, feedback=True, left=[left], seeds=[0]
        )
        found = json.loads(runner.ask("store", "uq:4|rice", delta.astype("<f4").tobytes()))
        assert found["body"] == coded.body(0).hex(), f"update {number}"
        assert left is not None
        assert found["left"] == bytes(frames.decode(left)[1]).hex(), f"update {number}"


def test_a_codec_that_is_not_known_is_answered_with_int8(runner: Runner) -> None:
    schema = schema_of((300,))
    for codec in ("eden:1", "uq:4", "int8:4", "uq:x|rice", "uq:|rice", "int8:"):
        assert runner.ask("schema", frames.pack(schema.packed()), "-") == "ok"
        found = json.loads(runner.ask("store", codec, np.ones(300, "<f4").tobytes()))
        assert found["codec"] == "int8:256"


def test_a_training_that_diverged_is_not_stored(runner: Runner) -> None:
    for wrong in (np.nan, np.inf):
        assert runner.ask("schema", frames.pack(schema_of((300,)).packed()), "-") == "ok"
        found = json.loads(runner.ask("store", "int8:256", np.full(300, wrong, "<f4").tobytes()))
        assert (found["result"], found["body"]) == (2, "")


def test_coded_integers_of_all_sorts_are_read(runner: Runner) -> None:
    """Shifts and parameters that are not 0, several sections, two blocks."""
    rng = np.random.default_rng(1)
    integers = np.zeros(131072 + 5000, np.int32)
    integers[:2048] = 4 * rng.integers(-3, 4, 2048)
    integers[2048 + rng.integers(0, 2048, 12)] = rng.integers(1, 2000, 12)
    integers[131072 + rng.integers(0, 5000, 300)] = -rng.integers(1, 90, 300)
    for some in (integers, integers[:1], integers[:0], integers[:3000] * 100_000):
        found = runner.ask("coded", some.size, steps.encode_integers(some))
        assert found == hashlib.sha256(some.astype("<i4").tobytes()).hexdigest()
    coded = steps.encode_integers(integers)
    assert runner.ask("coded", integers.size, coded + b"\0") == "bad"
    assert runner.ask("coded", integers.size, coded[:-1]) == "bad"


def test_names_lists_and_shares_are_as_the_aggregator_reckons_them(runner: Runner) -> None:
    listed = ((90, 1, 500, 1), (90, 40, 9000, 3), (88, 31, 70, 1), (50, 0, 70000, 2))
    assert json.loads(runner.ask("offers", offers.pack(listed))) == [list(each) for each in listed]
    assert int(runner.ask("slot", "pump-17")) == topics.slot("pump-17")
    for version in range(40):
        expected = takes_part("pump-17", golden.ID, 1, version, 0.5)
        assert runner.ask("share", golden.ID, 1, version, 0.5) == str(int(expected))


def test_vectors_were_found() -> None:
    assert len(NAMES) > 30
