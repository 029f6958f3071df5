"""Whatever is dropped and names a device is told to it, seldom, and within what a device may cost.

`DEVIATIONS` are mistakes that firmware was seen to make; each was once dropped without a word to who had made it.
"""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from midge.aggregator.ingress.authentication import Credentials, DeviceKeys
from midge.aggregator.ingress.rate_limits import TROUBLE, Admission, IngressLimits
from midge.aggregator.ingress.troubles import Troubles
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.broker.mqtt.connection import Delivery
from midge.iot_client.session.trust import Trust
from midge.wire import frames, messages, signing
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, DeviceState, Fetch, Hello, Receipt, Report, Statistics, Trouble
from midge.wire.signing import BadSignature
from tests.aggregator.rig import TOPICS, answers
from tests.security.test_budgets import Life

BODY = b"\0" * 16


def framed(header: Any, body: bytes = b"", order: str = "<") -> bytes:
    packed: bytes = msgpack.packb(header)
    return struct.pack(order + "H", len(packed)) + packed + body


def update(life: Life, **fields: Any) -> dict[str, Any]:
    """The header of an update as other languages write it: names as text, and each field may be wrong."""
    header = {
        "kind": "update",
        "outbox": 5,
        "first": 1,
        "seq": 1,
        "lineage": life.core.lineage,
        "generation": life.core.generation,
        "base": life.core.version,
        "codec": "float32",
        "size": len(BODY),
        "sha256": hashlib.sha256(BODY).digest()[:16],
        "examples": 3,
        **fields,
    }
    return {name: value for name, value in header.items() if value is not None}


def wrong(**fields: Any) -> Callable[[Life], bytes]:
    return lambda life: framed(update(life, **fields), BODY)


def other(kind: str, **fields: Any) -> Callable[[Life], bytes]:
    return lambda life: framed({"kind": kind, "lineage": life.core.lineage, **fields})


DEVIATIONS: dict[str, Callable[[Life], bytes]] = {
    "a float for an int": wrong(examples=3.0),
    "a float for seq": wrong(seq=1.0),
    "seq 0": wrong(seq=0),
    "no seq": wrong(seq=None),
    "no outbox": wrong(outbox=None),
    "first 0": wrong(first=0),
    "no lineage": wrong(lineage=None),
    "a lineage as text": wrong(lineage="0123456789abcdef"),
    "a short lineage": wrong(lineage=b"short"),
    "no codec": wrong(codec=None),
    "a codec as a number": wrong(codec=7),
    "no base": wrong(base=None),
    "base -1": wrong(base=-1),
    "no size": wrong(size=None),
    "no checksum": wrong(sha256=None),
    "a short checksum": wrong(sha256=b"12345678"),
    "a checksum as text": wrong(sha256="0" * 16),
    "an outbox of 64 bits": wrong(outbox=2**63),
    "a negative outbox": wrong(outbox=-1),
    "parts 0": wrong(kind="offer", parts=0),
    "metrics that are not numbers": wrong(metrics={"loss": "low"}),
    "metrics that are not finite": wrong(metrics={"loss": float("nan")}),
    "too many metrics": wrong(metrics={f"m{n}": 1.0 for n in range(33)}),
    "negative seconds": wrong(seconds=-1.0),
    "an unknown kind": wrong(kind="upload"),
    "a kind as an unknown number": wrong(kind=99),
    "no kind": wrong(kind=None),
    "a header that is an array": lambda _: framed([1, 2, 3]),
    "a header that is no msgpack": lambda _: b"\x03\0\xc1\xc1\xc1",
    "bytes behind the header's value": lambda _: b"\x02\0\x80\x80",
    "a big-endian length": lambda life: framed(update(life), BODY, ">"),
    "JSON": lambda _: b'{"kind": "update", "seq": 1}',
    "nothing": lambda _: b"",
    "one byte, as what is too large is cut to": lambda _: b"x",
    "a header that is cut": lambda life: framed(update(life))[:20],
    "a name twice": lambda life: framed(update(life)).replace(b"\xa5first", b"\xa5" + b"seq\0\0")[:-1] + b"",
    "a chunk of nothing": other("chunk", outbox=5, first=1, seq=1, part=0),
    "a chunk without part": other("chunk", outbox=5, first=1, seq=1),
    "a fetch of nothing": other("fetch", version=1, span=0, parts=[]),
    "a fetch of a frame that is not there": other("fetch", version=77, span=3, parts=[0]),
    "a fetch of another lineage": other("fetch", lineage=b"x" * 16, version=1, span=0, parts=[0]),
    "statistics that are not asked for": other("statistics", names=[]),
    "statistics of another lineage": other("statistics", lineage=b"x" * 16, names=[]),
    "statistics without a body": other("statistics", names=[["x", 4]]),
    "a greeting on the update topic": other("hello", state="ready", outbox=5),
    "a receipt": other("receipt", outbox=5, hi=1),
}


