"""An aggregator at a broker's URL."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from midge.aggregator.config import (
    CHECKPOINT_RECORDS,
    CHUNK,
    SMALLEST_CHUNK,
    AggregatorConfig,
    Evaluate,
    Factor,
    Listener,
    Processes,
    Rules,
    SmallestChunk,
)
from midge.aggregator.core.presets import balanced
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.aggregator.model.statistics import FACTOR
from midge.aggregator.publish.announcement_signer import LIFETIME
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.service import Aggregator as AggregatorService
from midge.aggregator.standby.policy import StandbyPolicy
from midge.aggregator.store.device_erasure import RETENTION
from midge.broker import connector
from midge.broker.mqtt.connection import Keepalive
from midge.event_types import AggregatorEvent
from midge.initial import read_initial
from midge.running import File, endpoint_of, run_script
from midge.wire.field_checks import Count, NotNegative, Positive, check_arguments
from midge.wire.signing import PublicKey
from midge.wire.topics import DEFAULT_ROOT


class Aggregator(AggregatorService):
    """An aggregator at a broker's URL; `run()` serves until it is interrupted.

    Args:
        url: the broker's address, such as `mqtts://aggregator:secret@broker.local:8883`.
        federation: the federation's name.
        initial: the initial model: a dict of arrays, a torch state dict, a torch module, or a file of
            pre-trained weights (.safetensors, .npz, a torch state dict as .pt).
        store: a directory of this aggregator's own.
        like: the model that such a file must fit, as a module or a dict of arrays.
        user: user name at the broker, if it is not in the URL.
        password: of that user.
        cafile: the certificate authority to trust, PEM; None uses the system's.
        certfile: our own certificate, PEM, if the broker requires one.
        keyfile: the key of that certificate.
        strategy: when and how updates become the next model; `balanced()` by default.
        root: the topic root; this and all other arguments are those of `aggregator.config.AggregatorConfig`.

    Raises:
        ValueError: an address, a name, a model or a strategy that cannot be used.

    Examples:
        >>> aggregator = midge.Aggregator(
        ...     "mqtt://localhost", federation="pumps", initial={"w": np.zeros(3, np.float32)}, store="pumps"
        ... )
        >>> aggregator.config.strategy.name
        'balanced'
        >>> aggregator.run()  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        federation: str,
        initial: Any,
        store: str | Path,
        like: Any = None,
        user: str | None = None,
        password: str | None = None,
        cafile: File = None,
        certfile: File = None,
        keyfile: File = None,
        strategy: Rules | None = None,
        root: str = DEFAULT_ROOT,
        roles: Mapping[str, str] | None = None,
        moments: Mapping[str, Count] | None = None,
        statistics_devices: Count = 5,
        statistics_deadline: NotNegative = 10.0,
        statistics_factor: Factor | None = FACTOR,
        features: Sequence[str] | None = None,
        evaluate: Evaluate | None = None,
        on_event: Listener | Callable[[AggregatorEvent], None] | None = None,
        chunk: Count = CHUNK,
        smallest_chunk: SmallestChunk = SMALLEST_CHUNK,
        memory: Count = 2**30,
        keepalive: Keepalive = 30,
        checkpoint_records: Count = CHECKPOINT_RECORDS,
        replace: bool = False,
        release_key: str | Path | None = None,
        announcement_lifetime: Positive = LIFETIME,
        raise_epoch: bool = False,
        device_keys: Mapping[str, bytes | PublicKey] | str | Path | None = None,
        require_signed: bool = False,
        require_sealed: bool = False,
        post_quantum: bool = False,
        limits: IngressLimits | None = None,
        retention: NotNegative | None = RETENTION,
        registry: RegistryPolicy | None = None,
        helper_key: bytes | str | Path | None = None,
        sites: Sequence[str] = (),
        standby: StandbyPolicy | None = None,
        shards: Processes = 0,
    ) -> None:
        check_arguments(Aggregator.__init__, locals())
        self.endpoint = endpoint_of(
            url, user=user, password=password, cafile=cafile, certfile=certfile, keyfile=keyfile
        )
        parameters, told = read_initial(initial, like)
        # A full name would take precedence over a user's pattern.
        told = {name: role for name, role in told.items() if not any(fnmatchcase(name, each) for each in roles or ())}
        super().__init__(
            AggregatorConfig(
                connector=connector(self.endpoint),
                federation=federation,
                initial=parameters,
                store=store,
                strategy=balanced() if strategy is None else strategy,
                root=root,
                roles={**told, **(roles or {})},
                moments=moments,
                statistics_devices=statistics_devices,
                statistics_deadline=statistics_deadline,
                statistics_factor=statistics_factor,
                features=features,
                evaluate=evaluate,
                on_event=cast("Listener | None", on_event),
                chunk=chunk,
                smallest_chunk=smallest_chunk,
                memory=memory,
                keepalive=keepalive,
                checkpoint_records=checkpoint_records,
                replace=replace,
                release_key=release_key,
                announcement_lifetime=announcement_lifetime,
                raise_epoch=raise_epoch,
                device_keys=device_keys,
                require_signed=require_signed,
                require_sealed=require_sealed,
                post_quantum=post_quantum,
                credential_files=self.endpoint.credential_files,
                limits=limits or IngressLimits(),
                retention=retention,
                registry=registry or RegistryPolicy(),
                helper_key=helper_key,
                sites=sites,
                standby=standby or StandbyPolicy(),
                shards=shards,
            )
        )

    def run(self) -> None:
        """Serve until interrupted.

        Raises:
            RuntimeError: it has shards, which are processes of their own.
        """
        if self.config.shards:
            raise RuntimeError(
                f"shards={self.config.shards} are processes, which `midge aggregate MODULE:ATTRIBUTE` starts: use it "
                "in place of run()."
            )
        run_script(self)
