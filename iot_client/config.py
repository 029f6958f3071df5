"""The configuration of a device, as one frozen value, parts of which the command line overrides."""

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from midge.broker.mqtt.connection import Connector, Keepalive
from midge.broker.provisioning.held_credentials import HeldCredentials
from midge.iot_client.board.duty_cycle import Duty
from midge.iot_client.board.training_constraints import LOOK_EVERY, Condition
from midge.iot_client.board.usage_budget import Costs
from midge.iot_client.connection.identity import Key
from midge.iot_client.connection.prediction_topic import PredictionTopic
from midge.iot_client.connection.serve_channel import OnModel
from midge.iot_client.data.samples import Samples, Source
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.session.timers import PATIENCE
from midge.iot_client.state.local_tensors import Values
from midge.iot_client.state.memory_outbox import AnyOutbox
from midge.iot_client.state.model_comparison import KEEP, KeepRule
from midge.iot_client.state.model_keeper import Losses
from midge.iot_client.state.prediction import Predict
from midge.iot_client.training.evaluation import Evaluate
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.field_checks import Count, Positive, Unlimited, Whole, check_fields
from midge.wire.lineage import State
from midge.wire.moments import Moments
from midge.wire.topics import DEFAULT_ROOT, Topics, device_name

log = logging.getLogger("iot_client")

