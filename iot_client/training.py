"""From a fit to an update: what was trained minus what it was trained from, encoded as the plan says."""

import hashlib
from dataclasses import dataclass

import numpy as np

from iot_client.fit import Fit
from wire import codecs
from wire.errors import WireError
from wire.lineage import State
from wire.messages import Announcement, Update


class Unfit(Exception):
    """A training whose result is not worth sending: it did not stay finite."""


class TrainerError(ValueError):
    """What the trainer gave back can be no update; the message says what it must give."""


@dataclass(frozen=True, slots=True)
class Made:
    """An update but for its identity, and its body."""

    update: Update
    body: bytes


def make_update(fit: Fit, state: State, announcement: Announcement, seconds: float) -> Made:
    """The update of one training.

    Raises:
        Unfit: it holds NaN or infinity, or the plan asks for what this version cannot do.
        TrainerError: the trainer returned other tensors than it was given; every such one is named.
    """
    schema = state.schema
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of float64, or of values far apart: looked for below
            delta = schema.flatten(fit.parameters) - state.values()
    except ValueError as error:
        raise TrainerError(f"the trainer returned what it was not given: {error}.") from error
    if not np.isfinite(delta).all():
        raise Unfit("the training did not stay finite: its learning rate may be too high")
    try:
        body = codecs.encode_delta(delta, schema, announcement.plan.codec)
    except WireError as error:
        raise Unfit(f"the federation's plan cannot be followed: {error}") from error
    finite = {name[:64]: float(value) for name, value in list(fit.metrics.items())[:32] if np.isfinite(value)}
    update = Update(
        outbox=0,
        first=1,
        seq=1,
        lineage=announcement.lineage,
        generation=announcement.generation,
        base=announcement.version,
        schema_hash=schema.hash,
        codec=announcement.plan.codec,
        size=len(body),
        sha256=hashlib.sha256(body).digest(),
        examples=int(fit.examples),  # a NumPy integer is none for a header
        steps=int(fit.steps),
        seconds=seconds,
        plan=announcement.plan.revision,
        metrics=finite,
    )
    return Made(update, body)
