"""The worlds of `benchmarks.stalls`, each drawn from its seed, and their learning problem.

The problem is a linear regression with three inputs and a known answer. Times are in median trainings, of which one
takes `median` seconds: Midge's own time-outs are in seconds, and so are long in some worlds and short in others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.liars import ATTACKS, Liars
from midge.aggregator.core import presets
from midge.aggregator.core.optimizers import sgd
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.staleness import constant, hinge
from midge.aggregator.core.strategy import Strategy
from midge.iot_client.training.fit import Fit, Parameters, Recipe, TrainingPlan
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.incidents import Crash, Incidents, Outage
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.world import World
from midge.wire.messages import Update

TRUE = np.array([0.6, -0.6, 0.5])
ROWS = 60
STEPS, RATE = 10, 0.15
RECIPE = Recipe(local_steps=STEPS)
TURNOVER = 20.0
"""Median trainings within which devices join late and leave."""
BROKEN = 3.0
"""Mean outage of a link in median trainings."""
MONTH = 2_592_000.0

PRESETS: dict[str, Callable[[int], Strategy]] = {
    "balanced": lambda _: presets.balanced(),
    "balanced, buffer": lambda n: presets.balanced(max(2, n // 4)),
    "balanced, centred": lambda n: presets.balanced(max(2, n // 4), combine="centred"),
    "balanced, trimmed": lambda n: presets.balanced(max(3, n // 3), combine="trimmed", trim=0.2),
    "fedasync": lambda _: presets.fedasync(),
    "fedasync, constant": lambda _: presets.fedasync(staleness=constant()),
    "fedasync, hinge": lambda _: presets.fedasync(staleness=hinge()),
    "fedasync, delta": lambda _: presets.fedasync(form="delta"),
    "fedbuff": lambda _: presets.fedbuff(),
    "fedbuff, 2": lambda _: presets.fedbuff(2),
    "fedbuff, momentum": lambda _: presets.fedbuff(5, optimizer=sgd(0.5)),
    "fedbuff, trimmed": lambda n: presets.fedbuff(max(3, n // 3), combine="trimmed", trim=0.2),
    "ca2fl": lambda _: presets.ca2fl(),
    "fadas": lambda _: presets.fadas(),
    "fedavg": lambda n: presets.fedavg(max(2, n // 3)),
    # A budget that no device exhausts here, and noise that still permits learning: such a strategy promises progress.
    "private": lambda n: presets.private(Privacy(clip=1.0, noise=0.1, epsilon=1e6), max(2, n // 3)),
}
ROBUST = ("balanced", "balanced, buffer")
"""Strategies that resist attackers: the others get none."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A world."""

    seed: int
    preset: str
    devices: int
    spread: float
    noise: float
    jitter: float
    change: str
    """`none`, `scale` or `shift` of the labels."""
    factor: float
    at: float
    """Time of the drift."""
    late: float
    leave: float
    online: float
    liars: int
    kind: str
    seconds: float = 30.0
    """Length of the run in median trainings."""
    median: float = 1.0
    """Seconds of a median training."""
    max_age: float = 0.0
    """Of the strategy; 0 keeps its default."""
    max_staleness: int = -1
    """Of the strategy; -1 keeps its default."""
    crashes: int = 0
    """Restarts of the aggregator."""
    down: float = 0.0
    """Maximum downtime of each."""
    pauses: int = 0
    """Pauses by the operator."""
    nights: int = 0
    """Outages of all devices."""
    night: float = 0.0
    """Maximum length of each."""
    absent: float = 0.0
    """Share of the devices with an outage of their own, at most a night long."""
    reboots: float = 0.0
    """Share of the devices that reboot."""
    loss: float = 0.0
    """Share of the messages that are lost."""
    twice: float = 0.0
    """Share of the messages that are duplicated."""
    delayed: float = 0.0
    """Share of the messages that are overtaken by later ones."""
    latency: float = 0.0
    clocks: bool = False
    """Whether clocks start anywhere, and devices misreport their training durations."""
    partial: float = 0.0
    """Share of the honest devices that train only one of the two tensors."""
    release_every: int = 1
    """Of the strategy, as the following ones."""
    release_interval: float = 0.0
    """In median trainings."""
    release_floor: int = 2
    endless: bool = False
    """Whether a step waits for a full buffer without a deadline."""

    @classmethod
    def of(cls, seed: int) -> "Drawn":
        """The world of a seed."""
        rng = np.random.default_rng((seed, 5))
        # More small fleets than large ones: most stalls have few devices left.
        devices = round(2 * 50 ** float(rng.random() ** 1.4))
        # Half of the worlds are of the default: it is used and promises most.
        preset = "balanced" if rng.random() < 0.5 else str(rng.choice(list(PRESETS)))
        change = str(rng.choice(["none", "scale", "shift"]))
        liars = int(rng.integers(0, devices // 5 + 1)) if preset in ROBUST and devices >= 5 else 0
        kinds = [kind for kind in ATTACKS if kind != "label flip"]
        drawn = cls(
            seed=seed,
            preset=preset,
            devices=devices,
            spread=float(rng.choice([0.0, 0.6, 1.2])),
            noise=float(rng.uniform(0, 1)),
            jitter=float(rng.choice([0.0, 0.3])),
            change=change,
            factor=_factor(change, rng),
            at=float(rng.uniform(6, 14)),
            late=float(rng.choice([0.0, 0.3])),
            leave=float(rng.choice([0.0, 0.2])),
            online=float(rng.choice([0.0, 15.0])),
            liars=liars,
            kind=str(rng.choice(kinds)) if liars else "",
        )
        return replace(drawn._befallen(rng), **drawn._schedule(np.random.default_rng((seed, 11))))

    def _schedule(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw how steps and releases are scheduled, from a stream of its own: earlier worlds stay what they were."""
        every, interval, floor, endless = rng.random(4)
        most = max(2, (self.devices - self.liars) // 2)  # others leave, or are away
        return {
            "release_every": int(rng.integers(2, 13)) if every < 0.2 else 1,
            "release_interval": float(rng.uniform(0.2, 3)) if interval < 0.15 else 0.0,
            "release_floor": min(int(rng.integers(3, 6)), most) if floor < 0.2 else 2,
            "endless": bool(endless < 0.2),
        }

    def _befallen(self, rng: np.random.Generator) -> "Drawn":
        """Add incidents: each kind in some worlds, so that most worlds have two or three."""

        def some(chance: float, value: float) -> float:
            return value if rng.random() < chance else 0.0

        night = float(rng.uniform(3, 15))
        flooded = self.kind.startswith("full rate")  # 50 messages a second: too many to simulate if trainings are long
        loss = 0.0 if flooded else some(0.15, float(rng.uniform(0.01, 0.1)))
        latency = some(0.4, float(rng.uniform(0.001, 0.1)))
        # After a lost message Midge waits in seconds: with trainings of one second, nothing would come of a world.
        median = 1.0 if flooded else float(rng.choice([20.0, 300.0] if loss else [1.0, 1.0, 20.0, 300.0]))
        # Among few devices a liar would be every third one once some have left: no rule can promise anything then.
        few = self.liars > 0 and self.devices < 15
        return replace(
            self,
            leave=0.0 if few else self.leave,
            median=median,
            # Rate limits exclude slow devices: beside them a frequent liar would be no small part of the fleet.
            max_age=some(0.0 if self.liars else 0.3, float(rng.uniform(1, 6))),
            max_staleness=int(rng.integers(0, 12)) if rng.random() < 0.3 and not self.liars else -1,
            crashes=int(some(0.4, float(rng.integers(1, 4)))),
            down=float(rng.choice([0.0, 0.5, 6.0])),
            pauses=int(some(0.2, 1)),
            nights=int(some(0.25, 1)),
            night=night,
            absent=some(0.0 if few else 0.3, float(rng.uniform(0.1, 0.6))),
            reboots=some(0.3, float(rng.uniform(0.1, 1.0))),
            loss=loss,
            twice=some(0.3, float(rng.uniform(0.02, 0.3))),
            delayed=some(0.3, float(rng.uniform(0.02, 0.3))),
            latency=latency,
            clocks=bool(rng.random() < 0.3),
            partial=0.0 if few else min(some(0.25, float(rng.uniform(0.1, 1.0))), self._most_partial),
        )

    @property
    def _most_partial(self) -> float:
        """Share of honest devices that may train only one tensor: of those that train each, one in five may lie."""
        return max(0.0, 2 * (1 - 4 * self.liars / (self.devices - self.liars)))

    @property
    def calm(self) -> bool:
        """Whether there are no incidents."""
        return not (
            self.crashes
            or self.pauses
            or self.nights
            or self.absent
            or self.reboots
            or self.loss
            or self.delayed
            or self.clocks
        )

    @property
    def strategy(self) -> Strategy:
        """The aggregator's strategy."""
        found = PRESETS[self.preset](self.devices)
        # Timeliness of updates is judged: a fleet that had learned everything would rest.
        found = replace(
            found,
            pace=replace(found.pace, rest=0.0),
            release_every=self.release_every,
            release_interval=self.release_interval * self.median,
            release_floor=self.release_floor,
            deadline=None if self.endless else found.deadline,
        )
        if self.max_age:
            found = replace(found, max_age=self.max_age * self.median)
        return found if self.max_staleness < 0 else replace(found, max_staleness=self.max_staleness)

    @property
    def names(self) -> list[str]:
        """Names of its devices, attackers first."""
        return [f"device-{number:0{len(str(self.devices - 1))}d}" for number in range(self.devices)]

    @property
    def speeds(self) -> npt.NDArray[np.float64]:
        """Seconds of a training on each device."""
        rng = np.random.default_rng((self.seed, 8))
        speeds: npt.NDArray[np.float64] = np.exp(self.spread * rng.standard_normal(self.devices))
        return self.median * speeds / np.median(speeds)

    @property
    def world(self) -> World:
        """How devices join and leave."""
        return replace(
            World(seed=self.seed, median=self.median, spread=0.0).calm(),
            late=self.late,
            leave=self.leave,
            online=self.online * self.median,
            offline=BROKEN * self.median if self.online else 0.0,
            turnover=TURNOVER * self.median,
            twice=self.twice,
            latency=self.latency * self.median,
            link_spread=0.5,
        )

    def incidents(self) -> Incidents | None:
        """The incidents; None if there are none."""
        if self.calm:
            return None
        rng, names = np.random.default_rng((self.seed, 9)), self.names
        crashes = self._crashes(rng)
        pauses = [(start, start + rng.uniform(0.5, 8)) for start in rng.uniform(2, 20, self.pauses)]
        nights = [(start, start + rng.uniform(1, self.night or 1)) for start in rng.uniform(3, 20, self.nights)]
        outages: dict[str, list[Outage]] = {name: [] for name in names}
        for name in names:
            found = [(start, end, rng.random() < self.reboots) for start, end in nights]
            if rng.random() < self.absent:
                start = rng.uniform(2, 22)
                found.append((start, start + rng.uniform(1, self.night or 1), False))
            if rng.random() < self.reboots:
                starts = rng.uniform(0, 26, int(rng.integers(1, 4)))
                found += [(start, start + rng.uniform(0, 1), True) for start in starts]
            outages[name] = [Outage(start * self.median, end * self.median, off) for start, end, off in sorted(found)]
        off = [name for name in names if self.clocks and rng.random() < 0.5]
        return Incidents(
            crashes=crashes,
            pauses=[(start * self.median, end * self.median) for start, end in pauses],
            outages=outages,
            late=self.delayed,
            delay=self.median * float(rng.choice([0.1, 1.0, 4.0])),
            clocks={name: float(rng.choice([0.5, MONTH, 1e9])) for name in off},
            claims={name: float(rng.choice([0.0, 1e-3, 1e3])) for name in off},
            checkpoint=int(rng.choice([10, 100, 10_000])),
        )

    def _crashes(self, rng: np.random.Generator) -> list[Crash]:
        found: list[Crash] = []
        for start in np.sort(rng.uniform(0.5, 24, self.crashes)) * self.median:
            at = max(float(start), found[-1].until + 0.1 * self.median if found else 0.0)
            actions = int(rng.choice([0, 1, 2, 3, 5, 8, 13]))
            found.append(
                Crash(
                    at=at,
                    until=at + self.median * float(rng.uniform(0.01, 1)) * (self.down + 0.01),
                    clock=float(rng.choice([0.0, MONTH])) if self.clocks else at,
                    actions=actions,
                    clean=actions == 0 and bool(rng.random() < 0.5),
                )
            )
        return found


def _factor(change: str, rng: np.random.Generator) -> float:
    """The change of the labels."""
    return (
        float(np.exp(rng.uniform(math.log(0.01), math.log(1000)))) if change == "scale" else float(rng.uniform(-5, 5))
    )


class Sensors:
    """The rows of all devices, whose labels change at a time, and the tamper between devices and the aggregator."""

    def __init__(self, world: Drawn, liars: Liars | None) -> None:
        self._world, self._liars = world, liars
        self._clock: Clock | None = None
        rng = np.random.default_rng((world.seed, 6))
        self.x: npt.NDArray[np.float64] = rng.standard_normal((world.devices, ROWS, 3))
        self.y: npt.NDArray[np.float64] = self.x @ TRUE + world.noise * rng.standard_normal((world.devices, ROWS))
        chosen = np.random.default_rng((world.seed, 10)).random((world.devices, 2))
        self._partial = [
            None if place < world.liars or share >= world.partial else ("w",) if which < 0.5 else ("b",)
            for place, (share, which) in enumerate(chosen)
        ]
        # Gradient descent on a quadratic loss is an affine map, which is computed once rather than for each training.
        trained = np.array([[tensors != ("b",)] * 3 + [tensors != ("w",)] for tensors in self._partial], np.float64)
        self._rows = np.concatenate([self.x, np.ones((world.devices, ROWS, 1))], axis=2)
        pull = RATE / ROWS * trained[:, :, None] * self._rows.transpose(0, 2, 1)
        step = np.eye(4) - pull @ self._rows
        powers = [np.linalg.matrix_power(step, number) for number in range(STEPS + 1)]
        self._keeps: Sequence[npt.NDArray[np.float64]] = powers
        """The linear part of a training, by its number of steps."""
        self._pulls = [np.sum(powers[:number], axis=0) @ pull for number in range(1, STEPS + 1)]
        self._ends: dict[tuple[bool, int], npt.NDArray[np.float64]] = {}
        """Results of trainings from zero, before and after the drift, by number of steps."""

    def begin(self, server: Server, clock: Clock) -> None:
        self._clock = clock
        if self._liars is not None:
            self._liars.begin(server, clock)

    def sent(self, device: str, update: Update, decoded: DecodedUpdate) -> DecodedUpdate | None:
        return decoded if self._liars is None else self._liars.sent(device, update, decoded)

    def changed(self, now: float) -> bool:
        """Whether the labels have changed by a time in seconds."""
        return self._world.change != "none" and now >= self._world.at * self._world.median

    def labels(self, now: float) -> npt.NDArray[np.float64]:
        """Answers of all devices, at a time in seconds."""
        if not self.changed(now):
            return self.y
        return self.y * self._world.factor if self._world.change == "scale" else self.y + self._world.factor

    def trainer(self, place: int) -> Callable[[Parameters, TrainingPlan], Fit]:
        """Trainer of one device."""
        tensors = self._partial[place]

        def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
            assert self._clock is not None
            now, steps = self._clock.now, min(RECIPE.under(plan).local_steps, STEPS)
            if (key := (self.changed(now), steps)) not in self._ends:
                self._ends[key] = np.einsum("dij,dj->di", self._pulls[steps - 1], self.labels(now))
            begin = np.concatenate([parameters["w"], parameters["b"]], dtype=np.float64)
            end = (self._keeps[steps][place] @ begin + self._ends[key][place]).astype(np.float32)
            return Fit({"w": end[:3], "b": end[3:]}, ROWS, steps, tensors=tensors)

        return train

    def rmse(self, parameters: Parameters, now: float) -> float:
        """RMSE over all rows, with the labels of a time in seconds."""
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = self.x @ np.asarray(parameters["w"], np.float64) + float(parameters["b"][0])
            return float(np.sqrt(np.mean((outputs - self.labels(now)) ** 2)))

    def least(self, now: float) -> float:
        """The RMSE below which no model gets, with the labels of a time in seconds: that of ordinary least squares."""
        best, *_ = np.linalg.lstsq(self._rows.reshape(-1, 4), self.labels(now).ravel(), rcond=None)
        return self.rmse({"w": best[:3], "b": best[3:]}, now)


def kinds(drawn: Drawn) -> Sequence[str]:
    """The features of a world, by name, for counting worlds."""
    about = {
        "liars": drawn.liars,
        "change": drawn.change != "none",
        "join or leave": drawn.late or drawn.leave,
        "links break": drawn.online,
        "limits on age": drawn.max_age or drawn.max_staleness >= 0,
        "aggregator restarts": drawn.crashes,
        "pauses": drawn.pauses,
        "nights": drawn.nights,
        "long absences": drawn.absent,
        "reboots": drawn.reboots,
        "loss": drawn.loss,
        "twice": drawn.twice,
        "overtaken": drawn.delayed,
        "clocks": drawn.clocks,
        "partial updates": drawn.partial,
        "release_every": drawn.release_every > 1,
        "release_interval": drawn.release_interval,
        "release_floor": drawn.release_floor > 2,
        "no deadline": drawn.endless,
    }
    return [drawn.preset, *(name for name, there in about.items() if there)]