Train = Annotated[Callable[[Parameters, TrainingPlan], Fit | Awaitable[Fit]], " of (parameters, plan)"]
Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """One participant of one federation.

    Raises:
        ValueError: an invalid name, sources without samples, or a `train` that is not a function.
    """

    connector: Connector
    """Opens connections to the broker; `midge.Device` makes it from a URL."""
    federation: str
    """The federation's name."""
    name: str
    """The device's own name in it; the colons of a MAC address become hyphens."""
    train: Train
    """Called with all tensors by name and a plan, in a thread; returns a `Fit`. May be a coroutine function."""
    outbox: str | Path | AnyOutbox | None
    """The file that holds updates until they are settled; None keeps them in memory, for simulations, as does a memory
    outbox given here."""
    root: str = DEFAULT_ROOT
    """The topic root."""
    moments: Mapping[str, Moments] | Callable[[], Mapping[str, Moments]] | None = None
    """Statistics of the device's data by name, for the aggregator to pool; or a function that computes them."""
    missing: Whole = 0
    """Number of missing values that they leave out."""
    capabilities: Mapping[str, str | int | float | bool] | None = None
    """Plain values for the status, in addition to cores, memory and throughput."""
    evaluate: Evaluate | None = None
    """Called with all tensors by name, in a thread; returns `Scores` of the device's own held-out data."""
    on_model: OnModel | None = None
    """Called with each served model, all tensors by name and its version, in a thread."""
    local: Values | None = None
    """Initial values of local tensors and of those of a site, or a function that makes them."""
    predict: Predict | None = None
    """Called by `predict` with all tensors of the newest verified model by name, and with its argument."""
    losses: Losses | None = None
    """Called with all tensors by name, and with rows and labels of the samples; returns the loss of each row, by which
    models are compared. By default that of `train`, if it has one, as `SampleTrainer` does. It is called beside a
    training, as `predict` is."""
    keep: KeepRule | None = KEEP
    """When the device goes on predicting with the model that it uses because a new one is worse on its samples; None
    uses every new one. Needs `predict`, `samples` and `losses`."""
    samples: Samples | None = None
    """Rows of the device's data, for `observe` and the trainer."""
    sources: Sequence[Source] = ()
    """Sources of the samples: each has a coroutine function `follow(samples)`."""
    publish: PredictionTopic | None = None
    """The topic for predictions on the rows that the samples see."""
    features: Sequence[str] | None = None
    """Names of the inputs, in order; those of the samples by default. If the federation's model has names too and they
    differ, the device does not train and reports it."""
    end_if_unsuited: bool = False
    """End with an error if they differ at the start; for names that a person gave on a command line."""
    conditions: Sequence[Condition] = ()
    """Functions that return why the device should not train now, or None if it may."""
    link_conditions: Sequence[Condition] = ()
    """Functions that return why it should not use its link for models and updates now, or None."""
    duty: Duty | None = None
    """When the device wakes, if it sleeps most of the time."""
    costs: Costs | None = None
    """Monthly limits, and the costs of the device's work."""
    outbox_bytes: Count | None = None
    """Bytes of waiting updates at which training stops until one is settled; None sets no limit."""
    micro: bool = False
    """Whether it belongs to the class of microcontrollers: it keeps no error feedback, so that the plan's `micro_codec`
    takes precedence, and holds one update at a time."""
    link: Literal["narrow"] | None = None
    """"narrow" if bytes are expensive: the plan may have another codec for that."""
    on_event: Listener | None = None
    """Called with a dict for each event."""
    keepalive: Keepalive = 30
    """MQTT keepalive in seconds."""
    wait: bool = False
    """Keep trying although the very first connection fails; a device that has taken part always does."""
    patience: Positive = PATIENCE
    """Seconds before an unanswered update is sent again; doubled each time."""
    release_key: Key | Sequence[Key] | None = None
    """The public key, a PEM file, that signs the federation's announcements; or several. Then only what is signed,
    newer than what was seen before and not expired is accepted, and updates are sealed to the aggregator if it
    announces a key for that. Without one the broker is trusted."""
    signing_key: Key | None = None
    """The device's own private key, a PEM file, to sign what it sends: that of its certificate, or an Ed25519 key."""
    credentials: HeldCredentials | None = None
    """Credentials of a bundle, which are renewed over MQTT in time; `connector` must use them (`connecting`)."""
    look_every: Unlimited | None = LOOK_EVERY
    """Seconds between two checks of the conditions; infinity leaves it to the caller of `look`."""
    secure: RequireSecure | None = None
    """Requires secure aggregation: only masked updates leave the device, and nothing else about its rows."""
    survey: bool = True
    """Whether it answers an operator's surveys with statistics of its samples (`midge survey`); otherwise it does not
    read the requests."""
    versions: MutableMapping[bytes, State] | None = None
    """Models by digest, which devices in one process share: looked up before a frame is applied."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (name := device_name(self.name)) != self.name:
            log.warning("The device %s is called %s: file names on an SD card cannot contain a colon.", self.name, name)
            object.__setattr__(self, "name", name)
        topics = Topics(self.federation, self.root)  # raises if a name cannot be in a topic
        if self.sources and self.samples is None:
            raise ValueError("Sources feed samples: give Device(samples=midge.Samples(…)) too.")
        if self.publish is not None and (self.samples is None or self.predict is None):
            raise ValueError("Predictions are published of samples: give Device(samples=…, predict=…) too.")
        if self.publish is not None and f"{self.publish.topic}/".startswith(f"{topics.prefix}/"):
            raise ValueError(f"{self.publish.topic!r} is a topic of the federation: publish predictions on another.")
        if self.secure is not None and (self.release_key is None or self.signing_key is None):
            raise ValueError(
                "Secure aggregation needs release_key and signing_key too: updates are sealed to the aggregator, and "
                "the mask helper counts only devices that sign."
            )
        if self.secure is not None and self.micro:
            raise ValueError("Secure aggregation is not for micro=True: their updates keep no residual.")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs; empty if they have none."""
        if self.features is None and self.samples is not None:
            return tuple(self.samples.features)
        return tuple(self.features or ())

    def renamed(self, name: str) -> "DeviceConfig":
        """The same device under another name, with an outbox of that name beside the old one."""
        outbox = self.outbox
        path = Path(outbox) if isinstance(outbox, str | Path) else None if outbox is None else outbox.path
        name = device_name(name)
        return replace(self, name=name, outbox=None if path is None else path.with_name(f"{name}.outbox"))
