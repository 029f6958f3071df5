"""Presets: functions that return a `Strategy`.

Each takes the arguments of its paper; every other field of a `Strategy` can be given by name.
"""

from dataclasses import replace
from typing import Any, Literal

from midge.aggregator.core.optimizers import Decay, Optimizer, adam
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.staleness import constant, polynomial, relative
from midge.aggregator.core.strategy import Calibration, Fairness, Form, Rate, Staled, Strategy
from midge.wire.field_checks import Count, NotNegative, Positive, Whole, check_arguments, check_value
from midge.wire.masking import HIDING, LEAST_RING, NOISY_LEVELS, ring_for
from midge.wire.messages import Plan
from midge.wire.messages.masking import Least, Levels, Masking, Scale, Slices


def balanced(
    buffer_size: Count | None = None,
    server_rate: Rate | None = None,
    fairness: Fairness | None = 4.0,
    *,
    deadline: Positive | None = 10.0,
    serve_decay: Decay = 0.9,
    serve_interval: NotNegative | None = 60.0,
    **others: Any,
) -> Strategy:
    """Midge's default: a small buffer, equal weight of all devices over time, and a moving average for serving.

    K follows the number of devices (`Strategy.size`), the rate their measured delays (`aggregator.core.gain_margin`).
    An update that is late for its own device counts less (`aggregator.core.staleness.relative`); one of a slow device
    does not, because that would neglect its data. Devices that contribute rarely count more, frequent ones less, within
    a factor of `fairness` (`aggregator.core.participation_counts`); the served moving average smooths the noise that
    this adds. In a step, a delta is scaled down to three times the fleet's reference norm, a median over devices. No
    device has more than a small share of the model's recent movement (`aggregator.core.influence`), and one that always
    opposed most of the others counts less (`aggregator.core.standings`).

    Examples:
        >>> midge.balanced().name
        'balanced'
        >>> midge.balanced(plan=midge.Plan(learning_rate=0.05), pace=midge.Pace(interval=60.0)).plan.learning_rate
        0.05
    """
    check_arguments(balanced, locals())
    return Strategy(
        name="balanced",
        staleness=_given(others, "staleness", relative()),
        rate=server_rate,
        buffer_size=buffer_size,
        normalise="weight",
        fairness=fairness,
        deadline=deadline,
        clip=others.pop("clip", 3.0),
        robust=others.pop("robust", True),
        serve_decay=serve_decay,
        serve_interval=serve_interval,
        steers_local_steps=others.pop("steers_local_steps", True),
        **_planned(others),
    )


def fedasync(
    alpha: Rate | None = 0.6,
    staleness: Staled | None = None,
    form: Form = "mixing",
    *,
    rho: NotNegative = 0.0,
    **others: Any,
) -> Strategy:
    """Every update is a step (FedAsync, Xie, Koyejo, Gupta, arXiv:1903.03934).

    As published (Algorithm 1): x ← (1 − α_τ)·x + α_τ·(p_v + Δ) with α_τ = α·s(τ), and the local term (ρ/2)·|x − x_v|²
    in the devices' training. There is no clipping (but of what the model's grid cannot follow), no correction for rare
    devices and no average. The form `delta` is x ← x + α_τ·Δ, which does not pull x back towards the update's base.

    While a device trains, n − 1 others mix in theirs: if α_τ·n is above about 2.5, each of them is a large part of the
    model, which then oscillates with the latest device. So α is bounded by the number of devices, and a warning says
    so; with `bounded=False` only the warning is left. With the polynomial s(τ) the bound takes effect from some 20
    devices on.

    Examples:
        >>> midge.fedasync(alpha=0.9, staleness=midge.hinge()).rate
        0.9
    """
    check_arguments(fedasync, locals())
    return Strategy(
        name="fedasync",
        staleness=polynomial(0.5) if staleness is None else staleness,
        rate=alpha,
        form=form,
        norm_limit=others.pop("norm_limit", None),
        **_planned(others if rho == 0 else {**others, "plan": _proximal(others.get("plan"), rho)}),
    )


def fedbuff(
    buffer_size: Count = 10,
    server_rate: Rate = 1.0,
    staleness: Staled | None = None,
    normalise: Literal["count", "weight"] = "count",
    *,
    deadline: Positive | None = 10.0,
    **others: Any,
) -> Strategy:
    """K updates are a step (FedBuff, Nguyen et al., AISTATS 2022, arXiv:2106.06639).

    x ← x + η · Σ s(τ_i)·Δ_i / K with s(τ) = 1/√(1+τ), as published; `normalise="weight"` divides by Σ s(τ_i)
    instead, so that the discounts are relative within a buffer. Several updates of one device share its weight.

    Examples:
        >>> midge.fedbuff(10, normalise="weight").buffer_size
        10
    """
    check_arguments(fedbuff, locals())
    return Strategy(
        name="fedbuff",
        staleness=polynomial(0.5) if staleness is None else staleness,
        rate=server_rate,
        buffer_size=buffer_size,
        normalise=normalise if buffer_size > 1 else "none",
        deadline=deadline,
        **_planned(others),
    )


