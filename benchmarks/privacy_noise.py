"""Rows of `benchmarks.privacy` for central differential privacy: accuracy against ε, and an audit of ε.

The audit plays the attacker for whom the accounting is made: it chooses the victim's updates (canaries, of the clip
norm, in a random direction), knows all others, and reads the exact model. The victim's updates are canaries or zeros,
in the same number of runs each. How often the attacker tells them apart bounds ε from below, with Clopper and Pearson's
intervals of its true and false positives: log((TPR − δ) / FPR) ≤ ε. An implementation with a bound above the
accounted ε has a fault: less noise than it says, or noise that is not on everything.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.privacy_secure import Federation, spread
from midge.aggregator.core.presets import fedbuff, private, secure
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.records import StepRecord
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.reducer import Contribution, ServerState, make_step
from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.models import Name, model_for
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire import masking, sealing
from midge.wire.messages import Plan, Update
from midge.wire.messages.masking import Masking
from midge.wire.noise import noise_share, rounded_gaussian
from midge.wire.schema import Schema, Tensor
from tests.aggregator.rig import Rig, rig

DELTA = 1e-5
RUNS = 200
"""Runs of an audit with the victim's canaries, and as many without, if it is quick."""
CONFIDENCE = 0.95
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where an audit has its stores: a sync costs nothing there, and is most of the time elsewhere."""
_APART = 100.0
"""Seconds between two steps of an audit: a device gives one update to a version, which waits for the byte rate."""
SIZE = 64
"""Parameters of an audited model. The Gaussian mechanism hides as much in any number of dimensions."""

# ------------------------------------------------------------------------------- audit


@dataclass(frozen=True, slots=True)
class Audit:
    """What an attacker was able to show."""

    runs: int
    """With the canaries, and as many without."""
    hits: int
    """Runs with canaries in which it says so."""
    alarms: int
    """Runs without in which it says that there were some."""
    accounted: float
    """ε by the accounting."""
    lower: float
    """The lower bound of ε."""


@cache
def audit(privacy: Privacy, contributions: int, runs: int = RUNS, *, noise: bool = True, seed: int = 0) -> Audit:
    """Attack production's aggregator, with its noise or without.

    Args:
        privacy: the mechanism.
        contributions: updates of the victim in each run.
        runs: with canaries, and as many without.
        noise: False draws zeros in place of the noise: a fault that an audit must find.
        seed: of the canaries.
    """
    promised = replace(privacy, epsilon=1e9)
    # Between what both cases are expected to look like; chosen before anything is seen, so it biases nothing.
    threshold = 0.95 * math.sqrt(contributions) / privacy.noise
    none = patch("midge.aggregator.processor.rounded_gaussian", lambda _, size, __: np.zeros(size, np.int64))
    counts = {}
    for present in (True, False):
        with (
            tempfile.TemporaryDirectory(dir=_MEMORY) as there,
            rig(Path(there), _strategy(promised), parameters=_model()) as life,
        ):
            rng = np.random.default_rng((seed, present))
            if noise:
                scores = [_score(life, privacy, contributions, run, rng, present=present) for run in range(runs)]
            else:
                with none:
                    scores = [_score(life, privacy, contributions, run, rng, present=present) for run in range(runs)]
        counts[present] = sum(score > threshold for score in scores)
    lower = epsilon_lower(counts[True], counts[False], runs, privacy.delta)
    return Audit(runs, counts[True], counts[False], privacy.spent(contributions), lower)


@cache
def shared_audit(
    noise: float, k_min: int, colluding: int, contributions: int = 1, runs: int = RUNS, *, shares: bool = True
) -> Audit:
    """Attack masked sums as their aggregator, together with `colluding` of the devices in each.

    The attacker knows everything but the victim's updates and the shares of noise of the other honest devices.

    Args:
        noise: the multiplier of `Privacy`.
        k_min: devices in a sum.
        colluding: of these, devices that tell the attacker their integers and their shares.
        contributions: sums with an update of the victim: its canary in all, or zeros in all.
        runs: with the victim's canary, and as many without.
        shares: False has devices add no noise: a fault that an audit must find.
    """
    promised = secure(k_min, k_min, privacy=Privacy(1.0, noise, 1e9, DELTA), colluding=colluding)
    wanted, privacy = promised.plan.masking, promised.privacy
    assert wanted is not None
    assert privacy is not None
    deviation, threshold = noise * wanted.levels, 0.5 * math.sqrt(contributions) / noise
    others = (k_min - colluding - 1, contributions, SIZE)
    if not shares:
        wanted = wanted.model_copy(update={"noise": 0.0})
    rng, counts, lineage = np.random.default_rng(1), dict.fromkeys((True, False), 0), bytes(16)
    header = Update(outbox=0, first=1, seq=1, lineage=lineage, generation=0, base=1, codec="", size=0, sha256=lineage)
    to = masking.SealTo(sealing.public(bytes(range(32))), "bench", "victim", 2)
    for present in counts:
        for _ in range(runs):
            canary = rng.standard_normal(SIZE)
            canary *= 0.999 / np.linalg.norm(canary)
            total = np.zeros(SIZE)
            delta = (canary if present else np.zeros(SIZE)).astype(np.float32)
            for _ in range(contributions):
                total += masking.masked(delta, wanted, header, to).sent / wanted.scale
            if shares:  # what colluding devices sent is taken off, and the deltas of the other honest ones
                drawn = noise_share(wanted.noise, wanted.honest, math.prod(others), os.urandom)
                total += drawn.reshape(others).sum((0, 1))
            score = total @ canary / np.linalg.norm(canary) / deviation / math.sqrt(contributions)
            counts[present] += bool(score > threshold)
    lower = epsilon_lower(counts[True], counts[False], runs, DELTA)
    return Audit(runs, counts[True], counts[False], privacy.spent(contributions), lower)


def _strategy(privacy: Privacy) -> Strategy:
    return private(privacy, 2, bounded=False, plan=Plan(codec="float32", feedback=False))


def _model() -> dict[str, Any]:
    return {"x": np.zeros(SIZE, np.float32)}


def _score(
    life: Rig, privacy: Privacy, contributions: int, run: int, rng: np.random.Generator, *, present: bool
) -> float:
    """The model's change in the canary's direction, in standard deviations of the noise: N(0, 1) without the canary.

    That is the most powerful statistic against Gaussian noise.
    """
    canary = rng.standard_normal(SIZE)
    canary *= privacy.clip / np.linalg.norm(canary)
    nothing = np.zeros(SIZE, np.float32)
    before = life.model.x.astype(np.float64)
    for seq in range(1, contributions + 1):
        now = _APART * (run * contributions + seq)
        life.send(f"victim{run}", seq, canary.astype(np.float32) if present else nothing, now=now)
        life.send(f"other{run}", seq, nothing, now=now)
    change = 2 * (life.model.x - before)  # a step divides by K = 2
    return float(change @ canary / privacy.clip / (privacy.deviation * math.sqrt(contributions)))


def epsilon_lower(hits: int, alarms: int, runs: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The lower bound of ε from an attacker's true and false positives in as many runs each; 0 if it shows nothing."""
    half = (1 - confidence) / 2  # of the error for each of both rates
    least = 1.0 - clopper_pearson(runs - hits, runs, half)
    most = clopper_pearson(alarms, runs, half)
    return max(math.log((least - delta) / most), 0.0) if least > delta else 0.0


