# Made from the registry in midge/events.py, by: python tools/event_types.py

from typing import Any, Literal, Required, TypeAlias, TypedDict

class _Event(TypedDict):
    time: float

class _DeviceEvent(_Event):
    device: str

class AggregatorAlarmEvent(_Event, total=False):
    event: Required[Literal["alarm"]]
    why: str

class AggregatorAliasEvent(_Event, total=False):
    event: Required[Literal["alias"]]
    champion: int
    candidate: int
    share: float
    where: dict[str, Any]
    why: str
    by: str
    rolled_back: int | None

class AlphaEvent(_Event, total=False):
    event: Required[Literal["alpha"]]
    rate: float
    limit: float
    devices: int
    bounded: bool

class ClippedEvent(_Event, total=False):
    event: Required[Literal["clipped"]]
    device: str
    step: int
    scale: float

class AggregatorClockEvent(_Event, total=False):
    event: Required[Literal["clock"]]
    why: str

class AggregatorConnectedEvent(_Event, total=False):
    event: Required[Literal["connected"]]

class DampedEvent(_Event, total=False):
    event: Required[Literal["damped"]]
    damping: float
    rate: float

class AggregatorDeviceEvent(_Event, total=False):
    event: Required[Literal["device"]]
    device: str
    state: str

class AggregatorDisconnectedEvent(_Event, total=False):
    event: Required[Literal["disconnected"]]
    why: str
    refused: int | bool

class DroppedEvent(_Event, total=False):
    event: Required[Literal["dropped"]]
    topic: str
    why: str
    untold: int

class EncoderEvent(_Event, total=False):
    event: Required[Literal["encoder"]]
    device: str
    codec: str
    why: str

class ErasedEvent(_Event, total=False):
    event: Required[Literal["erased"]]
    device: str
    records: int
    bodies: int
    checkpoints: int

class EvaluationEvent(_Event, total=False):
    event: Required[Literal["evaluation"]]
    version: int
    step: int
    metrics: dict[str, Any]

class AggregatorEvaluationFailedEvent(_Event, total=False):
    event: Required[Literal["evaluation_failed"]]
    version: int
    step: int
    why: str

class FeaturesEvent(_Event, total=False):
    event: Required[Literal["features"]]
    features: list[str]

class FederatedEvaluationEvent(_Event, total=False):
    event: Required[Literal["federated_evaluation"]]
    version: int
    devices: int
    metrics: dict[str, Any]

class FetchedAgainEvent(_Event, total=False):
    event: Required[Literal["fetched_again"]]
    device: str
    version: int
    part: int
    size: int
    why: str

class FreezeEvent(_Event, total=False):
    event: Required[Literal["freeze"]]
    devices: int

class AggregatorFullEvent(_Event, total=False):
    event: Required[Literal["full"]]
    why: str

class HealthEvent(_Event, total=False):
    event: Required[Literal["health"]]
    state: str
    why: str
    before: str

class HelperAwayEvent(_Event, total=False):
    event: Required[Literal["helper_away"]]
    waiting: int

class HelperBackEvent(_Event, total=False):
    event: Required[Literal["helper_back"]]

class HeldEvent(_Event, total=False):
    event: Required[Literal["held"]]
    device: str
    seq: int
    verdict: str
    why: str

class LeftOutEvent(_Event, total=False):
    event: Required[Literal["left_out"]]
    device: str
    largest: int | None
    least: int
    why: str

class LimitedEvent(_Event, total=False):
    event: Required[Literal["limited"]]
    why: str
    largest: int | None
    chunk: int

class LocalStepsEvent(_Event, total=False):
    event: Required[Literal["local_steps"]]
    steps: int | None
    recipe: int

class OrderRefusedEvent(_Event, total=False):
    event: Required[Literal["order_refused"]]
    verb: str
    version: int
    why: str

class OtherBaseEvent(_Event, total=False):
    event: Required[Literal["other_base"]]
    device: str
    version: int

class PartsEvent(_Event, total=False):
    event: Required[Literal["parts"]]
    largest: int | None
    earlier: bool

class AggregatorProgressEvent(_Event, total=False):
    event: Required[Literal["progress"]]
    device: str
    way: Literal["up", "down"]
    done: int
    total: int

class PutBackEvent(_Event, total=False):
    event: Required[Literal["put_back"]]
    announced: int | None
    version: int

class QuarantineEvent(_Event, total=False):
    event: Required[Literal["quarantine"]]
    device: str
    seconds: float