def fedavg(
    cohort: Count = 10,
    buffer_size: Count | None = None,
    server_rate: Rate = 1.0,
    *,
    deadline: Positive | None = 60.0,
    **others: Any,
) -> Strategy:
    """Synchronous federated averaging (McMahan et al., arXiv:1602.05629), with over-selection and a deadline.

    About `cohort` devices are drawn for each version, unless `pace` has another target; the first `buffer_size`
    updates make the step, or those that arrive within `deadline` seconds of the first (Bonawitz et al.,
    arXiv:1902.01046). Updates of older versions are refused, so the work of later devices is lost. Updates are weighted
    by their rows.

    Examples:
        >>> midge.fedavg(cohort=13, buffer_size=10).pace.cohort
        13
    """
    check_arguments(fedavg, locals())
    pace = _given(others, "pace", Pace())
    check_value("pace", pace, Pace)
    if pace.cohort not in (None, cohort):
        raise ValueError(f"cohort is {cohort} and pace.cohort is {pace.cohort}: leave out that of the pace.")
    return Strategy(
        name="fedavg",
        staleness=_given(others, "staleness", constant()),
        rate=server_rate,
        buffer_size=cohort if buffer_size is None else buffer_size,
        normalise="weight",
        deadline=deadline,
        weigh_examples=others.pop("weigh_examples", True),
        max_staleness=others.pop("max_staleness", 0),
        pace=pace if pace.steered else replace(pace, cohort=cohort),
        **_planned(others),
    )


def ca2fl(
    buffer_size: Count | None = None, server_rate: Rate = 1.0, calibration: Calibration = 1.0, **others: Any
) -> Strategy:
    """FedBuff with cached calibration (CA2FL, Wang et al., ICLR 2024): x ← x + η·(h̄ + Σ (Δ_i − h_i) / K).

    The aggregator caches each device's last delta h_i, as int8, and their mean h̄: a step represents all devices, not
    only those in the buffer. Memory and checkpoints hold one delta for each device, which limits the size of the fleet.
    A cached delta expires after as many steps as twenty updates of each device take: that of a device which has left
    would push the model for ever. `calibration` below 1 is FedStale's interpolation (arXiv:2405.04171), without its
    known participation rates.

    Examples:
        >>> midge.ca2fl(calibration=0.5).calibration
        0.5
    """
    check_arguments(ca2fl, locals())
    return Strategy(
        name="ca2fl",
        staleness=_given(others, "staleness", constant()),
        rate=server_rate,
        buffer_size=buffer_size,
        normalise="weight",
        deadline=others.pop("deadline", 10.0),
        calibration=calibration,
        **_planned(others),
    )


def fadas(buffer_size: Count = 5, server_rate: Rate = 0.02, *, delay: Whole = 1, **others: Any) -> Strategy:
    """Adaptive steps with a rate that decreases with delay (FADAS, Wang et al., ICML 2024, arXiv:2407.18365).

    x ← x + η_t·m / (√ŵ + ε) with AMSGrad's ŵ, and η_t = η / τ_max if the buffer's largest staleness τ_max is above
    `delay`. The rate is the length of a step in each coordinate: with 0.02, fleets of 2 to 50 devices that train for a
    second move by one unit in some twenty seconds.

    Examples:
        >>> midge.fadas().optimizer.kind
        'amsgrad'
    """
    check_arguments(fadas, locals())
    optimizer: Optimizer = adam(0.9, 0.99, 1e-8, amsgrad=True, delay=delay)
    return Strategy(
        name="fadas",
        staleness=_given(others, "staleness", constant()),
        rate=server_rate,
        buffer_size=buffer_size,
        normalise="count",
        deadline=others.pop("deadline", 10.0),
        optimizer=others.pop("optimizer", optimizer),
        **_planned(others),
    )


def private(
    privacy: Privacy,
    buffer_size: Count = 20,
    server_rate: Rate = 1.0,
    *,
    deadline: Positive | None = None,
    **others: Any,
) -> Strategy:
    """FedBuff with central differential privacy: deltas are clipped, and each step adds Gaussian noise.

    x ← x + η · (Σ s(τ_i)·Δ̄_i + N(0, (z·C)²·I)) / K with |Δ̄_i| ≤ C; the noise is on all tensors, whatever updates cover.
    Updates of a device that has spent its budget are refused with `quota`. Larger buffers lose less to the same noise.
    The plan's codec must keep no residual.

    Two federations are neighbours if the updates of one owner's devices are zeros in one of them (`Privacy`). What
    else would reveal the devices' data is off: statistics (`moments`) are refused, results on devices' own data are
    dropped, norms of the fleet change no rate, and `release_floor` counts names.

    Examples:
        >>> midge.private(midge.Privacy(clip=1.0, noise=4.0, epsilon=8.0)).buffer_size
        20
    """
    check_arguments(private, locals())
    plan = _given(others, "plan", Plan(codec="int8:256", feedback=False, evaluate=0))
    return Strategy(
        name="private",
        staleness=_given(others, "staleness", constant()),
        rate=server_rate,
        buffer_size=buffer_size,
        normalise="count",
        deadline=deadline,
        norm_limit=None,
        privacy=privacy,
        plan=plan,
        **others,
    )