def told(life: Life, *deliveries: Delivery, now: float = 1.0) -> list[Receipt | Trouble]:
    before = len(life.posts)
    life.federation.process(list(deliveries), now)
    return answers(life.posts[before:])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(tmp_path_factory.mktemp("life"), limits=IngressLimits(strikes=None))


@pytest.mark.parametrize("what", DEVIATIONS)
def test_a_deviation_is_answered(plain: Life, what: str) -> None:
    name = "probe-" + hashlib.sha256(what.encode()).hexdigest()[:8]
    posts = len(plain.posts)
    (answer,) = told(plain, Delivery(TOPICS.update(name), DEVIATIONS[what](plain), 1, retain=False))
    assert isinstance(answer, Trouble)
    assert answer.why
    assert answer.why.isprintable()
    assert {post.topic for post in plain.posts[posts:] if "/receipt/" in post.topic} == {TOPICS.receipt(name)}


@pytest.mark.parametrize(
    ("topic", "payload", "says"),
    [
        (TOPICS.status("p"), framed({"kind": "hello", "state": "here", "outbox": 5}), "state"),
        (TOPICS.status("p"), framed({"kind": "hello", "state": "ready", "outbox": 5.0}), "outbox"),
        (TOPICS.report("p"), b"{}", "header"),
        (TOPICS.report("p"), framed({"kind": "hello"}), "report"),
        (f"{TOPICS.prefix}/update/x0/p", b"", "slot"),
    ],
)
def test_so_it_is_on_every_topic_of_a_device(tmp_path: Path, topic: str, payload: bytes, says: str) -> None:
    (answer,) = told(Life(tmp_path), Delivery(topic, payload, 1, retain=False))
    assert isinstance(answer, Trouble)
    assert says in answer.why


def test_a_report_of_another_lineage_is_told(tmp_path: Path) -> None:
    report = frames.encode(Report(lineage=b"x" * 16, version=1, examples=1, metrics={}))
    (answer,) = told(Life(tmp_path), Delivery(TOPICS.report("p"), report, 1, retain=False))
    assert isinstance(answer, Trouble)
    assert "lineage" in answer.why


def test_what_is_retained_and_what_names_no_device_is_not_told(tmp_path: Path) -> None:
    life = Life(tmp_path)
    assert not told(life, Delivery(TOPICS.status("p"), b"junk", 1, retain=True))
    for topic in (f"{TOPICS.prefix}/update/3/a b", f"{TOPICS.prefix}/update/3", f"{TOPICS.prefix}/status/.x"):
        assert not told(life, Delivery(topic, b"junk", 1, retain=False))


def test_a_device_is_told_once_in_ten_seconds(tmp_path: Path) -> None:
    life = Life(tmp_path, limits=IngressLimits(strikes=None))
    junk = Delivery(TOPICS.update("p"), b"junk", 1, retain=False)
    assert len(told(life, *[junk] * 50, now=1.0)) == 1
    assert not told(life, *[junk] * 50, now=TROUBLE)
    assert len(told(life, *[junk] * 50, now=1.0 + TROUBLE)) == 1


def test_a_flood_of_names_is_told_little_and_keeps_no_known_device_from_being_told(tmp_path: Path) -> None:
    life = Life(tmp_path, limits=IngressLimits(tracked=1000, strikes=None))
    life.send("pump", 1, 0.5)
    many = [Delivery(TOPICS.update(f"n{number}"), b"junk", 1, retain=False) for number in range(5000)]
    said = told(life, *many, now=1.0)
    assert 0 < len(said) <= 100
    (answer,) = told(life, Delivery(TOPICS.update("pump"), b"junk", 1, retain=False), now=1.0)
    assert isinstance(answer, Trouble)
    assert len(told(life, *many, now=2.0)) <= 10


def test_what_is_told_is_paid_for_as_what_is_fetched(tmp_path: Path) -> None:
    life = Life(tmp_path, limits=IngressLimits(bytes_out=1.0, bytes_out_burst=1.0))
    junk = Delivery(TOPICS.update("p"), b"junk", 1, retain=False)
    assert told(life, junk, now=1.0)
    assert not told(life, junk, now=20.0), "it owes what the first one took"