class ReadmittedEvent(_Event, total=False):
    event: Required[Literal["readmitted"]]
    device: str

class RefusedAlwaysEvent(_Event, total=False):
    event: Required[Literal["refused_always"]]
    device: str
    verdict: str
    why: str
    refused: int | bool

class SumTooLongEvent(_Event, total=False):
    event: Required[Literal["sum_too_long"]]
    factor: float
    devices: int

class RegisteredEvent(_Event, total=False):
    event: Required[Literal["registered"]]
    version: int
    by: str
    pruned: list[int]

class ReleaseEvent(_Event, total=False):
    event: Required[Literal["release"]]
    version: int
    step: int
    devices: int

class ReloadedEvent(_Event, total=False):
    event: Required[Literal["reloaded"]]
    file: str
    changed: list[str]

class RepeatEvent(_Event, total=False):
    event: Required[Literal["repeat"]]
    device: str
    seq: int
    verdict: str

class ReportEvent(_Event, total=False):
    event: Required[Literal["report"]]
    device: str
    version: int
    metrics: dict[str, Any]

class RevokedEvent(_Event, total=False):
    event: Required[Literal["revoked"]]
    device: str
    dropped: int

class RoomEvent(_Event, total=False):
    event: Required[Literal["room"]]

class ServeEvent(_Event, total=False):
    event: Required[Literal["serve"]]
    version: int
    step: int

class SilentEvent(_Event, total=False):
    event: Required[Literal["silent"]]
    devices: int
    records: int
    bodies: int
    checkpoints: int

class StandbyEvent(_Event, total=False):
    event: Required[Literal["standby"]]
    state: str
    why: str

class ShardEndedEvent(_Event, total=False):
    event: Required[Literal["shard_ended"]]
    site: str
    code: int

class StartEvent(_Event, total=False):
    event: Required[Literal["start"]]
    lineage: str
    version: int
    step: int

class StatisticsConstantEvent(_Event, total=False):
    event: Required[Literal["statistics_constant"]]
    channels: list[str]

class StatisticsLimitedEvent(_Event, total=False):
    event: Required[Literal["statistics_limited"]]
    device: str
    why: str

class StatisticsOffEvent(_Event, total=False):
    event: Required[Literal["statistics_off"]]
    device: str
    why: str

class StopEvent(_Event, total=False):
    event: Required[Literal["stop"]]
    version: int
    step: int

class SuspectedEvent(_Event, total=False):
    event: Required[Literal["suspected"]]
    device: str

class TrialEvent(_Event, total=False):
    event: Required[Literal["trial"]]
    finding: str
    why: str
    evidence: dict[str, Any]

class UndampedEvent(_Event, total=False):
    event: Required[Literal["undamped"]]
    damping: float
    rate: float

class UnsummedEvent(_Event, total=False):
    event: Required[Literal["unsummed"]]
    dropped: int
    why: str

class UnlikeEvent(_Event, total=False):
    event: Required[Literal["unlike"]]
    device: str
    why: str

class UntoldEvent(_Event, total=False):
    event: Required[Literal["untold"]]
    events: int

class AggregatorUntrustedEvent(_Event, total=False):
    event: Required[Literal["untrusted"]]
    why: str

class UpdateEvent(_Event, total=False):
    event: Required[Literal["update"]]
    device: str
    seq: int
    verdict: str
    why: str
    base: int
    staleness: int
    weight: float
    size: int

class WithdrawnEvent(_Event, total=False):
    event: Required[Literal["withdrawn"]]
    device: str

AggregatorEvent: TypeAlias = (
    AggregatorAlarmEvent
    | AggregatorAliasEvent
    | AlphaEvent
    | ClippedEvent
    | AggregatorClockEvent
    | AggregatorConnectedEvent
    | DampedEvent
    | AggregatorDeviceEvent
    | AggregatorDisconnectedEvent
    | DroppedEvent
    | EncoderEvent
    | ErasedEvent
    | EvaluationEvent
    | AggregatorEvaluationFailedEvent
    | FeaturesEvent
    | FederatedEvaluationEvent
    | FetchedAgainEvent
    | FreezeEvent
    | AggregatorFullEvent
    | HealthEvent
    | HelperAwayEvent
    | HelperBackEvent
    | HeldEvent
    | LeftOutEvent
    | LimitedEvent
    | LocalStepsEvent
    | OrderRefusedEvent
    | OtherBaseEvent
    | PartsEvent
    | AggregatorProgressEvent
    | PutBackEvent
    | QuarantineEvent
    | ReadmittedEvent
    | RefusedAlwaysEvent
    | SumTooLongEvent
    | RegisteredEvent
    | ReleaseEvent
    | ReloadedEvent
    | RepeatEvent
    | ReportEvent
    | RevokedEvent
    | RoomEvent
    | ServeEvent
    | SilentEvent
    | StandbyEvent
    | ShardEndedEvent
    | StartEvent
    | StatisticsConstantEvent
    | StatisticsLimitedEvent
    | StatisticsOffEvent
    | StopEvent
    | SuspectedEvent
    | TrialEvent
    | UndampedEvent
    | UnsummedEvent
    | UnlikeEvent
    | UntoldEvent
    | AggregatorUntrustedEvent
    | UpdateEvent
    | WithdrawnEvent
)

