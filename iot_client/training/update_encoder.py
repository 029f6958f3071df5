"""Encoding of an update: trained minus base parameters, in the plan's codec."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from midge.iot_client.training import residual
from midge.iot_client.training.fit import Fit
from midge.wire import chunks, codecs
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.schema import Parameters, Schema, Vector, Vectors, is_sane


class Unfit(Exception):
    """The result of a training is not worth sending: it is not finite."""


class NoRows(Unfit):
    """A training without data; there may be some later."""


class NoConsent(Unfit):
    """The owner has withdrawn consent: nothing of the training may be given."""


class TrainerError(ValueError):
    """The trainer's result is not an update; the message says what it must return."""


class NoFit(TrainerError, TypeError):
    """The trainer's result is not a fit at all."""


def checked(fit: Any) -> Fit:
    """The trainer's result, with tensors of torch converted to arrays.

    Raises:
        NoFit: it is not a `Fit` with a dict of arrays.
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
class EncodedUpdate:
    """An encoded update without identity: header, body, and the residual for the next one, if any."""

    update: Update
    body: bytes
    residual: bytes | None = None
    rho: float = 0.0
    """The privacy that it costs, if it has noise."""


Mask = Callable[[Vector, Update, Announcement, Schema, bytes | None], EncodedUpdate]
"""Masks a delta, given the header without an encoding, the announcement of its base, and the packed residual."""


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
    mask: Mask | None = None,
) -> EncodedUpdate:
    """Encode the update of one training.

    Args:
        fit: the trainer's result.
        state: the model that it was trained from.
        announcement: of that model.
        seconds: duration of the training.
        left: the packed residual of the update before it.
        seed: for the codec, different for each device and update.
        narrow: whether the device's link is narrow, so that the plan's `narrow_codec` takes precedence over `codec`.
        micro: whether the device keeps no feedback, so that the plan's `micro_codec` takes precedence over both.
        mask: masks the delta (`iot_client.masking`), in place of any codec; None if it is not masked.

    Raises:
        NoRows: it trained on none.
        Unfit: it holds NaN or infinity, or values too large for any codec.
        TrainerError: the trainer returned other tensors than it was given; every such one is named.
    """
    schema = state.schema
    if not fit.examples:
        raise NoRows("it trained on no rows: train() gave 0 examples")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is checked below
            delta = schema.flatten(fit.parameters) - state.values()
    except (ValueError, TypeError) as error:  # NumPy raises either for a value that is no number
        raise TrainerError(f"the trainer returned what it was not given: {error}.") from error
    if not np.isfinite(delta).all():
        raise Unfit("the training did not stay finite: its learning rate may be too high")
    tensors = covered(fit.tensors, schema)
    if tensors is not None:
        trained = np.zeros(schema.size, np.bool_)
        for place in schema.covered(tensors):
            trained[place] = True
        delta[~trained] = 0
    if mask is not None:  # the header says nothing of the training
        return mask(delta, update_of(announcement, "", b""), announcement, schema, left)
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
    return EncodedUpdate(update, body, after)


def with_site(made: EncodedUpdate, parameters: Parameters, schema: Schema) -> EncodedUpdate:
    """An encoded update, with the trained values of the site's tensors after the delta.

    Raises:
        Unfit: a value is not finite, or too large.
        TrainerError: the trainer returned other tensors than it was given.
    """
    wrong = [tensor.name for tensor in schema.site if _shape(parameters.get(tensor.name)) != tensor.shape]
    if wrong:
        raise TrainerError(f"the trainer returned what it was not given: {', '.join(wrong)} missing, or reshaped.")
    values = schema.pack_site(parameters)
    if not is_sane(values):
        raise Unfit("the training of the site's tensors did not stay finite: its learning rate may be too high")
    return replace(made, update=cut(made.update, body := made.body + values, len(values)), body=body)


def cut(update: Update, body: bytes, site_size: int) -> Update:
    """The header of an update whose body now ends with this number of bytes of a site's tensors."""
    return update.model_copy(update={"size": len(body), "sha256": chunks.checksum(body), "site_size": site_size})


def _shape(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(np.shape(value))


def update_of(announcement: Announcement, codec: str, body: bytes, **about: Any) -> Update:
    """The header of an encoded delta on this version. The outbox adds its identity and seq."""
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
    """Encode the deltas of several devices, a row each, and compute their residuals.

    Args:
        deltas: flat vectors, of shape (devices, schema.size).
        codec: its name.
        lineage: the federation's.
        schema: the model's.
        tensors: indices of the covered tensors; None is all. Residuals of the others are kept.
        feedback: whether the earlier residuals are added, and new ones kept.
        left: the earlier residual of each device, as returned here.
        seeds: for the codec, different for each device and update.

    Raises:
        WireError: the codec does not exist, or is not available here.
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
    with np.errstate(invalid="ignore"):  # the caller checks for non-finite values
        missing = wanted - coded.values
    norms = [() if each is None else each.norms for each in before]
    return coded, [each.pack() for each in residual.keep(missing, deltas, lineage, schema, norms=norms)]


def chosen(plan: Plan, *, narrow: bool = False, micro: bool = False) -> str:
    """The codec of this device's updates: the plan's, or a similar one if that is not available here."""
    return codecs.followable((micro and plan.micro_codec) or (narrow and plan.narrow_codec) or plan.codec)


def covered(names: Collection[str] | None, schema: Schema) -> tuple[int, ...] | None:
    """Indices of the shared tensors that were trained; None if all were.

    Raises:
        TrainerError: a name that is not one of them.
    """
    if names is None:
        return None
    shared = {tensor.name: index for index, tensor, _ in schema.shared}
    if unknown := sorted(set(names) - set(shared)):
        raise TrainerError(f"the fit names tensors that the federation does not learn: {', '.join(unknown)}.")
    return tuple(sorted(shared[name] for name in names))