def clopper_pearson(hits: int, runs: int, error: float) -> float:
    """The upper bound of a rate of which `hits` of `runs` were seen, wrong with a probability of at most `error`."""
    if hits >= runs:
        return 1.0
    low, high = hits / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at_most = math.fsum(
            math.exp(
                math.lgamma(runs + 1)
                - math.lgamma(k + 1)
                - math.lgamma(runs - k + 1)
                + k * math.log(middle)
                + (runs - k) * math.log1p(-middle)
            )
            for k in range(hits + 1)
        )
        low, high = (middle, high) if at_most > error else (low, middle)
    return high


# ---------------------------------------------------------------------------- accuracy


@dataclass(frozen=True, slots=True)
class Case:
    """A federation, and what it hides."""

    model: Name
    devices: int
    k: int
    contributions: int
    """Of each device: the budget allows as many."""
    clip: float
    rate: float
    epsilons: tuple[float, ...]
    """Budgets; the noise follows from each."""


LINEAR = Case("linear", 200, 200, 10, 0.5, 3.0, (1.0, 2.0, 4.0, 8.0))
"""Clip norm, K and rate were chosen with the seed 0, which is not reported."""
PERCEPTRON = Case("mlp", 200, 100, 10, 0.3, 2.0, (8.0,))
SMALL_GROUPS = Case("mlp", 20, 10, 10, 0.3, 1.0, (8.0,))
"""The noise of a step is for a sum of ten: a model of this size learns little from it."""