def test_a_flood_and_a_rate_are_told(tmp_path: Path) -> None:
    life = Life(tmp_path, limits=IngressLimits(rate=1.0, burst=1.0))
    greeting = Delivery(TOPICS.status("p"), frames.encode(Hello(state=DeviceState.READY, outbox=5)), 1, retain=False)
    said = told(life, *[greeting] * 3)
    assert any(isinstance(each, Trouble) and "a second" in each.why for each in said)
    joining = frames.encode(Hello(state=DeviceState.JOINING, outbox=5))
    said = told(life, *[Delivery(TOPICS.status("q"), joining, 1, retain=False)] * 30, now=2.0)
    assert any(isinstance(each, Trouble) and "share" in each.why for each in said)


def row(life: Life, device: str) -> tuple[str, int, str, dict[str, int]]:
    """What `midge status` shows of a device that is refused."""
    known = life.federation.activity[device]
    assert known is not None
    return known.verdict, known.refused, known.why, dict(life.federation.activity.devices(known.heard))


def test_a_flood_of_statuses_is_in_the_devices_row(tmp_path: Path) -> None:
    """Seen to fail: the device was told, and its row said nothing."""
    life = Life(tmp_path, limits=IngressLimits(rate=1.0, burst=1.0))
    joining = frames.encode(Hello(state=DeviceState.JOINING, outbox=5))
    told(life, *[Delivery(TOPICS.status("p"), joining, 1, retain=False)] * 30)
    verdict, refused, why, counted = row(life, "p")
    assert (verdict, counted) == ("dropped", {"dropped": 1}) and refused >= 5 and "share" in why
    assert any(event == "refused_always" for event, _ in life.told)


@pytest.mark.parametrize("kind", ["status", "report"])
def test_wrong_signatures_are_in_the_devices_row(tmp_path: Path, kind: str) -> None:
    """Seen to fail: the device was told, and its row said nothing."""
    life, key = Life(tmp_path), signing.new_key()
    keys = DeviceKeys({"p": key.public})
    life.federation._ingress.credentials = Credentials(TOPICS, device_keys=keys, require_signed=True)
    unsigned = {
        "status": frames.encode(Hello(state=DeviceState.READY, outbox=5)),
        "report": frames.encode(Report(lineage=life.core.lineage, version=1, examples=1, metrics={})),
    }
    topic = TOPICS.status("p") if kind == "status" else TOPICS.report("p")
    told(life, *[Delivery(topic, unsigned[kind], 1, retain=False)] * 5)
    verdict, refused, why, _ = row(life, "p")
    assert (verdict, refused) == ("dropped", 5) and "sign" in why
    assert any(event == "refused_always" for event, _ in life.told)


def test_a_last_will_is_no_sign_of_life(tmp_path: Path) -> None:
    """Seen to fail: a device that was lost was heard of now."""
    life = Life(tmp_path)
    for state, now in ((DeviceState.READY, 1.0), (DeviceState.LOST, 50.0)):
        hello = frames.encode(Hello(state=state, outbox=5))
        told(life, Delivery(TOPICS.status("p"), hello, 1, retain=False), now=now)
    known = life.federation.activity["p"]
    assert known is not None and known.heard == 1.0


def test_with_known_keys_only_registered_names_are_told() -> None:
    posts: list[Post] = []
    key = signing.new_key()
    keys = DeviceKeys({"pump": key.public})
    admission = Admission(IngressLimits())
    troubles = Troubles(
        admission, Credentials(TOPICS, device_keys=keys, require_signed=True), Outlet(posts.append, lambda *_: None)
    )
    for name in ("pump", "stranger"):
        admission.hears(name, 1.0)
        troubles.tell(name, "no", 1.0)
    assert [post.topic for post in posts] == [TOPICS.receipt("pump")]


def test_a_device_with_a_pinned_key_believes_only_what_is_signed() -> None:
    key = signing.new_key()
    trust = Trust([key.public], "f", "p", None)
    head = frames.encode(Trouble(why="no"))
    with pytest.raises(BadSignature):
        trust.read_answer(head)
    signed = signing.sign_frame(key, signing.RECEIPT, signing.of_device("f", "p"), head)
    assert trust.read_answer(signed) == Trouble(why="no")


def test_a_settled_chunk_that_comes_again_is_no_trouble(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.send("p", 1, 0.5)
    late = Delivery(TOPICS.update("p"), frames.encode(Chunk(outbox=1, first=1, seq=1, part=0)), 1, retain=False)
    assert not told(life, late)


def test_other_kinds_on_a_receipt_topic_are_dropped() -> None:
    for message in (Fetch(lineage=b"x" * 16, version=1, span=0, parts=(0,)), Statistics(lineage=b"x" * 16, names=())):
        with pytest.raises(WireError, match="unknown kind"):
            messages.decode_answer(frames.encode(message))
