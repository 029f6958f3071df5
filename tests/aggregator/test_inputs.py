"""What the model's inputs are called: as the operator says, or as the first two devices agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.inputs import Inputs
from midge.aggregator.core.presets import private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.wire.messages import DeviceState, Hello
from midge.wire.schema import Schema
from tests.aggregator.rig import QuickStore

RIGHT, SWAPPED = ("speed", "heat"), ("heat", "speed")
SCHEMA = Schema.of({"x": np.zeros(2, np.float32)}, {})
NORMALISED = {
    "x": np.zeros(2, np.float32),
    "input_mean": np.zeros(2, np.float32),
    "input_scale": np.ones(2, np.float32),
}
ROLES = {"input_mean": "frozen", "input_scale": "frozen"}


def hello(*names: str) -> Hello:
    return Hello(state=DeviceState.READY, outbox=1, features=names)


@pytest.fixture
def store(tmp_path: Path) -> QuickStore:
    return QuickStore(tmp_path)


def opened(store: QuickStore) -> QuickStore:
    store.__enter__()
    if store.schema is None:
        store.create(SCHEMA)
    return store


def test_the_first_two_devices_that_agree_decide_for_good(store: QuickStore) -> None:
    inputs = Inputs(opened(store), None, 2)
    said = [inputs.hear("a", RIGHT), inputs.hear("a", RIGHT), inputs.hear("b", ()), inputs.hear("c", ("x", "y", "z"))]
    assert not any(said)
    assert not inputs.names
    assert not inputs.hear("d", SWAPPED)
    assert inputs.hear("e", RIGHT)
    assert list(inputs.names) == list(RIGHT)
    assert not inputs.hear("f", SWAPPED) and not inputs.hear("g", SWAPPED)
    store.close()
    with store:
        assert Inputs(store, None, 2).names == RIGHT
        assert Inputs(store, SWAPPED, 2).names == SWAPPED, "the operator decides"
        assert Inputs(store, None, 2).names == SWAPPED


def test_who_is_unlike_is_found_also_before_two_agree(store: QuickStore) -> None:
    inputs = Inputs(opened(store), None, 2)
    devices = {"a": hello(*RIGHT), "b": hello(*SWAPPED), "c": hello("p", "q"), "old": hello()}
    for name, said in devices.items():
        inputs.hear(name, said.features)
    found = inputs.unlike(devices)
    assert set(found) == {"a", "b"} and "a third device decides" in found["a"], "the same names in another order"
    assert inputs.hear("d", RIGHT)
    assert set(inputs.unlike({**devices, "d": hello(*RIGHT)})) == {"b", "c"}
    store.close()


def test_statistics_wait_while_devices_name_different_inputs_and_none_are_decided(store: QuickStore) -> None:
    inputs = Inputs(opened(store), None, 2)
    devices = {"a": hello("p", "q"), "old": hello()}
    inputs.hear("a", ("p", "q"))
    assert inputs.contested(devices) == {}
    devices["b"] = hello(*RIGHT)
    inputs.hear("b", RIGHT)
    found = inputs.contested(devices)
    assert set(found) == {"a", "b"} and "this one p, q" in found["a"] and "two that agree decide" in found["a"]
    assert inputs.hear("c", RIGHT)
    assert inputs.contested(devices) == {}
    assert Inputs(store, (), 2).contested(devices) == {}, "the operator compares none"
    store.close()


def test_names_are_neither_learned_nor_compared_where_the_operator_says_so(store: QuickStore) -> None:
    inputs = Inputs(opened(store), (), 2)
    assert not inputs.hear("a", RIGHT) and not inputs.hear("b", RIGHT)
    assert inputs.unlike({"a": hello(*RIGHT), "b": hello(*SWAPPED)}) == {}
    store.close()


def test_what_is_learned_is_bounded(store: QuickStore) -> None:
    inputs = Inputs(opened(store), None, None)
    for number in range(1000):
        inputs.hear(f"d{number}", (f"x{number}",))
    assert len(inputs._claims) == 64
    store.close()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"features": ["a"]}, "the model has 2 inputs, features names 1: a"),
        ({"features": ["a", "a"]}, "different names"),
        ({"features": "ab"}, "features is 'ab': it must be a list"),
        ({"moments": {"input": 2}, "statistics_devices": 1}, "must be 2 or more"),
        ({"moments": {"input": 2}, "statistics_factor": 0.5}, "above 1"),
        (
            {"moments": {"input": 2}, "strategy": private(Privacy(clip=1.0, noise=4.0, epsilon=8.0))},
            "A private strategy takes no moments=.*without noise",
        ),
    ],
)
def test_what_cannot_be_is_said_where_the_federation_is_made(
    tmp_path: Path, arguments: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        Aggregator(
            AggregatorConfig(
                connector=Twin().connect,
                federation="f",
                store=tmp_path,
                initial=NORMALISED,
                roles=ROLES,
                **arguments,  # type: ignore[arg-type]
            )
        )


def test_an_aggregator_that_asks_for_no_statistics_does_not_wait_for_them(tmp_path: Path) -> None:
    arguments = {"federation": "f", "store": tmp_path, "initial": NORMALISED, "roles": ROLES}
    first = Aggregator(AggregatorConfig(connector=Twin().connect, moments={"input": 2}, **arguments))  # type: ignore[arg-type]
    first.open()
    first.close()
    second = Aggregator(AggregatorConfig(connector=Twin().connect, **arguments))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="the aggregator asks for none"):
        second.open()


def test_a_command_can_name_the_inputs_of_an_app(tmp_path: Path) -> None:
    where = {"connector": Twin().connect, "federation": "f", "store": tmp_path}
    app = Aggregator(AggregatorConfig(**where, initial=NORMALISED, roles=ROLES))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has 2 inputs, features names 3: a, b, c"):
        app.config = replace(app.config, features=["a", "b", "c"])
    app.config = replace(app.config, features=["a", "b"])
    app.open()
    assert app.core.features == ("a", "b")
    with pytest.raises(RuntimeError, match="while it serves"):
        app.config = replace(app.config, features=[])
    app.close()
