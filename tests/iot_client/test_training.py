"""From a fit to an update."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from midge.iot_client.training.fit import Fit
from midge.iot_client.training.update_encoder import Unfit, make_update
from midge.wire import chunks, codecs, frames, lineage
from midge.wire.messages import Plan
from midge.wire.schema import Schema
from tests.iot_client.test_session import announcement

MODEL = {"w": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([0.5], np.float32)}
SCHEMA = Schema.of(MODEL)
STATE = lineage.on_grid(SCHEMA.flatten(MODEL), SCHEMA, b"")


def fit(examples: Any = 3, metrics: Mapping[str, float] | None = None, **changed: Any) -> Fit:
    return Fit({**MODEL, **changed}, examples, metrics=metrics or {})


def test_the_delta_is_what_was_trained_minus_what_it_was_trained_from() -> None:
    plan = announcement(4, generation=2).model_copy(update={"plan": Plan(codec="float32", revision=6)})
    made = make_update(fit(b=np.array([0.75])), STATE, plan, 1.5)
    delta = codecs.decode_delta(made.body, SCHEMA, "float32")
    np.testing.assert_array_equal(delta, [0, 0, 0, 0, 0.25])
    update = made.update
    assert (update.base, update.generation, update.plan, update.examples, update.seconds) == (4, 2, 6, 3, 1.5)
    assert (update.size, update.sha256) == (len(made.body), chunks.checksum(made.body))
    assert update.schema_hash == b"", "the lineage has but one"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_what_did_not_stay_finite_is_not_sent(bad: float) -> None:
    with pytest.raises(Unfit, match="learning rate"):
        make_update(fit(b=np.array([bad])), STATE, announcement(1), 0)


def test_other_tensors_than_were_given_are_named() -> None:
    with pytest.raises(ValueError, match=r"the trainer returned.*b is \(3,\), not \(1,\)"):
        make_update(fit(b=np.zeros(3)), STATE, announcement(1), 0)
    with pytest.raises(ValueError, match="b is missing"):
        make_update(Fit({"w": MODEL["w"]}, 1), STATE, announcement(1), 0)


def test_numbers_of_numpy_and_metrics_that_cannot_travel() -> None:
    metrics: dict[str, float] = {"loss": 0.5, "bad": float("nan"), **{f"{number:0>99}": 1.0 for number in range(40)}}
    made = make_update(fit(np.int64(7), metrics), STATE, announcement(1), 0)
    assert (made.update.examples, made.update.metrics["loss"], "bad" in made.update.metrics) == (7, 0.5, False)
    assert len(frames.encode(made.update)) < 4096