def secure(
    k_min: Least = 5,
    buffer_size: Count | None = None,
    server_rate: Rate | None = None,
    *,
    groups: Count = 1,
    clip: Scale = 1.0,
    scale: Scale | None = None,
    levels: Levels = 7,
    slices: Slices = 1,
    deadline: Positive | None = 10.0,
    privacy: Privacy | None = None,
    colluding: Whole = 0,
    **others: Any,
) -> Strategy:
    """Secure aggregation: only sums over at least `k_min` devices can be read, with a mask helper of another party.

    x ← x + η · Σ w_i·q_i·scale / Σ w_i over `buffer_size` devices, with integer weights w_i from 1 to 4 that the helper
    computes from the staleness of the bases, and integers q_i from −levels to levels (`wire.masking`).

    Args:
        k_min: fewest distinct devices in a sum; devices and helper have minimums of their own.
        buffer_size: devices in a step; after `deadline` seconds, `k_min` in each sum suffice. None is 10, or
            with groups `k_min` in each.
        server_rate: η; None follows the fleet's delays.
        groups: sums in a step. With 5 or more, which the helper deals at random, a step is the coordinate-wise median
            of their means, and devices whose groups are always out of line are held back.
        clip: L2 norm to which a device scales its delta down, before it is rounded.
        scale: value of one level, rounded at random without bias.
        levels: largest integer.
        slices: an update covers one of this number of slices of the vector: 4 send a quarter of the bytes.
        deadline: seconds after which a smaller set is asked for.
        privacy: differential privacy against everyone, the aggregator included: each device adds its share of the noise
            before the mask. Its clip norm takes the place of `clip`, `scale` and `levels`.
        colluding: t: devices of a sum that may disclose their shares, or send none. The shares of `k_min` − t devices
            have the noise that is accounted for; more devices add more.
        others: fields of the strategy.

    Raises:
        ValueError: a field needs the values of one device.

    Examples:
        >>> midge.secure(k_min=5).plan.masking.least
        5
    """
    check_arguments(secure, locals())
    plan = _given(others, "plan", Plan())
    check_value("plan", plan, Plan)
    if buffer_size is None:
        buffer_size = 10 if groups == 1 else groups * k_min
    noise, honest = 0.0, 0
    if privacy is not None:
        clip, levels, honest = privacy.clip, NOISY_LEVELS, k_min - colluding
        noise, scale = levels * privacy.noise, clip / levels
        if privacy.noise < HIDING:
            raise ValueError(f"noise={privacy.noise:g} hides no device by itself: secure needs {HIDING:g} or more.")
        if honest < 1:
            raise ValueError(f"colluding={colluding} leaves none of k_min={k_min} devices whose noise counts.")
        privacy = replace(privacy, honest=honest)
        plan = plan.model_copy(update={"feedback": False})
    masking = Masking(
        ring=max(ring_for(buffer_size // max(groups, 1), levels, noise, honest), LEAST_RING),
        levels=levels,
        scale=clip / 16 if scale is None else scale,
        clip=clip,
        slices=slices,
        least=k_min,
        noise=noise,
        honest=honest,
    )
    evaluate = plan.evaluate if "evaluate" in plan.model_fields_set else 0.0
    return Strategy(
        name="secure",
        staleness=_given(others, "staleness", constant()),
        rate=server_rate,
        buffer_size=buffer_size,
        normalise="weight",
        deadline=deadline,
        groups=groups,
        privacy=privacy,
        norm_limit=others.pop("norm_limit", None),
        release_floor=others.pop("release_floor", k_min),
        serve_decay=others.pop("serve_decay", 0.9),
        serve_interval=others.pop("serve_interval", 60.0),
        plan=plan.model_copy(update={"masking": masking, "evaluate": evaluate}),
        **others,
    )


def _given(others: dict[str, Any], name: str, default: Any) -> Any:
    """An argument of a preset, or its default; None is the default too."""
    value = others.pop(name, None)
    return default if value is None else value


def _proximal(plan: Any, rho: float) -> Plan:
    """A plan with FedAsync's local term."""
    plan = Plan() if plan is None else plan
    check_value("plan", plan, Plan)
    changed: Plan = plan.model_copy(update={"proximal": rho})
    return changed


def _planned(others: dict[str, Any]) -> dict[str, Any]:
    """The arguments without a plan of None."""
    return {name: value for name, value in others.items() if name != "plan" or value is not None}
