"""The setting of a run of a simulated fleet: plain values that travel to the aggregator's process as JSON."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from midge.aggregator.core.presets import balanced, ca2fl, fedasync, fedavg, fedbuff, secure
from midge.aggregator.core.staleness import Staleness, constant, hinge, polynomial
from midge.aggregator.core.strategy import Strategy
from midge.broker import Endpoint, Tls
from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.models import FleetModel, Name, model_for
from midge.sensor_fleet.world import World
from midge.wire.messages import Plan
from midge.wire.topics import DEFAULT_ROOT

SECURE: dict[str, Any] = {"clip": 4.0, "scale": 0.05}
"""Numbers of secure aggregation that fit normalised models with the demo's recipes."""
Engine = Literal["numpy", "mixed", "torch"]
Preset = Literal["balanced", "fedasync", "fedbuff", "ca2fl", "fedavg"]


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's URL and, for TLS, the paths of its files."""

    url: str = field(repr=False)
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    service: str | None = None

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """The address of an endpoint, with its password, for another process."""
        who = (
            ""
            if endpoint.user is None
            else f"{quote(endpoint.user, safe='')}:{quote(endpoint.password or '', safe='')}@"
        )
        where = f"{endpoint.address}{endpoint.path if endpoint.websockets else ''}"
        tls = endpoint.tls or Tls()
        files = [None if file is None else str(file.resolve()) for file in (tls.cafile, tls.certfile, tls.keyfile)]
        return cls(f"{endpoint.scheme}://{who}{where}", files[0], files[1], files[2], endpoint.service)

    def endpoint(self) -> Endpoint:
        """Parse the address.

        Raises:
            ValueError: it is malformed; the message says how.
        """
        files = (self.cafile, self.certfile, self.keyfile)
        cafile, certfile, keyfile = (None if file is None else Path(file) for file in files)
        tls = Tls(cafile, certfile, keyfile) if any(files) else None
        parsed = Endpoint.parse(self.url, tls=tls)
        return replace(parsed, service=self.service or parsed.service)


@dataclass(frozen=True, slots=True)
class Setting:
    """A fleet, its data, its model and its strategy."""

    data: str = "digits"
    devices: int | None = None
    """Number of devices of the data; None is all of them, or 20 if rows have no owner."""
    seed: int = 0
    model: Name | None = None
    app: str | None = None
    """`module:attribute` of a user's model."""
    engine: Engine = "numpy"
    micro: int = 0
    """Number of devices, the last ones, that run as MicroPython processes."""
    strategy: Preset = "balanced"
    alpha: float | None = None
    """FedAsync's rate; None is 0.6, which the aggregator bounds by the number of devices."""
    form: Literal["delta", "mixing"] = "mixing"
    buffer_size: int | None = None
    """Of a buffered strategy; None is the preset's own."""
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    release_interval: float = 0.2
    """Minimum seconds between two releases: most devices would skip more frequent versions."""
    codec: str | None = None
    """None is the plan's own."""
    learning_rate: float | None = None
    local_steps: int | None = None
    batch_size: int | None = None
    world: World = field(default_factory=World)
    secure: bool = False
    """Whether devices mask their updates, and a mask helper runs beside the aggregator."""
    k_min: int = 5
    """Of secure aggregation: fewest devices in a sum."""
    groups: int = 1
    """Of secure aggregation: sums in a step; from 5 on, a step bears senders of noise."""
    federation: str = "demo"
    root: str = DEFAULT_ROOT

    def weighting(self) -> Staleness:
        return {"constant": constant, "polynomial": polynomial, "hinge": hinge}[self.staleness]()

    def plan(self) -> Plan:
        """The training plan for devices."""
        wishes: dict[str, Any] = {
            "codec": self.codec,
            "learning_rate": self.learning_rate,
            "local_steps": self.local_steps,
            "batch_size": self.batch_size,
        }
        return Plan(**{name: value for name, value in wishes.items() if value is not None})

    def make_strategy(self, devices: int) -> Strategy:
        """Make the strategy.

        Raises:
            ValueError: options that contradict each other.
        """
        if self.strategy != "fedasync" and (self.alpha is not None or self.form != "mixing"):
            raise ValueError(f"--alpha and --form are for fedasync, not {self.strategy}: add --strategy fedasync.")
        pace: dict[str, Any] = {"release_interval": self.release_interval, "plan": self.plan()}
        sized: dict[str, Any] = {} if self.buffer_size is None else {"buffer_size": self.buffer_size}
        if self.secure:
            if self.strategy != "balanced":
                raise ValueError(f"--secure has a strategy of its own: leave out --strategy {self.strategy}.")
            if self.micro or self.codec is not None:
                raise ValueError("--secure goes with neither --micro nor --codec: masked updates have their own.")
            sums = self.k_min * self.groups
            size = self.buffer_size or (sums if self.groups > 1 else min(max(self.k_min, devices // 4), 10))
            return secure(self.k_min, size, groups=self.groups, **SECURE, deadline=5.0, **pace)
        match self.strategy:
            case "balanced":
                return balanced(**sized, **pace)
            case "fedasync":
                return fedasync(0.6 if self.alpha is None else self.alpha, self.weighting(), self.form, **pace)
            case "fedbuff":
                return fedbuff(**sized, staleness=self.weighting(), **pace)
            case "ca2fl":
                return ca2fl(**sized, **pace)
            case "fedavg":
                return fedavg(max(2, devices // 2), max(2, devices // 3), deadline=10.0, **pace)

    def load(self) -> tuple[FleetData, FleetModel]:
        """Load the data and make the model for it.

        Raises:
            ValueError: a malformed file, or an unsuitable model.
        """
        data = load(self.data, devices=self.devices, seed=self.seed)
        if self.app is not None:
            return data, own_model(self.app, data)
        name = self.model
        if name is None and self.engine == "torch" and data.kind != "table":
            name = "cnn"
        return data, model_for(data, name, torch=self.engine == "torch", seed=self.seed)

    def engine_of(self, number: int) -> Literal["numpy", "torch"]:
        """The training engine of a device: in a mixed fleet every other one has torch."""
        if self.engine == "mixed":
            return "torch" if number % 2 else "numpy"
        return self.engine

    def packed(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "world": World(**values["world"])})


def own_model(app: str, data: FleetData) -> FleetModel:
    """Make a user's model: `module:attribute` names a callable that takes the data and returns a `FleetModel`.

    Raises:
        ValueError: it cannot be imported, or returns something else.
    """
    module, _, attribute = app.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--app {app!r} cannot be used ({error}): give module:attribute.") from error
    model = make(data)
    if not isinstance(model, FleetModel):
        raise ValueError(  # noqa: TRY004 - a ValueError for every invalid setting
            f"--app {app!r} returned {type(model).__name__}; it must return a sensor_fleet.models.FleetModel."
        )
    return model
