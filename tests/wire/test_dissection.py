"""`midge decode`: a payload taken apart, whatever it is."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.__main__ import main
from midge.wire import chunks, envelopes, frames, signing
from midge.wire.dissection import dissect
from midge.wire.kinds import KINDS
from midge.wire.messages import Chunk, DeviceState, Fetch, Hello, Part, Update
from midge.wire.topic_hints import hint
from tests.wire.test_golden import ANNOUNCEMENT, EARLIER, FOLDER, ID, VECTORS

MESSAGES = [name for name in (*VECTORS, *EARLIER) if not name.startswith(("delta-", "schema"))]


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_is_told_with_all_that_it_holds(name: str) -> None:
    found = dissect((FOLDER / f"v1-{name}.bin").read_bytes())
    assert found.kind and found.what
    expected = json.loads((FOLDER / f"v1-{name}.json").read_text())
    if found.kind == "envelope":
        found = found.inside[0]
    if found.kind not in ("snapshot", "step"):
        held = expected[0] if isinstance(expected, list) else expected
        said = found.plain()
        for field, value in held.items():
            if field not in ("kind", "plan", "participation", "moments") and field in said.get("fields", {}):
                assert said["fields"][field] == value or field in ("settled", "frames")
    # Those of text were written with checksums that fit nothing; the others hold.
    assert found.ok or "sha256" in found.wrong[0] or "size" in found.wrong[0]


def test_every_kind_of_a_device_and_of_the_aggregator_is_known() -> None:
    from midge.wire.messages.decoding import _TO_AGGREGATOR

    assert set(_TO_AGGREGATOR) <= set(KINDS)
    assert all(model.model_fields["kind"].annotation for model in KINDS.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_apart(data: bytes) -> None:
    json.dumps(dissect(data).plain())


@given(
    st.dictionaries(
        st.sampled_from(("kind", "body", "size", "outbox", "names", "signatures", "chain", "schema", "exponent", "x")),
        st.none() | st.integers(-5, 2**40) | st.binary(max_size=40) | st.sampled_from(sorted(KINDS)) | st.floats(),
        max_size=5,
    ),
    st.binary(max_size=100),
)
def test_any_frame_is_taken_apart(header: dict[str, Any], body: bytes) -> None:
    json.dumps(dissect(frames.encode(header, body)).plain(), allow_nan=False)


def test_few_bytes_that_claim_many_values_cost_nothing() -> None:
    found = dissect(frames.encode({"kind": "step", "exponent": 0, "size": 2**31 - 1}, bytes(100)))
    assert found.body == {"values": 2**31 - 1, "unpacked": False}


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b'{"state": "ready"}', "JSON"),
        (b"temperature=21.5", "text"),
        (b"\x30\x06\x00\x04a/b\x01", "MQTT packet"),
        (len(b"\x81\x00\x07").to_bytes(2, "big") + b"\x81\x00\x07", "big-endian"),
        (b"\xff\xfe\xfd", "no frame begins so"),
    ],
)
def test_what_is_not_midges_is_told_so(payload: bytes, word: str) -> None:
    found = dissect(payload)
    assert not found.ok and word in found.what


def test_an_empty_payload_is_a_cleared_topic() -> None:
    assert dissect(b"").ok and "cleared" in dissect(b"").what


def test_what_a_later_version_adds_is_passed_over_and_named() -> None:
    found = dissect(frames.encode({"kind": "hello", "state": "ready", "outbox": 1, "zest": 1}))
    assert found.ok and found.unknown == ["zest"]
    packed = frames.pack({0: 7, 36: "ready", 13: 1, 9999: 3})
    found = dissect(len(packed).to_bytes(2, "little") + packed)
    assert found.ok and found.unknown == ["9999"]
    assert not dissect(frames.encode({"kind": "zest"})).ok


def test_what_is_wrong_is_said_beside_what_could_be_read() -> None:
    found = dissect(frames.encode({"kind": "hello", "state": "ready", "outbox": 1.0}))
    assert not found.ok and found.wrong == ["outbox: Input should be a valid integer"]
    assert found.fields["state"] == "ready"
    body = b"12345"
    update = Update(
        outbox=1,
        first=1,
        seq=1,
        lineage=ID,
        generation=0,
        base=0,
        codec="float32",
        size=5,
        sha256=chunks.checksum(body),
    )
    assert dissect(frames.encode(update, body)).ok
    assert dissect(frames.encode(update, b"12346")).wrong == ["sha256 is not that of the body"]
    assert dissect(frames.encode(update, b"1234")).wrong == ["the body has 4 bytes, and size says 5"]


def test_a_part_that_is_the_whole_frame_is_looked_into() -> None:
    frame = (FOLDER / "v1-snapshot.bin").read_bytes()
    part = Part(lineage=ID, generation=0, version=1, span=0, part=0, parts=1, sha256=chunks.checksum(frame))
    found = dissect(frames.encode(part, frame))
    assert found.inside[0].kind == "snapshot" and found.inside[0].body["values"] == 24


def test_a_topic_says_what_belongs_there() -> None:
    hello = frames.encode(Hello(state=DeviceState.READY, outbox=1))
    assert dissect(hello, hint("midge/1/f/status/pump-17")).ok
    assert "belongs receipt" in dissect(hello, hint("midge/1/f/receipt/pump-17")).wrong[0]
    fetch = frames.encode(Fetch(lineage=ID, version=1, span=0, parts=(0,)))
    assert dissect(fetch, hint("a/b/c/f/update/09/pump-17")).wrong == ["there is no slot 09; that of pump-17 is 9"]
    assert not dissect(fetch, hint("house/kitchen")).ok


def test_signatures_are_verified_with_the_keys_that_are_given() -> None:
    pytest.importorskip("cryptography")
    key, other = signing.new_key(), signing.new_key()
    head = frames.encode(Hello(state=DeviceState.READY, outbox=1))
    signed = signing.sign_frame(key, signing.DEVICE, "f/d", head)
    assert "give --key" in dissect(signed).signature
    assert "give --topic" in dissect(signed, None, [key.public]).signature
    assert dissect(signed, hint("midge/1/f/status/d"), [other.public, key.public]).signature.startswith("valid")
    for topic, keys in (("midge/1/f/status/e", [key.public]), ("midge/1/f/status/d", [other.public])):
        assert not dissect(signed, hint(topic), keys).ok
    secret = signing.MacKey(bytes(range(32)))
    shared = signing.sign_frame(secret, signing.DEVICE, "f/d", head)
    assert dissect(shared, hint("midge/1/f/status/d"), [key.public, secret]).signature == "valid, by the shared secret"
    assert not dissect(shared, hint("midge/1/f/status/d"), [signing.MacKey(bytes(32))]).ok
    envelope = envelopes.sign_announcement(key, "pumps", ANNOUNCEMENT)
    assert dissect(envelope, None, [secret, key.public]).signature.startswith("valid")
    assert not dissect(envelope, None, [other.public]).ok


def test_the_command_reads_files_hex_and_what_mosquitto_sub_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = frames.encode(Chunk(outbox=1, first=1, seq=2, part=0), b"x")
    path = tmp_path / "payload"
    path.write_bytes(payload)
    assert main(["decode", str(path)]) == 0
    assert "chunk: a chunk of an offered update" in capsys.readouterr().out

    def given(text: str) -> list[str]:
        class Stdin:
            buffer = io.BytesIO(text.encode())

        monkeypatch.setattr("sys.stdin", Stdin)
        return ["decode", "-", "--json"]

    for text in (payload.hex(), payload.hex(" "), "\n".join(payload.hex()[at : at + 10] for at in range(0, 80, 10))):
        assert main(given(text)) == 0
        assert json.loads(capsys.readouterr().out)["messages"][0]["kind"] == "chunk"
    assert main(given(f"midge/1/f/update/9/pump-17 {payload.hex()}\nmidge/1/f/status/pump-17 \n")) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["topic"] for each in said["messages"]] == ["midge/1/f/update/9/pump-17", "midge/1/f/status/pump-17"]
    assert main(given("no frame")) == 1
    assert main(["decode", str(tmp_path / "none")]) == 2