def noise_for(epsilon: float, contributions: int, delta: float = DELTA, honest: int = 0) -> float:
    """The least noise multiplier with which a number of contributions is within a budget."""
    low, high = 0.05, 1000.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        spent = Privacy(clip=1.0, noise=middle, epsilon=1e12, delta=delta, honest=honest).spent(contributions)
        low, high = (middle, high) if spent > epsilon else (low, middle)
    return high * (1 + 1e-9)


def _accuracies(case: Case, data: FleetData, seeds: Sequence[int], strategy: Strategy) -> tuple[list[float], Simulated]:
    """The final accuracy of each seed, and one of the runs."""
    found = []
    for seed in seeds:
        model = model_for(data, case.model, seed=seed)
        # Until every device has given what its budget allows.
        found.append(simulate(model, data=data, strategy=strategy, seed=seed, seconds=case.contributions + 4.0))
    return [float(run.metrics["accuracy"][-1]) for run in found], found[-1]


def _plain_accuracy(case: Case, data: FleetData, seeds: Sequence[int]) -> list[float]:
    """The accuracies without clipping, noise and budget: at the rate of the private one, or one that delays bound."""
    plan = Plan(codec="float32", feedback=False)
    plain = partial(fedbuff, case.k, staleness=constant(), deadline=None, norm_limit=None, plan=plan)
    rates = (plain(server_rate=case.rate, bounded=False), plain(server_rate=1.0, bounded=False), plain())
    return max((_accuracies(case, data, seeds, strategy)[0] for strategy in rates), key=statistics.median)


def step_seconds(params: int, k: int, privacy: Privacy | None, times: int = 5) -> float:
    """Processor seconds of one step: drawing its noise, and combining its updates."""
    schema = Schema([Tensor("w", (params,), "float32", "trained")])
    rng, x = np.random.default_rng(0), np.zeros(params, np.float32)
    deltas = [(rng.standard_normal(params) / params**0.5).astype(np.float32) for _ in range(k)]
    items = [Contribution(delta, None, 0, str(number)) for number, delta in enumerate(deltas)]
    clip, grid, deviation = (0.0, 0, 0.0) if privacy is None else (privacy.clip, privacy.grid, privacy.deviation)
    updates = tuple((number, 1.0) for number in range(k))
    record = StepRecord(
        k, 1, updates, 1.0, "delta", "count", divisor=float(k), noise=deviation, clip=clip, grid=grid
    )  # fmt: skip
    fastest = math.inf
    for _ in range(times):
        began = time.thread_time()
        noise = None if privacy is None else rounded_gaussian(math.ldexp(deviation, -grid), params, rng.bytes)
        make_step(x, schema, record, items, ServerState(), None if noise is None else noise.astype(np.int32))
        fastest = min(fastest, time.thread_time() - began)
    return fastest


SHARED = replace(LINEAR, epsilons=(2.0, 4.0, 8.0))
K_MIN, COLLUDING = 160, 16
RATES = (0.5, 1.0, 2.0, 3.0, 5.0)
"""Server rates of the rows with distributed noise and of those without: each takes the one that is best on a seed that
is not reported."""
UNREPORTED = 0


