"""The referee's observer of a device's messages: what crosses a receipt in transit breaks no rule."""

import hashlib

import numpy as np
import pytest

from midge.aggregator.referee.model import RefereedModel
from midge.aggregator.referee.observer import Observer
from midge.aggregator.referee.rules import Notebook
from midge.wire import frames
from midge.wire.messages import DeviceState, Hello, Update
from midge.wire.topics import Topics

TOPICS = Topics("f")


def observer() -> Observer:
    """The observer of a device that has sent updates 1 to 3, of which 1 and 2 were settled at second 10."""
    model = RefereedModel.begin(TOPICS, bytes(16), {"w": np.zeros(3, np.float32)}, {})
    found = Observer(TOPICS, "d", Notebook(), model, digests={1: [model.states[1].digest()]})
    hello = Hello(state=DeviceState.READY, outbox=7, first=1, next=1)
    assert found.hear(TOPICS.status("d"), frames.encode(hello), 0.0)
    for seq in (1, 2, 3):
        assert found.hear(TOPICS.update("d"), update(found, seq, first=1), float(seq))
    found.settled = {1: 10.0, 2: 10.0}
    return found


def update(found: Observer, seq: int, *, first: int) -> bytes:
    """An update whose `first` is what the device had not settled as it sent it."""
    body = b"body"
    message = Update(
        outbox=7,
        seq=seq,
        first=first,
        lineage=found.model.name,
        generation=0,
        base=1,
        codec="float32",
        size=len(body),
        sha256=hashlib.sha256(body).digest(),
    )
    return frames.encode(message, body)


@pytest.mark.parametrize(("first", "after", "broken"), [(2, 0.1, False), (2, 2.5, True), (3, 0.1, False)])
def test_an_update_that_crosses_a_receipt_may_still_count_from_before_it(
    first: int, after: float, *, broken: bool
) -> None:
    """Seen to fail: any new update that still named a settled one, however fresh its receipt was."""
    found = observer()
    found.hear(TOPICS.update("d"), update(found, 4, first=first), 10.0 + after)
    said = {verdict.rule.name: verdict for verdict in found.notebook.findings()}["settling"]
    assert (said.outcome == "fail") is broken, said.did
    if broken:
        assert said.did == "seq 2 was settled, and first is still 2"
