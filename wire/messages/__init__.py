"""Every message of the protocol, as a pydantic model of its header.

Rules of evolution: add fields with defaults; never reorder, rename or reuse one, and never change a default, because a
field that equals its default does not travel; anything else needs a new root version. Unknown fields are ignored,
unknown kinds are refused, every length has a limit.
"""

from midge.wire.messages.announcement import (
    Announcement,
    Envelope,
    FrameInfo,
    Moment,
    Part,
    Participation,
    Plan,
    SiteCertificate,
    StrictPlan,
    Succession,
    check_codecs,
)
from midge.wire.messages.answers import Grant, Receipt, Settled, Trouble, Verdict, Vouch
from midge.wire.messages.decoding import (
    Answer,
    ToAggregator,
    decode,
    decode_alias,
    decode_announcement,
    decode_answer,
    decode_survey,
    decode_update,
    encode_announcement,
    is_kind,
)
from midge.wire.messages.device import Chunk, DeviceState, Fetch, Hello, Outgoing, Report, Statistics, Update
from midge.wire.messages.fields import (
    BODY_DIGEST,
    MICRO,
    MOST_GENERATION,
    MOST_TOKEN,
    MOST_VERSION,
    NO_LINEAGE,
    OUTBOX_LIMIT,
    Message,
    possible,
)
from midge.wire.messages.model_alias import ModelAlias
from midge.wire.messages.site_values import SiteValues
from midge.wire.messages.status import AggregatorState, AggregatorStatus, Claim, Health, HealthState
from midge.wire.messages.survey import Surveyed, SurveyRequest

__all__ = [
    "BODY_DIGEST",
    "MICRO",
    "MOST_GENERATION",
    "MOST_TOKEN",
    "MOST_VERSION",
    "NO_LINEAGE",
    "OUTBOX_LIMIT",
    "AggregatorState",
    "AggregatorStatus",
    "Announcement",
    "Answer",
    "Chunk",
    "Claim",
    "DeviceState",
    "Envelope",
    "Fetch",
    "FrameInfo",
    "Grant",
    "Health",
    "HealthState",
    "Hello",
    "Message",
    "ModelAlias",
    "Moment",
    "Outgoing",
    "Part",
    "Participation",
    "Plan",
    "Receipt",
    "Report",
    "Settled",
    "SiteCertificate",
    "SiteValues",
    "Statistics",
    "StrictPlan",
    "Succession",
    "SurveyRequest",
    "Surveyed",
    "ToAggregator",
    "Trouble",
    "Update",
    "Verdict",
    "Vouch",
    "check_codecs",
    "decode",
    "decode_alias",
    "decode_announcement",
    "decode_answer",
    "decode_survey",
    "decode_update",
    "encode_announcement",
    "is_kind",
    "possible",
]