class DeviceAggregatorEvent(_DeviceEvent, total=False):
    event: Required[Literal["aggregator"]]
    state: str
    why: str
    version: int

class DeviceAlarmEvent(_DeviceEvent, total=False):
    event: Required[Literal["alarm"]]
    why: str

class DeviceAliasEvent(_DeviceEvent, total=False):
    event: Required[Literal["alias"]]
    alias: str
    version: int

class AuthoritiesEvent(_DeviceEvent, total=False):
    event: Required[Literal["authorities"]]
    digest: str

class AwakeEvent(_DeviceEvent, total=False):
    event: Required[Literal["awake"]]

class DeviceClockEvent(_DeviceEvent, total=False):
    event: Required[Literal["clock"]]
    why: str

class DeviceConnectedEvent(_DeviceEvent, total=False):
    event: Required[Literal["connected"]]

class DeviceDisconnectedEvent(_DeviceEvent, total=False):
    event: Required[Literal["disconnected"]]
    why: str
    refused: int | bool

class EvaluatedEvent(_DeviceEvent, total=False):
    event: Required[Literal["evaluated"]]
    version: int
    examples: int
    metrics: dict[str, Any]

class DeviceEvaluationFailedEvent(_DeviceEvent, total=False):
    event: Required[Literal["evaluation_failed"]]
    version: int
    why: str

class FetchFailedEvent(_DeviceEvent, total=False):
    event: Required[Literal["fetch_failed"]]
    why: str

class DeviceFullEvent(_DeviceEvent, total=False):
    event: Required[Literal["full"]]
    why: str

class HinderedEvent(_DeviceEvent, total=False):
    event: Required[Literal["hindered"]]
    why: str

class IntakeEvent(_DeviceEvent, total=False):
    event: Required[Literal["intake"]]
    useless: bool
    sources: list[dict[str, Any]]

class KeepsEvent(_DeviceEvent, total=False):
    event: Required[Literal["keeps"]]
    version: int
    newer: int
    why: str

class KeepsNoMoreEvent(_DeviceEvent, total=False):
    event: Required[Literal["keeps_no_more"]]
    version: int
    why: str

class KilledTrainingEvent(_DeviceEvent, total=False):
    event: Required[Literal["killed_training"]]
    why: str
    killed: int

class LossesFailedEvent(_DeviceEvent, total=False):
    event: Required[Literal["losses_failed"]]
    version: int
    why: str

class MovedEvent(_DeviceEvent, total=False):
    event: Required[Literal["moved"]]
    site: str

class SiteValuesEvent(_DeviceEvent, total=False):
    event: Required[Literal["site_values"]]
    site: str
    devices: int

class MutedEvent(_DeviceEvent, total=False):
    event: Required[Literal["muted"]]
    why: str

class OnModelFailedEvent(_DeviceEvent, total=False):
    event: Required[Literal["on_model_failed"]]
    why: str
    version: int

class ExpiredEvent(_DeviceEvent, total=False):
    event: Required[Literal["expired"]]
    rows: int

class WithheldEvent(_DeviceEvent, total=False):
    event: Required[Literal["withheld"]]
    updates: int

class PredictsOnlyEvent(_DeviceEvent, total=False):
    event: Required[Literal["predicts_only"]]
    why: str

class DeviceProgressEvent(_DeviceEvent, total=False):
    event: Required[Literal["progress"]]
    way: Literal["up", "down"]
    done: int
    total: int

class ReceiptEvent(_DeviceEvent, total=False):
    event: Required[Literal["receipt"]]
    outbox: int
    seq: int
    verdict: str
    why: str
    retry_after: float
    repeat: bool
    weight: float
    staleness: int
    body: bytes

