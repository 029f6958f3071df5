"""From a fit to an update: what was trained minus what it was trained from, encoded as the plan says."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from midge.iot_client.training import residual
from midge.iot_client.training.fit import Fit
from midge.wire import chunks, codecs
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.schema import Schema, Vectors


class Unfit(Exception):
    """A training whose result is not worth sending: it did not stay finite."""


class NoRows(Unfit):
    """A training without data: there may be some later."""


class TrainerError(ValueError):
    """What the trainer gave back can be no update; the message says what it must give."""


class NoFit(TrainerError, TypeError):
    """What the trainer gave back is no fit at all."""


def checked(fit: Any) -> Fit:
    """What a trainer gave back, with arrays where it has tensors of torch.

    Raises:
        NoFit: it is no `Fit` of a dict of arrays.
    """
    if not isinstance(fit, Fit):
        raise NoFit(f"train() returned {type(fit).__name__}; it must return midge.Fit(parameters, examples=n)")
    parameters: Any = fit.parameters
    if not isinstance(parameters, Mapping):
        kind = type(parameters).__name__
        raise NoFit(f"train() returned a Fit whose parameters are {kind}; give a dict of all tensors by name")
    return replace(fit, parameters={name: _array(value) for name, value in parameters.items()})


def _array(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


@dataclass(frozen=True, slots=True)
class Made:
    """An update but for its identity, its body, and what the next one is to say beside its own, if anything."""

    update: Update
    body: bytes
    residual: bytes | None = None


def make_update(
    fit: Fit,
    state: State,
    announcement: Announcement,
    seconds: float,
    *,
    left: bytes | None = None,
    seed: int = 0,
    narrow: bool = False,
    micro: bool = False,
) -> Made:
    """The update of one training.

    Args:
        fit: what the trainer returned.
        state: what it was given.
        announcement: what asked for it.
        seconds: how long it took.
        left: what the update before it left to say, as its `residual`.
        seed: chance for the codec, another for each device and update.
        narrow: whether the device's link is, so that the plan's `narrow_codec` goes before its `codec`.
        micro: whether the device keeps no feedback, so that the plan's `micro_codec` goes before both.

    Raises:
        NoRows: it trained on none.
        Unfit: it holds NaN or infinity, or values so large that no codec can say them.
        TrainerError: the trainer returned other tensors than it was given; every such one is named.
    """
    schema = state.schema
    if not fit.examples:
        raise NoRows("it trained on no rows: train() gave 0 examples")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of float64, or of values far apart: looked for below
            delta = schema.flatten(fit.parameters) - state.values()
    except (ValueError, TypeError) as error:  # NumPy raises either for what is no number
        raise TrainerError(f"the trainer returned what it was not given: {error}.") from error
    if not np.isfinite(delta).all():
        raise Unfit("the training did not stay finite: its learning rate may be too high")
    tensors = covered(fit.tensors, schema)
    if tensors is not None:
        trained = np.zeros(schema.size, np.bool_)
        for place in schema.covered(tensors):
            trained[place] = True
        delta[~trained] = 0
    codec = chosen(announcement.plan, narrow=narrow, micro=micro)
    feedback = announcement.plan.feedback and not micro
    try:
        coded, (after,) = encode(
            delta[None], codec, announcement.lineage, schema, tensors, feedback=feedback, left=[left], seeds=[seed]
        )
        body = coded.body(0)
        if after is not None and not np.isfinite(coded.values).all():
            raise codecs.NonFinite("it is too large")
    except WireError as error:
        raise Unfit(f"what was trained cannot be encoded as {codec}: {error}") from error
    finite = {name[:64]: float(value) for name, value in list(fit.metrics.items())[:32] if np.isfinite(value)}
    update = update_of(
        announcement,
        codec,
        body,
        tensors=tensors,
        examples=fit.examples,
        steps=fit.steps,
        seconds=seconds,
        metrics=finite,
        feedback=feedback or not codecs.parse(codec).feedback,
    )
    return Made(update, body, after)


def update_of(announcement: Announcement, codec: str, body: bytes, **about: Any) -> Update:
    """The header of an encoded delta on this version. The outbox gives it its identity and its seq."""
    return Update(
        outbox=0,
        first=1,
        seq=1,
        lineage=announcement.lineage,
        generation=announcement.generation,
        base=announcement.version,
        base_digest=announcement.digest[:8],
        codec=codec,
        size=len(body),
        sha256=chunks.checksum(body),
        plan=announcement.plan.revision,
        **about,
    )


def encode(
    deltas: Vectors,
    codec: str,
    lineage: bytes,
    schema: Schema,
    tensors: tuple[int, ...] | None = None,
    *,
    feedback: bool,
    left: Sequence[bytes | None],
    seeds: Sequence[int],
) -> tuple[codecs.EncodedDeltas, list[bytes | None]]:
    """The deltas of several devices, a row each, and what each of them is to say with its next.

    Args:
        deltas: flat vectors, of shape (devices, schema.size).
        codec: in which they are said, by its name.
        lineage: the federation's.
        schema: the model's.
        tensors: indices of those that are covered; None is all. What was left of the others stays left.
        feedback: whether what was left before is said with them, and what is left now is kept.
        left: what the update before has left, device by device, as it is returned here.
        seeds: chance for the codec, another for each device and update.

    Raises:
        WireError: the codec is none, or cannot be had here.
    """
    before = [residual.unpack(each, lineage, schema) if each and feedback else None for each in left]
    wanted = deltas
    if any(before):
        wanted = deltas.copy()
        for row, each in enumerate(before):
            if each is not None:
                wanted[row] += each.values
    coded = codecs.EncodedDeltas(wanted, schema, codec, tensors, seeds=seeds)
    if not (feedback and codecs.parse(codec).feedback):
        return coded, [None] * len(deltas)
    with np.errstate(invalid="ignore"):  # who encodes looks for what is not finite
        missing = wanted - coded.values
    norms = [() if each is None else each.norms for each in before]
    return coded, [each.pack() for each in residual.keep(missing, deltas, lineage, schema, norms=norms)]


def chosen(plan: Plan, *, narrow: bool = False, micro: bool = False) -> str:
    """The codec that this device answers the plan with: the plan's, or a near one where this device cannot do it."""
    return codecs.followable((micro and plan.micro_codec) or (narrow and plan.narrow_codec) or plan.codec)


def covered(names: Collection[str] | None, schema: Schema) -> tuple[int, ...] | None:
    """Indices of the shared tensors that were trained; None where all were.

    Raises:
        TrainerError: a name that is not one of them.
    """
    if names is None:
        return None
    shared = {tensor.name: index for index, tensor, _ in schema.shared}
    if unknown := sorted(set(names) - set(shared)):
        raise TrainerError(f"the fit names tensors that the federation does not learn: {', '.join(unknown)}.")
    return tuple(sorted(shared[name] for name in names))
