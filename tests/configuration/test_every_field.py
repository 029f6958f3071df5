"""Every field that a user writes is checked where it is written: a wrong value is refused in words that name it.

Seen to fail on the checks that were written by hand for some fields: they took NaN for a clip norm (and a norm of 1e17
then moved the model), 2.5 updates in a buffer, "no" for a flag, a negative number of inputs, and a text for a strategy.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import pytest

import midge
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import presets, staleness
from midge.aggregator.core.optimizers import adam, sgd
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.strategy import trimmed_count
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.standby.policy import StandbyPolicy
from midge.broker.embedded.in_memory import Twin
from midge.gateway.config import GatewayConfig
from midge.gateway.pace import SitePace
from midge.iot_client.board.duty_cycle import Duty
from midge.iot_client.board.usage_budget import Costs
from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.prediction_topic import PredictionTopic
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.state.model_comparison import KeepRule
from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.fit import Fit, Recipe
from midge.iot_client.training.numpy_cnn import CNN
from midge.iot_client.training.numpy_models import MLP, Linear, Logistic
from midge.wire.messages import StrictPlan

INITIAL = {"w": np.zeros(3, np.float32)}


class Wrong:
    """No value of any field."""

    def __repr__(self) -> str:
        return "something else"


VALUES: Mapping[str, Any] = {
    "a text": "x",
    "no text": "",
    "a number as text": "3",
    "a flag": True,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "negative": -1,
    "a fraction": 2.5,
    "a dict": {"a": 1},
    "an empty dict": {},
    "a list": [Wrong()],
    "a function": presets.balanced,
    "a class": Pace,
    "an object": Wrong(),
}
"""What is tried for every field. What a kind of field takes of it stands in `TAKEN`."""
TAKEN: Mapping[str, set[str]] = {
    "count": set(),
    "number": {"a fraction"},
    "number without end": {"a fraction", "infinity"},
    "share": set(),
    "flag": {"a flag"},
    "word": set(),
    "text": {"a text", "no text", "a number as text"},
    "texts": set(),
    "value": set(),
    "function": {"a function"},
    "connector": {"a function", "a class"},
    "dict": {"an empty dict"},
    "dict or function": {"an empty dict", "a function"},
    "elsewhere": set(VALUES),
}
"""By kind of field. `elsewhere`: other code reads it, which has tests of its own."""


def value_of(name: str) -> Any:
    """A value of a class that is checked."""
    where = {"connector": Twin().connect, "federation": "f"}
    made: Mapping[str, Callable[[], Any]] = {
        "Strategy": presets.balanced,
        "Staleness": staleness.polynomial,
        "Optimizer": adam,
        "Pace": Pace,
        "Privacy": lambda: Privacy(1.0, 4.0, 8.0),
        "AggregatorConfig": lambda: AggregatorConfig(**where, initial=INITIAL, store="store"),  # type: ignore[arg-type]
        "IngressLimits": IngressLimits,
        "RegistryPolicy": RegistryPolicy,
        "StandbyPolicy": lambda: StandbyPolicy(sync=True),
        "DeviceConfig": lambda: DeviceConfig(**where, name="d", train=lambda p, _: Fit(p, 1), outbox=None),  # type: ignore[arg-type]
        "KeepRule": KeepRule,
        "Duty": lambda: Duty(3600.0, 2.0),
        "Costs": Costs,
        "PredictionTopic": lambda: PredictionTopic("a/b"),
        "RequireSecure": lambda: RequireSecure(helper_key="helper.pub"),
        "Recipe": Recipe,
        "MLP": MLP,
        "Linear": Linear,
        "Logistic": lambda: Logistic(4),
        "CNN": CNN,
        "Autoencoder": lambda: Autoencoder(8, (3,)),
        "GatewayConfig": lambda: GatewayConfig(
            above=Twin().connect, below=Twin().connect, federation="f", name="g", store="store"
        ),
        "SitePace": SitePace,
    }
    return made[name]()


MODEL = "count: inputs outputs; texts: hidden; word: task"
KINDS: Mapping[str, str] = {
    "Strategy": "text: name; value: staleness optimizer privacy pace plan; word: form normalise combine;"
    "texts: count_rows;"
    "count: buffer_size groups max_staleness release_floor release_every; share: calibration trim serve_decay;"
    "number: rate deadline fairness clip serve_interval max_age norm_limit release_interval byte_rate;"
    "flag: bounded weigh_examples weigh_devices even_steps steers_local_steps robust relays",
    "Staleness": "word: kind; number: a b seconds",
    "Optimizer": "word: kind; share: beta1 beta2; number: epsilon; count: delay_limit",
    "Pace": "share: share; number: updates_per_second concurrency interval rest joules_per_month;"
    "count: cohort bytes_per_month",
    "Privacy": "number: clip noise; number without end: epsilon; share: delta; count: owner_devices honest",
    "AggregatorConfig": "connector: connector; elsewhere: federation root initial; text: store;"
    "function: evaluate on_event;"
    "value: strategy limits registry standby; dict: roles moments; texts: features sites credential_files;"
    "count: statistics_devices chunk smallest_chunk memory keepalive checkpoint_records shards;"
    "number: statistics_deadline statistics_factor announcement_lifetime retention; text: release_key helper_key;"
    "flag: replace raise_epoch require_signed require_sealed post_quantum; text: device_keys",
    "IngressLimits": "number: rate burst fleet_rate fleet_burst bytes_in bytes_in_burst bytes_out bytes_out_burst work"
    " quarantine; count: strikes tracked",
    "RegistryPolicy": "count: keep devices; number: every patience; share: share alpha; dict: where; text: metric;"
    "flag: lower decides",
    "StandbyPolicy": "flag: follow sync; number: alone_after; share: takeover_after",
    "DeviceConfig": "connector: connector; elsewhere: federation name root; text: outbox release_key signing_key;"
    "function: train evaluate on_model predict losses on_event; dict or function: moments local; dict: capabilities;"
    "count: missing outbox_bytes keepalive; value: keep samples publish duty costs credentials secure; word: link;"
    "texts: sources features conditions link_conditions; flag: end_if_unsuited micro wait survey; number: patience;"
    "number without end: look_every; dict: versions",
    "KeepRule": "count: rows; number: margin limit; share: alpha",
    "Duty": "number without end: every; number: awake; flag: once",
    "Costs": "count: bytes_per_month; number: joules_per_month watts joules_per_byte",
    "PredictionTopic": "elsewhere: topic alarm; flag: retain; texts: classes; number: every; connector: connector",
    "RequireSecure": "text: helper_key; count: k_min colluding ring; number: noise epsilon; share: delta;value: roster",
    "Recipe": "number: learning_rate proximal; count: batch_size local_steps epochs",
    "MLP": f"{MODEL}; count: channels",
    "Linear": f"{MODEL}; count: channels",
    "Logistic": f"{MODEL}; count: channels",
    "CNN": "texts: image; count: outputs width; word: task",
    "Autoencoder": "count: inputs; texts: hidden",
    "GatewayConfig": "connector: above below; text: federation name root store; value: pace; text: codec release_key"
    " signing_key device_keys; flag: robust require_signed; value: certificate; function: on_event",
    "SitePace": "share: share; number: patience",
}
"""The kind of each field. One that is missing here fails the test: say what it takes."""
ALSO: Mapping[str, set[str]] = {
    "AggregatorConfig.moments": {"a dict"},  # but the model has no tensors for it
    "AggregatorConfig.device_keys": {"an empty dict"},
    "GatewayConfig.device_keys": {"an empty dict"},
    "DeviceConfig.local": {"a dict"},  # whose arrays are read later
    "DeviceConfig.capabilities": {"a dict"},
}
"""What single fields take in addition."""


def kinds(name: str) -> dict[str, str]:
    """The kind of each field of a class."""
    parts = [part.partition(":") for part in KINDS[name].split(";")]
    return {field: kind.strip() for kind, _, names in parts for field in names.split()}


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_value_of_any_field_is_refused_in_words(name: str) -> None:
    right = value_of(name)
    of, wrong, refused = kinds(name), [], 0
    assert set(of) == {field.name for field in fields(right) if field.init}
    for field, kind in of.items():
        taken = TAKEN[kind] | ALSO.get(f"{name}.{field}", set())
        for what, given in VALUES.items():
            if kind == "elsewhere":
                continue
            try:
                replace(right, **{field: given})
            except ValueError as error:
                refused += 1
                if what in taken and str(error).startswith((f"{field} is", f"{name}.{field} is")):
                    wrong.append(f"{field} does not take {what}: {error}")
                elif what not in taken and not (field in str(error) and ": it must be " in str(error)):
                    wrong.append(f"{field} refuses {what} in other words: {error}")
            except Exception as error:  # noqa: BLE001 - that is what must not come
                wrong.append(f"{field} fails with {what}: {error!r}")
            else:
                if what not in taken:
                    wrong.append(f"{field} takes {what}")
    assert wrong == []
    assert refused >= 8 * len(of) or name in ("AggregatorConfig", "DeviceConfig")


FACTORIES: tuple[Callable[..., Any], ...] = (
    *(presets.balanced, presets.fedasync, presets.fedbuff, presets.fedavg, presets.ca2fl, presets.fadas),
    *(presets.private, presets.secure, staleness.polynomial, staleness.hinge, staleness.relative, sgd, adam),
)


def mistakes(make: Callable[..., Any]) -> Iterator[tuple[str, str, Any]]:
    """Arguments of a factory with values that none of them takes."""
    for name, parameter in signature(make).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            for what, given in VALUES.items():
                if what not in ("a fraction", "a flag") or isinstance(parameter.default, int):
                    yield name, what, given


@pytest.mark.parametrize("make", FACTORIES, ids=lambda make: make.__name__)
def test_a_wrong_argument_of_a_factory_is_refused_in_words(make: Callable[..., Any]) -> None:
    first = {"privacy": Privacy(1.0, 4.0, 8.0)} if make is presets.private else {}
    made = make(**first)
    assert is_dataclass(made)
    wrong = []
    for name, what, given in mistakes(make):
        if isinstance(given, bool) and isinstance(signature(make).parameters[name].default, bool):
            continue
        try:
            make(**{**first, name: given})
        except ValueError as error:
            if name not in str(error) or ": it must be " not in str(error):
                wrong.append(f"{name} refuses {what} in other words: {error}")
        except Exception as error:  # noqa: BLE001 - that is what must not come
            wrong.append(f"{name} fails with {what}: {error!r}")
        else:
            wrong.append(f"{name} takes {what}")
    assert wrong == []


@pytest.mark.parametrize("make", FACTORIES[:8], ids=lambda make: make.__name__)
def test_a_preset_checks_what_it_passes_on(make: Callable[..., Any]) -> None:
    """Falsy values were taken for the default; `plan={}` and `pace=0` passed."""
    first = {"privacy": Privacy(1.0, 4.0, 8.0)} if make is presets.private else {}
    own = signature(make).parameters
    wrong: tuple[Any, ...] = ("", 0, {}, "x", Wrong(), presets.balanced)
    for name in ("staleness", "optimizer", "pace", "plan"):
        if name not in own:
            for given in wrong:
                with pytest.raises(ValueError, match=f"^{name} is .*: it must be an? "):
                    make(**first, **{name: given})
    with pytest.raises(TypeError, match=r"has no argument 'robusst' \(did you mean robust\?\)"):
        make(**first, robusst=True)


def test_a_wrong_field_of_a_plan_is_refused_in_words() -> None:
    numbers = ("learning_rate", "proximal", "seconds", "evaluate")
    for name in StrictPlan.model_fields:
        for what, given in VALUES.items():
            if what == "a fraction" and name in numbers:
                continue
            if (what, name) in {("a flag", "feedback"), ("no text", "narrow_codec"), ("no text", "tier")}:
                continue
            if name == "tier" and isinstance(given, str):
                continue
            with pytest.raises(ValueError, match=f"{name} is .*it must be|unknown codec") as caught:
                StrictPlan(**{name: given})
            assert type(caught.value) is ValueError and "\n" not in str(caught.value), (name, what)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: midge.balanced(combine="trimed", trim=0.1), "(did you mean trimmed?)."),
        (lambda: midge.balanced(combine="median"), "it must be 'mean', 'trimmed' or 'centred'."),
        (lambda: midge.balanced(clip=math.nan), "clip is nan: it must be a finite number above 0, or None."),
        (
            lambda: midge.balanced(staleness=midge.polynomial),
            "it must be a Staleness, such as midge.polynomial(0.5) (call it: polynomial(…)).",
        ),
        (lambda: midge.balanced(plan={"learning_rate": 0.1}), "it must be a Plan (write Plan(…))."),
        (lambda: midge.fedavg(13, pace=Pace(cohort=5)), "cohort is 13 and pace.cohort is 5: leave out that of the"),
        (lambda: midge.balanced(2, combine="trimmed", trim=0.2), "buffer_size is 2: with combine='trimmed' it must be"),
        (lambda: Linear(4, (8,)), "a linear model has no hidden layers"),
        (lambda: midge.Plan(codec="int9:256"), "no device could follow the plan: unknown codec 'int9:256'"),
    ],
)  # fmt: skip
def test_what_is_meant_is_said(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        wrong()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategy": "fedavg"}, "strategy is 'fedavg': it must be a Strategy, such as midge.balanced(), or None."),
        ({"strategy": ""}, "strategy is ''"),
        ({"strategy": presets.balanced}, "strategy is the function balanced: it must be a Strategy"),
        ({"roles": ["w"]}, "roles is ['w']: it must be a dict"),
        ({"password": 123}, "password is of type int: it must be a text, or None."),
        ({"statistics_factor": math.nan}, "statistics_factor is nan: it must be a finite number above 1, or None."),
    ],
)
def test_the_public_aggregator_says_the_same(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        midge.Aggregator("mqtt://localhost", federation="f", initial=INITIAL, store="store", **arguments)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": 5}, "name is 5: it must be a text."),
        ({"train": midge.SampleTrainer}, "train is the class SampleTrainer: it must be a function of "),
        ({"link": "narow"}, "link is 'narow': it must be 'narrow', or None (did you mean narrow?)."),
        ({"look_every": math.nan}, "look_every is nan: it must be a number above 0, or None."),
        ({"sources": "rows.csv"}, "sources is 'rows.csv': it must be a list, each item an object with follow."),
    ],
)
def test_the_public_device_says_the_same(arguments: dict[str, Any], words: str) -> None:
    right: dict[str, Any] = {"federation": "f", "name": "d", "train": lambda parameters, _: parameters}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        midge.Device("mqtt://localhost", **{**right, **arguments})
    assert str(caught.value).startswith(words)


def test_numbers_of_numpy_become_those_of_python_and_lists_tuples() -> None:
    """Numbers of NumPy cannot be encoded into a journal; a list has no hash."""
    numbers: tuple[Any, ...] = (np.int64(4), np.float32(0.5))
    strategy = midge.balanced(*numbers, count_rows=["embedding*"])
    assert [type(each) for each in (strategy.buffer_size, strategy.rate, strategy.count_rows)] == [int, float, tuple]
    assert MLP(4, [8], 3) == MLP(4, (8,), 3)  # type: ignore[arg-type]
    plan = midge.Plan(learning_rate=np.float32(0.5), local_steps=np.int64(3))  # type: ignore[arg-type]
    assert (type(plan.learning_rate), type(plan.local_steps)) == (float, int)


@pytest.mark.parametrize("live", [0, 1, 5, 12, 20, 100])
def test_a_trimmed_mean_that_follows_the_fleet_has_something_to_trim(live: int) -> None:
    """It was of two updates up to twelve devices, of which `trim` leaves out none: the model of the mean."""
    trimmed = midge.balanced(combine="trimmed", trim=0.2)
    assert trimmed.size(live) == max(3, midge.balanced().size(live))
    assert trimmed.size(live) - 2 * trimmed_count(trimmed.size(live), trimmed.trim) >= 1
    assert trimmed_count(trimmed.size(live), trimmed.trim) >= 1


def test_the_pace_of_a_round_keeps_its_cohort() -> None:
    """A pace without a target took the place of the cohort: all devices trained."""
    assert midge.fedavg(13, pace=Pace(interval=60.0)).pace == Pace(cohort=13, interval=60.0)
    assert midge.fedavg(13, pace=Pace(concurrency=2.0)).pace == Pace(concurrency=2.0)
