"""A device at a broker's URL."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final, Literal, cast

from midge.broker import connector
from midge.broker.mqtt.connection import Keepalive
from midge.broker.provisioning.held_credentials import HeldCredentials
from midge.event_types import DeviceEvent
from midge.iot_client.board.duty_cycle import Duty
from midge.iot_client.board.training_constraints import LOOK_EVERY, Condition
from midge.iot_client.board.usage_budget import Costs
from midge.iot_client.config import DeviceConfig, Listener, Train
from midge.iot_client.connection.identity import Key
from midge.iot_client.connection.prediction_topic import PredictionTopic
from midge.iot_client.connection.renewal import connecting
from midge.iot_client.connection.serve_channel import OnModel
from midge.iot_client.data.samples import Samples, Source
from midge.iot_client.device import Device as DeviceService
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.session.timers import PATIENCE
from midge.iot_client.state.local_tensors import Values
from midge.iot_client.state.memory_outbox import AnyOutbox
from midge.iot_client.state.model_comparison import KEEP, KeepRule
from midge.iot_client.state.model_keeper import Losses
from midge.iot_client.state.prediction import Predict
from midge.iot_client.training.evaluation import Evaluate
from midge.running import File, endpoint_of, run_script
from midge.wire.field_checks import Count, Positive, Unlimited, Whole, check_arguments
from midge.wire.lineage import State
from midge.wire.moments import Moments
from midge.wire.topics import DEFAULT_ROOT, device_name

BY_NAME: Final = "{name}.outbox"
"""An outbox in the current folder, by the device's name."""


class Device(DeviceService):
    """A device at a broker's URL; `run()` takes part until it is interrupted.

    Args:
        url: the broker's address, such as `mqtts://pump-17:secret@broker.local:8883`.
        user: user name at the broker, if it is not in the URL.
        password: of that user.
        cafile: the certificate authority to trust, PEM; None uses the system's.
        certfile: our own certificate, PEM, if the broker requires one.
        keyfile: the key of that certificate.
        outbox: the file that holds updates until they are settled, `NAME.outbox` in the current folder by default;
            None keeps them in memory.

    All other arguments are the fields of `iot_client.config.DeviceConfig`, which describes them.

    Raises:
        ValueError: an address or a name that cannot be used.
        KeyUnusable: a key cannot be read.

    Examples:
        >>> def train(parameters, plan):
        ...     return midge.Fit({"w": parameters["w"] + 0.1}, examples=10)
        >>> device = midge.Device("mqtt://localhost", federation="pumps", name="pump-17", train=train)
        >>> device.config.outbox
        'pump-17.outbox'
        >>> device.run()  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        federation: str,
        name: str,
        train: Train,
        outbox: str | Path | AnyOutbox | None = BY_NAME,
        user: str | None = None,
        password: str | None = None,
        cafile: File = None,
        certfile: File = None,
        keyfile: File = None,
        root: str = DEFAULT_ROOT,
        moments: Mapping[str, Moments] | Callable[[], Mapping[str, Moments]] | None = None,
        missing: Whole = 0,
        capabilities: Mapping[str, str | int | float | bool] | None = None,
        evaluate: Evaluate | None = None,
        on_model: OnModel | None = None,
        local: Values | None = None,
        predict: Predict | None = None,
        losses: Losses | None = None,
        keep: KeepRule | None = KEEP,
        samples: Samples | None = None,
        sources: Sequence[Source] = (),
        publish: PredictionTopic | None = None,
        features: Sequence[str] | None = None,
        end_if_unsuited: bool = False,
        conditions: Sequence[Condition] = (),
        link_conditions: Sequence[Condition] = (),
        duty: Duty | None = None,
        costs: Costs | None = None,
        outbox_bytes: Count | None = None,
        micro: bool = False,
        link: Literal["narrow"] | None = None,
        on_event: Listener | Callable[[DeviceEvent], None] | None = None,
        keepalive: Keepalive = 30,
        wait: bool = False,
        patience: Positive = PATIENCE,
        release_key: Key | Sequence[Key] | None = None,
        signing_key: Key | None = None,
        credentials: HeldCredentials | None = None,
        look_every: Unlimited | None = LOOK_EVERY,
        secure: RequireSecure | None = None,
        survey: bool = True,
        versions: MutableMapping[bytes, State] | None = None,
    ) -> None:
        check_arguments(Device.__init__, locals())
        self.endpoint = endpoint_of(
            url, user=user, password=password, cafile=cafile, certfile=certfile, keyfile=keyfile
        )
        super().__init__(
            DeviceConfig(
                connector=connector(self.endpoint) if credentials is None else connecting(credentials),
                federation=federation,
                name=name,
                train=train,
                outbox=BY_NAME.format(name=device_name(name)) if outbox == BY_NAME else outbox,
                root=root,
                moments=moments,
                missing=missing,
                capabilities=capabilities,
                evaluate=evaluate,
                on_model=on_model,
                local=local,
                predict=predict,
                losses=losses,
                keep=keep,
                samples=samples,
                sources=sources,
                publish=publish,
                features=features,
                end_if_unsuited=end_if_unsuited,
                conditions=conditions,
                link_conditions=link_conditions,
                duty=duty,
                costs=costs,
                outbox_bytes=outbox_bytes,
                micro=micro,
                link=link,
                on_event=cast("Listener | None", on_event),
                keepalive=keepalive,
                wait=wait,
                patience=patience,
                release_key=release_key,
                signing_key=signing_key,
                credentials=credentials,
                look_every=look_every,
                secure=secure,
                survey=survey,
                versions=versions,
            )
        )

    def run(self) -> None:
        run_script(self)