class RefusedEvent(_DeviceEvent, total=False):
    event: Required[Literal["refused"]]
    topic: str
    why: str

class RenewalRefusedEvent(_DeviceEvent, total=False):
    event: Required[Literal["renewal_refused"]]
    why: str

class RenewedEvent(_DeviceEvent, total=False):
    event: Required[Literal["renewed"]]
    kept: int
    unsure: int

class RenewingEvent(_DeviceEvent, total=False):
    event: Required[Literal["renewing"]]

class RottedEvent(_DeviceEvent, total=False):
    event: Required[Literal["rotted"]]
    why: str
    lost: int

class SettledEvent(_DeviceEvent, total=False):
    event: Required[Literal["settled"]]
    outbox: int
    through: int

class SleepingEvent(_DeviceEvent, total=False):
    event: Required[Literal["sleeping"]]
    wakes: float
    seconds: float

class StoredEvent(_DeviceEvent, total=False):
    event: Required[Literal["stored"]]
    seq: int
    size: int
    residual: float
    written: int

class SurveyAnsweredEvent(_DeviceEvent, total=False):
    event: Required[Literal["survey_answered"]]
    rows: int
    why: str

class TrainedEvent(_DeviceEvent, total=False):
    event: Required[Literal["trained"]]
    version: int
    seconds: float

class TrainerFailedEvent(_DeviceEvent, total=False):
    event: Required[Literal["trainer_failed"]]
    why: str
    failed: int

class TrainingEvent(_DeviceEvent, total=False):
    event: Required[Literal["training"]]
    version: int

class TroubleEvent(_DeviceEvent, total=False):
    event: Required[Literal["trouble"]]
    why: str

class UnannouncedEvent(_DeviceEvent, total=False):
    event: Required[Literal["unannounced"]]
    why: str

class UncountedEvent(_DeviceEvent, total=False):
    event: Required[Literal["uncounted"]]
    why: str

class UnfitEvent(_DeviceEvent, total=False):
    event: Required[Literal["unfit"]]
    why: str

class UnhinderedEvent(_DeviceEvent, total=False):
    event: Required[Literal["unhindered"]]
    why: str

class UnmutedEvent(_DeviceEvent, total=False):
    event: Required[Literal["unmuted"]]
    why: str

class DeviceUntrustedEvent(_DeviceEvent, total=False):
    event: Required[Literal["untrusted"]]
    channel: str
    why: str

UnusualEvent = TypedDict(
    "UnusualEvent",
    {
        "event": Required[Literal["unusual"]],
        "time": Required[float],
        "device": Required[str],
        "federation": str,
        "version": int,
        "label": str,
        "class": str,
        "prediction": float,
        "score": float,
        "threshold": float,
        "alarm": bool,
    },
    total=False,
)

UsualEvent = TypedDict(
    "UsualEvent",
    {
        "event": Required[Literal["usual"]],
        "time": Required[float],
        "device": Required[str],
        "federation": str,
        "version": int,
        "label": str,
        "class": str,
        "prediction": float,
        "score": float,
        "threshold": float,
        "alarm": bool,
    },
    total=False,
)

DeviceEvent: TypeAlias = (
    DeviceAggregatorEvent
    | DeviceAlarmEvent
    | DeviceAliasEvent
    | AuthoritiesEvent
    | AwakeEvent
    | DeviceClockEvent
    | DeviceConnectedEvent
    | DeviceDisconnectedEvent
    | EvaluatedEvent
    | DeviceEvaluationFailedEvent
    | FetchFailedEvent
    | DeviceFullEvent
    | HinderedEvent
    | IntakeEvent
    | KeepsEvent
    | KeepsNoMoreEvent
    | KilledTrainingEvent
    | LossesFailedEvent
    | MovedEvent
    | SiteValuesEvent
    | MutedEvent
    | OnModelFailedEvent
    | ExpiredEvent
    | WithheldEvent
    | PredictsOnlyEvent
    | DeviceProgressEvent
    | ReceiptEvent
    | RefusedEvent
    | RenewalRefusedEvent
    | RenewedEvent
    | RenewingEvent
    | RottedEvent
    | SettledEvent
    | SleepingEvent
    | StoredEvent
    | SurveyAnsweredEvent
    | TrainedEvent
    | TrainerFailedEvent
    | TrainingEvent
    | TroubleEvent
    | UnannouncedEvent
    | UncountedEvent
    | UnfitEvent
    | UnhinderedEvent
    | UnmutedEvent
    | DeviceUntrustedEvent
    | UnusualEvent
    | UsualEvent
)