def shared_rows(source: str, seeds: Sequence[int], *, quick: bool) -> list[dict[str, Any]]:
    """Distributed noise: the devices of the linear case add it themselves, in sums of all of them."""
    case, made = SHARED, []
    size, plain, plain_rate = _tuned(source, seeds, None, quick=quick)
    for budget in case.epsilons[-1:] if quick else case.epsilons:
        multiplier = noise_for(budget, case.contributions, honest=K_MIN - COLLUDING)
        privacy = Privacy(case.clip, multiplier, budget, DELTA)
        strategy = secure(K_MIN, case.k, privacy=privacy, colluding=COLLUDING)
        plan, promised = strategy.plan.masking, strategy.privacy
        assert plan is not None
        assert promised is not None
        _, found, rate = _tuned(source, seeds, plan, quick=quick)
        shown = shared_audit(multiplier, K_MIN, COLLUDING, case.contributions, RUNS if quick else 5 * RUNS)
        assert shown.accounted == promised.spent(case.contributions)
        row = {
            "mode": "shared",
            "params": size,
            "k": case.k,
            "bytes_per_param": round(masking.size(size, plan.ring) / size, 3),
            "step_seconds": None,
            **spread("accuracy", found),
            **spread("float32_accuracy", plain),
            "rate": rate,
            "float32_rate": plain_rate,
            "epsilon": round(shown.accounted, 4),
            "epsilon_lower": round(shown.lower, 4),
            "delta": DELTA,
            "noise": round(multiplier, 4),
            "contributions": case.contributions,
            "devices": case.devices,
            "honest": promised.honest,
            "runs": shown.runs,
        }
        made.append(row)
    return made


def _tuned(source: str, seeds: Sequence[int], plan: Masking | None, *, quick: bool) -> tuple[int, list[float], float]:
    """Parameters, accuracy of each seed, and the rate, which is the best on another seed."""

    def run(federation: Federation, rate: float) -> float:
        return federation.run(SHARED.contributions, SumsOfAll(plan, SHARED), SHARED.k, rate=rate)

    first, *others = [Federation(source, seed, SHARED.devices, SHARED.model) for seed in (UNREPORTED, *seeds)]
    best = max(RATES[1:4:2] if quick else RATES, key=lambda rate: run(first, rate))
    return first.schema.size, [run(each, best) for each in others], best


class SumsOfAll:
    """Steps of one update of every device, masked with noise, or as float32 without a plan."""

    def __init__(self, plan: Masking | None, case: Case) -> None:
        self._plan, self._case, self._waiting = plan, case, dict[str, Any]()
        self._to = masking.SealTo(sealing.public(bytes(range(32))), "bench", "device", 2)

    def __call__(self, name: str, delta: Any, version: int) -> Iterator[Any]:
        if name in self._waiting:
            return
        if self._plan is not None:
            lineage = bytes(16)
            about: dict[str, Any] = {"lineage": lineage, "sha256": lineage, "generation": 0, "base": version}
            header = Update(outbox=0, first=1, seq=1, codec="", size=0, **about)
            delta = masking.masked(delta, self._plan, header, self._to).sent
        self._waiting[name] = delta
        if len(self._waiting) == self._case.devices:
            yield np.mean(list(self._waiting.values()), axis=0)
            self._waiting.clear()


def central_rows(source: str, seeds: Sequence[int], case: Case, *, quick: bool) -> list[dict[str, Any]]:
    """Central differential privacy: one row for each budget of a case."""
    data, found = load(source, devices=case.devices), []
    plain = _plain_accuracy(case, data, seeds)
    for budget in case.epsilons[-1:] if quick else case.epsilons:
        noise = noise_for(budget, case.contributions)
        privacy = Privacy(clip=case.clip, noise=noise, epsilon=budget, delta=DELTA)
        strategy = private(privacy, case.k, case.rate, bounded=False)
        accuracy, run = _accuracies(case, data, seeds, strategy)
        size = sum(int(array.size) for array in run.parameters.values())
        audited, runs = replace(privacy, clip=1.0), 20 if quick else RUNS
        shown = audit(audited, privacy.contributions, runs)
        row = {
            "mode": "central",
            "model": case.model,
            "params": size,
            "k": case.k,
            "bytes_per_param": round(float(run.bytes_up.sum()) / max(len(run.senders), 1) / size, 3),
            "step_seconds": round(step_seconds(size, case.k, privacy), 5),
            "plain_step_seconds": round(step_seconds(size, case.k, None), 5),
            **spread("accuracy", accuracy),
            **spread("float32_accuracy", plain),
            "epsilon": round(float(run.privacy["worst"]), 4),
            "epsilon_lower": round(shown.lower, 4),
            "delta": DELTA,
            "noise": round(noise, 4),
            "contributions": privacy.contributions,
            "devices": case.devices,
            "runs": shown.runs,
        }
        if case is LINEAR and budget == case.epsilons[-1]:
            bare = audit(audited, privacy.contributions, runs, noise=False)
            row["epsilon_lower_without_noise"] = round(bare.lower, 4)
        found.append(row)
    return found
