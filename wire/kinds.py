"""Every kind of message: its model, its description, and the purpose of its signature."""

from collections.abc import Mapping

from midge.wire import messages, overview, renewal, signing, standby
from midge.wire.messages import Message, masking, proofs

KINDS: Mapping[str, type[Message]] = {
    "update": messages.Update,
    "offer": messages.Update,
    "chunk": messages.Chunk,
    "fetch": messages.Fetch,
    "statistics": messages.Statistics,
    "prove": proofs.Prove,
    "hello": messages.Hello,
    "report": messages.Report,
    "receipt": messages.Receipt,
    "trouble": messages.Trouble,
    "proof": proofs.Proof,
    "vouch": messages.Vouch,
    "aggregator": messages.AggregatorStatus,
    "announcement": messages.Announcement,
    "alias": messages.ModelAlias,
    "survey": messages.SurveyRequest,
    "surveyed": messages.Surveyed,
    "part": messages.Part,
    "succession": messages.Succession,
    "claim": messages.Claim,
    "ask": overview.Ask,
    "overview": overview.Overview,
    "renew": renewal.RenewalRequest,
    "renewed": renewal.RenewalAnswer,
    "authorities": renewal.Authorities,
    "helper": masking.HelperStatement,
    "deposit": masking.Deposit,
    "dealt": masking.Piece,
    "standby": standby.StandbyMessage,
}
PURPOSES: Mapping[str, str] = {
    **dict.fromkeys(("hello", "update", "offer", "statistics", "report", "surveyed"), signing.DEVICE),
    "receipt": signing.RECEIPT,
    "trouble": signing.RECEIPT,
    "vouch": signing.RECEIPT,
    "aggregator": signing.AGGREGATOR,
    "claim": signing.AGGREGATOR,
    "ask": signing.OPERATOR,
    **dict.fromkeys(("renew", "renewed", "authorities"), signing.RENEWAL),
    "deposit": signing.DEPOSIT,
}
"""Purpose of the signature behind a frame of each kind."""
OF_FEDERATION = ("aggregator", "claim", "ask", "authorities", "deposit")
"""Kinds whose signatures name a federation and no device."""
SENTENCES: Mapping[str, str] = {
    "update": "a device's update: a trained minus a published model",
    "offer": "a device offers an update that is too large for one message",
    "chunk": "a chunk of an offered update",
    "fetch": "a device asks for chunks of the model again",
    "statistics": "a device's statistics of its data",
    "prove": "a device asks for the proof that its update is in a release",
    "hello": "a device's status",
    "report": "a device's results on its own data",
    "receipt": "the aggregator's verdicts for one device",
    "trouble": "what was dropped of a device, and why",
    "proof": "the proof that an update is in a release",
    "vouch": "an announcement is the aggregator's, for a device that verifies no signature",
    "aggregator": "the aggregator's status",
    "announcement": "which model to train from, and how",
    "alias": "which registered version of the model a name stands for",
    "survey": "an operator asks the devices for statistics of their rows",
    "surveyed": "a device's statistics of its rows, or why it gives none",
    "part": "a chunk of the model",
    "succession": "a release key's statement that another one signs after it",
    "claim": "an aggregator asks whether another one serves, or answers",
    "ask": "an operator asks for an overview",
    "overview": "a page of the federation's overview",
    "renew": "a device asks for new credentials",
    "renewed": "new credentials are granted, or refused",
    "authorities": "the authorities to trust",
    "helper": "the mask helper's keys",
    "deposit": "the aggregator names masked updates to the mask helper, and asks for the sum of their masks",
    "dealt": "a piece of the mask helper's sealed answer",
    "standby": "a sealed message between an aggregator and its standby",
    "envelope": "an announcement's envelope, or that of an alias, a survey or a succession",
    "snapshot": "a whole model",
    "step": "a step of the model",
    "sealed": "what is inside a seal",
}
"""Description of each kind; the last four are no messages."""
