"""The tables [strategy] and [plan]: presets by name, with every number of a `Strategy`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from midge.aggregator.core import presets, staleness
from midge.aggregator.core.optimizers import adam, sgd
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.strategy import SPELT, Strategy
from midge.configuration.derived import Fields, meanings, of_dataclass, of_function, of_model, reworded, section, tagged
from midge.wire.messages import StrictPlan

Presets = Mapping[str, Callable[..., Strategy]]

PRESETS: Final[Presets] = {
    make.__name__: make
    for make in (
        *(presets.balanced, presets.fedasync, presets.fedbuff, presets.fedavg),
        *(presets.ca2fl, presets.fadas, presets.private, presets.secure),
    )
}
STALENESS: Final = {
    make.__name__: make for make in (staleness.constant, staleness.polynomial, staleness.hinge, staleness.relative)
}
OPTIMIZERS: Final = {make.__name__: make for make in (sgd, adam)}
_ELSEWHERE: Final = ("name", "plan", "rate", "rho", "privacy", "weigh_devices", "relays")
"""Not among a preset's keys: `rate` is `server_rate` or `alpha`, `rho` is `proximal` of [plan], `privacy` of one only;
the last two are of gateways."""
_SAME: Final = {"server_rate": "rate", "alpha": "rate"}
"""Arguments of presets, with the field of `Strategy` that they set."""
_TEXTS: Final = {
    "a": "How steeply the weight falls.",
    "b": "Staleness up to which an update has its full weight.",
    "amsgrad": "Whether the largest second moment so far counts.",
    "beta1": "What the mean of the deltas keeps at each step.",
    "beta2": "What the mean of their squares keeps at each step.",
    "codec": "How deltas are encoded, such as int8:256.",
    "cohort": "About how many devices are asked for each version.",
    "delay": "Staleness beyond which the rate is divided by it.",
    "epsilon": "Added to the divisor.",
    "clip": "L2 norm to which a device scales its delta down, before it is rounded.",
    "colluding": "With privacy, devices of a sum that may disclose their shares of the noise, or send none.",
    "groups": "Sums in a step; with 5 or more, their median is used, which bears devices that send noise.",
    "k_min": "Fewest distinct devices in a sum.",
    "levels": "Largest integer that stands for a value.",
    "scale": "Value of one level; leaving it out is a sixteenth of `clip`.",
    "slices": "An update covers one of this many slices of the model: 4 send a quarter of the bytes.",
    "momentum": "What the last step adds to the next one.",
    "seconds": "Unit of the staleness; leaving it out counts steps.",
}
"""Arguments of functions whose docstring says them in one sentence with others."""
PRIVATE: Final = (presets.private, presets.secure)
"""Presets with a table [strategy.privacy]."""
_SET: Final = ("plan", "revision", "seed", "tier", "masking")
"""Of a plan, what the aggregator, the devices and the preset `secure` set; `tier` is `midge aggregate --plan micro`."""


def _spelt(word: Any) -> Any:
    return SPELT.get(word, word) if isinstance(word, str) else word


def _first(make: Any) -> str:
    return (inspect.getdoc(make) or "").split("\n")[0]


def _tagged(title: str, makers: Mapping[str, Callable[..., Any]]) -> Any:
    variants = {
        name: {key: reworded(field, _TEXTS.get(key)) for key, field in of_function(make).items()}
        for name, make in makers.items()
    }
    return tagged(title, "kind", variants, None, {name: _first(make) for name, make in makers.items()})


def _fields(make: Callable[..., Strategy]) -> Fields:
    """A preset's own arguments, then all other parts of a strategy with the values that it gives them."""
    like = None if make is presets.private else make()
    arguments = of_function(make, leave=(*_ELSEWHERE, "staleness"))
    parts = {name: key for name, key in of_dataclass(Strategy, like=like).items() if name not in _ELSEWHERE}
    kind, field = parts["combine"]
    parts["combine"] = Annotated[kind, BeforeValidator(_spelt)], field
    within: Fields = {
        "staleness": (_tagged("Staleness", STALENESS), Field(None, description="How much a late update counts.")),
        "optimizer": (_tagged("Optimizer", OPTIMIZERS), Field(None, description="What becomes of a step.")),
    }
    if make in PRIVATE:
        names = [field.name for field in fields(Privacy) if field.name != "honest"]  # `secure` sets it
        within["privacy"] = (section("Privacy", of_dataclass(Privacy, names)), Field(None, description=_first(Privacy)))
    texts = _TEXTS | meanings(Strategy)
    arguments = {name: reworded(key, texts.get(_SAME.get(name, name))) for name, key in arguments.items()}
    return {**arguments, **{name: key for name, key in parts.items() if name not in arguments}, **within}


STRATEGY: Final = tagged(
    "Strategy",
    "preset",
    {name: _fields(make) for name, make in PRESETS.items()},
    "balanced",
    {name: _first(make) for name, make in PRESETS.items()},
)
_PLAN: Final = of_model(StrictPlan, leave=_SET)
PLAN: Final = section("Plan", {**_PLAN, "codec": reworded(_PLAN["codec"], _TEXTS["codec"])}, "How devices shall train.")


def strategy_of(given: Mapping[str, Any], plan: Mapping[str, Any]) -> Strategy:
    """The strategy of both tables, as the preset makes it with the same arguments in Python.

    Args:
        given: keys of [strategy] that were written.
        plan: keys of [plan] that were written; they go on top of the preset's.

    Raises:
        ValueError: values that cannot work together; naming them.
    """
    rest = dict(given)
    make = PRESETS[rest.pop("preset", "balanced")]
    arguments = {name: rest.pop(name) for name in inspect.signature(make).parameters if name in rest}
    if make is presets.private and "privacy" not in arguments:
        raise ValueError("the preset private needs a budget: add [strategy.privacy] with clip, noise and epsilon.")
    if "privacy" in arguments:
        arguments["privacy"] = Privacy(**arguments["privacy"])
    if make is presets.fedavg and "pace" in rest:
        arguments["pace"] = Pace(**rest.pop("pace"))  # the preset gives it the cohort
    made: Mapping[str, Mapping[str, Callable[..., Any]]] = {"staleness": STALENESS, "optimizer": OPTIMIZERS}
    for name in made.keys() & arguments.keys():
        rest[name] = arguments.pop(name)
    for name in made.keys() & rest.keys():
        keys = dict(rest[name])
        rest[name] = made[name][keys.pop("kind")](**keys)
    strategy = make(**arguments)
    for name, value in rest.items():
        if isinstance(value, dict):
            old = getattr(strategy, name)
            assert is_dataclass(old) and not isinstance(old, type)
            rest[name] = replace(old, **value)
    own = strategy.plan.model_dump()
    if (asked := {**own, **plan}) != own:
        rest["plan"] = StrictPlan(**asked)
    return replace(strategy, **rest) if rest else strategy
