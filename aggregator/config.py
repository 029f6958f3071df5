"""The configuration of an aggregator: an immutable value, checked when it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np

from midge.aggregator.core.presets import balanced
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.aggregator.model.averaging import refuse_noise
from midge.aggregator.model.statistics import FACTOR
from midge.aggregator.publish.announcement_signer import LIFETIME
from midge.aggregator.publish.part_sizes import PART
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.standby.policy import StandbyPolicy
from midge.aggregator.store.device_erasure import RETENTION
from midge.broker.mqtt.connection import Connector, Keepalive
from midge.wire.field_checks import Count, NotNegative, Positive, Range, check_fields
from midge.wire.inputs import LONGEST, MOST, listed, sayable
from midge.wire.messages import MICRO, Moment
from midge.wire.schema import Parameters, Schema
from midge.wire.signing import PublicKey
from midge.wire.steps import LARGEST_VALUE
from midge.wire.topics import DEFAULT_ROOT, SLOTS, Topics

Evaluate = Callable[[dict[str, Any]], Mapping[str, float]]
Listener = Callable[[dict[str, Any]], None]
Rules = Annotated[Strategy, ", such as midge.balanced()"]
Factor = Annotated[float, Range(gt=1)]
Processes = Annotated[int, Range(ge=0, le=SLOTS)]
SmallestChunk = Annotated[int, Range(ge=64, le=PART)]

CHUNK = 256 * 1024
"""Bytes of a chunk's body, for a self-hosted broker."""
SMALLEST_CHUNK = 1024
"""Smallest receive buffer of a board; with at most 256 parts of a frame, it suffices for a model of 256 KiB."""
CHECKPOINT_RECORDS = 1000
"""About as many as a restart replays in a second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AggregatorConfig:
    """One federation and how it is served. `dataclasses.replace` makes a changed copy, which is checked as well.

    Args:
        connector: opens connections to the broker; `midge.Aggregator` makes it from a URL.
        federation: the federation's name.
        initial: the initial model, as a dict of arrays; an existing store continues with its own.
        store: a directory of this aggregator's own.
        strategy: when and how updates become the next model; `balanced()` by default.
        root: the topic root.
        roles: which tensors are not trained: name to "averaged", "local", "site" or "frozen"; "=other" ties it to that
            one.
        moments: federated statistics to request before training: name to number of channels. They are pooled and
            frozen into the tensors `{name}_mean` and `{name}_scale`.
        statistics_devices: number of devices whose statistics are pooled, 2 or more; fewer after `statistics_deadline`
            seconds, but never one device's alone.
        statistics_deadline: seconds after which the statistics of fewer devices suffice.
        statistics_factor: devices whose values are further from the others' than this many times the usual spread, or
            spread wider than that, and of another magnitude, are left out and named; None includes them, and sets no
            limit for what one device alone shows.
        features: names of the model's inputs, in order. A device with other names does not train, and its updates are
            refused. None learns them from the first two devices that agree; an empty list disables the check.
        evaluate: called with all tensors by name after a release, in a thread; returns numbers for the log.
        on_event: called with a dict for each event.
        chunk: bytes of a chunk's body; less if the broker takes less. A broker of MQTT 3.1.1 does not announce its
            limit: use `wire.chunks.CLOUD`, 120 KiB, for a cloud service.
        smallest_chunk: least bytes to which the model's parts are cut for devices with small limits; devices that take
            less get no model. Small parts mean more messages for all devices.
        memory: bytes for incomplete updates that arrive in chunks.
        keepalive: MQTT keepalive in seconds.
        checkpoint_records: records of the journal after which a checkpoint is written: each update, step and release
            makes one. Above a hundred a second the clock decides, at up to ten times as many records. A restart
            replays those since the last checkpoint.
        replace: take over the topics from another lineage.
        release_key: the file of the private key that signs announcements and receipts, PEM; with it devices may seal
            their updates to us. A P-256 key in `FILE.p256` signs as well. None signs nothing.
        announcement_lifetime: validity of an announcement in seconds, for a device that pins the key: a broker can
            withhold newer ones unnoticed for that long. It is reissued after a quarter of them.
        raise_epoch: let devices follow to a lower version, or from another store to this one, once.
        device_keys: the devices' public keys by name, or a directory of `NAME.pub` or `NAME.crt` files; a device with a
            key there must sign what it sends.
        require_signed: refuse devices without a key there.
        require_sealed: refuse updates that are not sealed.
        post_quantum: have devices seal to keys of ML-KEM-768 and X25519; needs cryptography 50 on both sides.
        credential_files: certificates and authorities that the connector uses: an alarm warns 60 days before one of
            them, or the release key, expires.
        limits: how much devices may send, and when one is quarantined.
        retention: seconds of silence after which a device's names are erased, once there is a version that it does not
            know: updates of earlier ones are stale from then on, so that none counts twice. None keeps the names.
        helper_key: the mask helper's public key, PEM, pinned: for a strategy of secure aggregation.
        registry: how versions are registered, kept, tried and promoted.
        standby: how this aggregator and another one work together, one of which serves.
        sites: names of gateways (`midge gateway`), which may send sums of their devices' updates; `*` stands for any
            characters.
        shards: number of processes that take updates in, at most 64, each those of a part of the devices, and give
            their sums to this one (`midge aggregate --shards`); 0 takes them in here.

    Raises:
        ValueError: a value is invalid, or contradicts another one.
    """

    connector: Connector
    federation: str
    initial: Parameters = field(repr=False)
    store: str | Path
    strategy: Rules = field(default_factory=balanced)
    root: str = DEFAULT_ROOT
    roles: Mapping[str, str] | None = None
    moments: Mapping[str, Count] | None = None
    statistics_devices: Count = 5
    statistics_deadline: NotNegative = 10.0
    statistics_factor: Factor | None = FACTOR
    features: Sequence[str] | None = None
    evaluate: Evaluate | None = None
    on_event: Listener | None = None
    chunk: Count = CHUNK
    smallest_chunk: SmallestChunk = SMALLEST_CHUNK
    memory: Count = 2**30
    keepalive: Keepalive = 30
    checkpoint_records: Count = CHECKPOINT_RECORDS
    replace: bool = False
    release_key: str | Path | None = None
    announcement_lifetime: Positive = LIFETIME
    raise_epoch: bool = False
    device_keys: Mapping[str, bytes | PublicKey] | str | Path | None = None
    require_signed: bool = False
    require_sealed: bool = False
    post_quantum: bool = False
    credential_files: Sequence[Path] = ()
    limits: IngressLimits = field(default_factory=IngressLimits)
    retention: NotNegative | None = RETENTION
    registry: RegistryPolicy = field(default_factory=RegistryPolicy)
    helper_key: bytes | str | Path | None = None
    sites: Sequence[str] = ()
    standby: StandbyPolicy = field(default_factory=StandbyPolicy)
    shards: Processes = 0

    def __post_init__(self) -> None:
        check_fields(self)
        _ = self.topics  # checks the names
        self.schema.flatten(self.initial)
        self._check_values()
        refuse_noise(self.strategy, self.schema)
        self._check_masking()
        self._check_statistics()
        _ = self.asked
        if (self.standby.follow or self.standby.sync) and self.release_key is None:
            raise ValueError(
                "A standby needs release_key, the same on both hosts: by it the two know each other, and the store is "
                "encrypted on its way. Make one with midge release-key new FILE."
            )
        self._check_features()
        self._check_shards()

    def _check_values(self) -> None:
        """Check that all tensors can be published: no mask of minus infinity, for example."""
        for tensor in self.schema.tensors:
            if not tensor.shared:
                continue
            values = np.asarray(self.initial[tensor.name], np.complex128 if tensor.complex else np.float64)
            if not (np.abs(values) < LARGEST_VALUE).all():  # NaN is not
                raise ValueError(
                    f"{tensor.name} holds values that are not finite or beyond 2^85, and cannot be published: give it "
                    'the role "frozen" or "local", or keep it out of the state (persistent=False).'
                )

    @cached_property
    def topics(self) -> Topics:
        """The topics of the federation."""
        return Topics(self.federation, self.root)

    @cached_property
    def schema(self) -> Schema:
        """The schema of the model."""
        return Schema.of(self.initial, self.roles)

    @property
    def untied(self) -> Self:
        """The same without ties, for a store that is older than ties."""
        roles, own = dict(self.roles or {}), {tensor.name: tensor.role for tensor in self.schema.tensors}
        return replace(self, roles={name: own.get(name, role) for name, role in roles.items()})

    @cached_property
    def directory(self) -> Path:
        """The store's directory."""
        return Path(self.store)

    @cached_property
    def asked(self) -> tuple[Moment, ...]:
        """The statistics to request.

        Raises:
            ValueError: the model has no tensors for them.
        """
        frozen = {tensor.name: tensor.size for tensor in self.schema.frozen}
        moments = self.moments or {}
        for name, channels in moments.items():
            for tensor in (f"{name}_mean", f"{name}_scale"):
                if frozen.get(tensor) != channels:
                    raise ValueError(
                        f"statistics {name!r} of {channels} channels need a frozen tensor {tensor!r} of as many "
                        "values: add it to the model, with the role 'frozen'."
                    )
        return tuple(Moment(name=name, channels=channels) for name, channels in moments.items())

    @cached_property
    def inputs(self) -> int | None:
        """Number of the model's inputs, if its normalisation shows it."""
        return inputs_of(self.schema)

    @property
    def largest_part(self) -> int | None:
        """Most bytes of a model's part, from the plan; None if only the broker and the devices limit it."""
        return self.smallest_chunk if self.strategy.plan.tier == MICRO else None

    def _check_masking(self) -> None:
        if not self.strategy.masked:
            return
        if self.helper_key is None or self.release_key is None:
            raise ValueError(
                "Secure aggregation needs helper_key, the public key of the mask helper, and release_key, which signs "
                "what is sent to the helper and whose holder alone can open its answers."
            )
        if self.moments:
            raise ValueError(
                "Secure aggregation takes no moments=: statistics of one device's data would be read by the "
                "aggregator. Freeze the constants yourself in initial=, or normalise on the devices."
            )

    def _check_shards(self) -> None:
        if not self.shards:
            return
        strategy = self.strategy
        obstacles = {
            "secure aggregation and differential privacy need single updates": strategy.masked
            or strategy.privacy is not None,
            "form='mixing', calibration and combine other than 'mean' compare the updates of single devices": (
                not strategy.sums
            ),
            "count_rows counts the single updates that changed a row": bool(strategy.count_rows),
            "sums of gateways (sites) cannot be summed again": bool(self.sites),
            "tensors in the role site need gateways, whose sums cannot be summed again": bool(self.schema.site),
            "a standby copies one store, and each shard has its own": self.standby.follow or self.standby.sync,
        }
        for why, is_so in obstacles.items():
            if is_so:
                raise ValueError(f"shards={self.shards} gives the aggregator sums, but {why}: leave one of them out.")

    def _check_statistics(self) -> None:
        if self.moments and self.strategy.privacy is not None:
            raise ValueError(
                "A private strategy takes no moments=: the pooled statistics of the devices' data would be published "
                "without noise, and with two devices each learns the other's exactly. Freeze the constants yourself in "
                "initial=, or normalise on the devices."
            )
        if self.moments and self.statistics_devices < 2:
            raise ValueError(
                f"statistics_devices is {self.statistics_devices}: it must be 2 or more, for the statistics of one "
                "device would be published as they are."
            )

    def _check_features(self) -> None:
        names = self.features
        if names is None:
            return
        if names and not sayable(names):
            raise ValueError(
                f"features names {listed(list(map(str, names)))}: at most {MOST} different names can be given, each of "
                f"at most {LONGEST} printable characters."
            )
        if names and self.inputs not in (None, len(names)):
            raise ValueError(f"the model has {self.inputs} inputs, features names {len(names)}: {listed(names)}.")


def inputs_of(schema: Schema) -> int | None:
    """Number of the model's inputs, if its normalisation shows it."""
    return next((tensor.size for tensor in schema.frozen if tensor.name == "input_mean"), None)
