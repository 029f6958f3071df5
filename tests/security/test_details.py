"""What a device tells of itself beside its updates: with a seal, the broker reads none of it."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from midge.aggregator.ingress.authentication import Credentials
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Fit
from midge.wire import envelopes, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import DeviceState, Hello, Report, Statistics
from midge.wire.moments import Moments
from midge.wire.topics import Topics
from tests.federation.live import Log, aggregator, device, overheard, serving
from tests.security.keys import write_keys

LINEAGE = bytes(16)
MISSING, EXAMPLES, LOSS = 0x123456789ABC, 0x1234567890AB, 2.7182818
SAID = ("engine_kind", "diesel", "loss_of_mine", "cellar is flooded")
NUMBERS = (MISSING, EXAMPLES, LOSS)
MESSAGES: tuple[Any, ...] = (
    Hello(state=DeviceState.READY, outbox=7, capabilities={"engine_kind": "diesel"}, waits="cellar is flooded"),
    Report(lineage=LINEAGE, version=3, examples=EXAMPLES, metrics={"loss_of_mine": LOSS}),
    Statistics(lineage=LINEAGE, names=(("input", 2),), missing=MISSING),
)


def told(payload: bytes) -> list[object]:
    """What of a device's own words and numbers can be read in a message's bytes."""
    return [*(word for word in SAID if word.encode() in payload), *(n for n in NUMBERS if msgpack.packb(n) in payload)]


def talkative(twin: Twin, name: str, log: Log, **arguments: Any) -> Any:
    rows = np.arange(80.0).reshape(40, 2) + ord(name)
    return device(
        twin,
        name,
        log,
        train=lambda parameters, _plan: Fit({name: value + 0.5 for name, value in parameters.items()}, 9),
        look_every=0.05,
        capabilities={"engine_kind": "diesel"},
        moments={"input": Moments.of(rows)},
        missing=MISSING,
        evaluate=lambda _parameters: Scores(EXAMPLES, {"loss_of_mine": LOSS}),
        **arguments,
    )


@pytest.mark.virtual
@pytest.mark.parametrize("reads", [True, False], ids=["sealed", "an aggregator that does not read it"])
async def test_the_broker_reads_nothing_of_what_devices_tell_of_themselves(
    tmp_path: Path, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail before: capabilities, reports and the number of missing values travelled in clear headers."""
    twin, log = Twin(), Log()
    seen = overheard(twin)
    private, public = write_keys(tmp_path)
    server = aggregator(
        twin,
        tmp_path / "store",
        log,
        release_key=private,
        moments={"input": 2},
        initial={
            "w": np.zeros((4, 2), np.float32),
            "b": np.zeros(2, np.float32),
            "input_mean": np.zeros(2, np.float32),
            "input_scale": np.ones(2, np.float32),
        },
        roles={"input_mean": "frozen", "input_scale": "frozen"},
        statistics_devices=2,
        statistics_deadline=0.5,
    )
    if not reads:
        signed = envelopes.sign_announcement

        def of_before(key: Any, federation: str, announcement: Any, chain: Any = (), **_: Any) -> bytes:
            return signed(key, federation, announcement.model_copy(update={"hides": False}), chain)

        monkeypatch.setattr(envelopes, "sign_announcement", of_before)
    wanted: list[bool] = []
    conditions = [lambda: "cellar is flooded" if wanted else None]
    devices = [talkative(twin, name, log, release_key=public, conditions=conditions) for name in "ab"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("report") and log.of("release"))
        runtime = server.federation
        await log.until(lambda: all(runtime.devices[name].capabilities for name in "ab"))
        assert runtime.devices["a"].capabilities["engine_kind"] == "diesel"
        wanted.append(True)
        await log.until(lambda: runtime.waits.get("a") == "cellar is flooded")
    assert {event["metrics"]["loss_of_mine"] for event in log.of("report")} == {LOSS}
    sorts = {message.topic.split("/")[3] for message in seen}
    assert sorts >= {"status", "report", "update"}
    found = {word for message in seen for word in told(message.payload)}
    assert found == (set() if reads else {*SAID, *NUMBERS})


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_details_belong_to_one_device_and_one_message(message: Any) -> None:
    key = sealing.derive(signing.new_key())
    assert told(frames.encode(message)), "the words are looked for as they travel"
    hidden = sealing.hide("f", "a", message, sealing.public(key))
    payload = frames.encode(hidden)
    assert not told(payload)
    read, _ = messages.decode(type(message), payload)
    assert sealing.shown("f", "a", read, key) == message
    with pytest.raises(WireError):
        sealing.shown("f", "b", read, key)
    other = {"hello": {"outbox": 8}, "report": {"version": 4}, "statistics": {"names": (("other", 2),)}}[message.kind]
    with pytest.raises(WireError):
        sealing.shown("f", "a", read.model_copy(update=other), key)


def test_a_greeting_is_heeded_whatever_is_hidden_in_it_and_a_report_is_not() -> None:
    """A status is retained: after the loss of a key those of all devices are sealed to the lost one."""
    own, lost = (sealing.derive(signing.new_key()) for _ in range(2))
    greeting, report, _ = (sealing.hide("f", "a", message, sealing.public(lost)) for message in MESSAGES)
    for keys in ((), (own,)):
        credentials = Credentials(Topics("f"), seal_keys=keys)
        assert credentials.shown("a", greeting) == greeting
        with pytest.raises(WireError):
            credentials.shown("a", report)
    later = Credentials(Topics("f"), seal_keys=(own, lost))
    assert later.shown("a", report) == MESSAGES[1]


def test_the_version_that_a_device_keeps_is_sealed_too() -> None:
    key = sealing.derive(signing.new_key())
    said = Hello(state=DeviceState.READY, outbox=7, keeps=41)
    hidden = sealing.hide("f", "a", said, sealing.public(key))
    assert hidden.keeps == sealing.withheld(said).keeps == 0
    assert sealing.shown("f", "a", hidden, key) == said
