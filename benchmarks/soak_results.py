"""Results of a soak: growth of its processes and its store, delays of the telemetry beside it, and the promises."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.neighbour import Times, percentile, window
from benchmarks.soak_judgement import (
    Growth,
    Traffic,
    all_back,
    delay_kept,
    descriptors_flat,
    memory_kept,
    store_bounded,
)
from benchmarks.soak_sampling import Sampler, disk
from midge.aggregator.store.store import KEEP_RECORDS

JUDGED = ("broker", "aggregator", "gateway")
"""Processes of a federation; those with hundreds of devices each exist only here, and grow until each has trained."""
ENOUGH = 10
"""Fewest samples of a process that is judged."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a soak."""

    devices: int
    minutes: float
    speed_up: float
    alone: float
    """Seconds of telemetry alone, before and after."""

    @property
    def interval(self) -> float:
        return 3600.0 / self.speed_up

    @property
    def seconds(self) -> float:
        return 60.0 * self.minutes


@dataclass(frozen=True, slots=True)
class Course:
    """The course that a soak took."""

    sizes: Sizes
    sampler: Sampler
    store: Path
    notes: Row
    """Durations and counts, by name."""
    placed: dict[str, float]
    """Hour from which all devices were at a process that had been replaced."""
    stretches: dict[str, list[tuple[float, float]]]
    telemetry: list[Path]
    """Times of the telemetry through an idle broker, and before and after the broker's restart."""

    def row(self) -> Row:
        """All that it found."""
        sizes, notes = self.sizes, self.notes
        settled = {name: each.since(self.placed.get(name, 0.0)) for name, each in self.sampler.series.items()}
        series = {name: each for name, each in settled.items() if len(each.hours) >= ENOUGH}
        memory = {name: Growth.of(each.hours, each.memory) for name, each in series.items()}
        files = {name: Growth.of(each.hours, each.files) for name, each in series.items()}
        rows = [
            {
                "process": name,
                "rss_mb": memory[name].row(sizes.speed_up, 1e6),
                "descriptors": files[name].row(sizes.speed_up),
                "minutes": round(60 * (series[name].hours[-1] - series[name].hours[0]), 1),
            }
            for name in series
        ]
        traffic = Traffic(
            notes["payload"] / sizes.devices, notes["wire"] / sizes.devices, notes["seconds"], notes["idle"]
        )
        store, telemetry, reconnect = self._stored(), self._telemetry(), notes["reconnect"]
        promises = {
            "memory": memory_kept([memory[name] for name in JUDGED if name in memory]),
            "descriptors": descriptors_flat(list(files.values())),
            "disk": store["bounded"],
            "reconnect": all_back(reconnect["all_s"]),
            "telemetry": delay_kept(telemetry["p99_alone_ms"], telemetry["p99_beside_ms"]),
        }
        return {
            "rows": rows,
            "store": store,
            "telemetry": telemetry,
            "reconnect": reconnect,
            "restarts": {name: notes[name] for name in ("join_s", "after_kill_s", "upgrade_s", "after_upgrade_s")},
            "updates": notes["accepted"],
            "updates_per_s": round(notes["accepted"] / notes["seconds"], 1),
            "idle_bytes_per_s": round(notes["idle"], 2),
            "mb_a_month": traffic.month(sizes.speed_up),
            "promises": promises,
        }

    def _stored(self) -> Row:
        """The store's size, and what it will be with all records that it keeps."""
        with sqlite3.connect(f"file:{self.store / 'store.db'}?mode=ro", uri=True) as db:
            ((records, kept),) = db.execute("SELECT count(*), sum(length(record)) FROM journal").fetchall()
        stored = self.sampler.store
        half = len(stored.hours) // 2  # by then the bodies of the kept checkpoints are there
        growth = Growth.of(stored.hours[half:], stored.memory[half:])
        size, own = disk(self.store), kept / max(records, 1)
        each = growth.slope.per_hour / (records / (stored.hours[-1] - stored.hours[0]))
        return {
            "mb": round(size / 1e6, 2),
            **growth.row(self.sizes.speed_up, 1e6),
            "records": records,
            "bytes_a_record": round(own, 1),
            "disk_bytes_a_record": round(each, 1),
            "bound_mb": round((size + (KEEP_RECORDS - records) * max(own, each)) / 1e6, 1),
            "bounded": store_bounded(growth, records / (stored.hours[-1] - stored.hours[0]), own),
        }

    def _telemetry(self) -> Row:
        other, *own = [_load(file) for file in self.telemetry]
        stretches = self.stretches
        beside = [*stretches["beside"], *stretches["reconnect"]]
        lost = sum(int(np.isnan(came).sum()) for _, came in own)
        found: dict[str, float] = {"messages": sum(len(sent) for sent, _ in own), "lost": lost}
        kinds = {"alone": stretches["alone"], "beside": beside, "reconnect": stretches["reconnect"]}
        for name, chosen in kinds.items():
            for what, share in (("p50", 50), ("p99", 99)):
                found[f"{what}_{name}_ms"] = percentile(_delays(own, chosen), share)
        found["p99_other_alone_ms"] = percentile(_delays([other], stretches["alone"]), 99)
        found["p99_other_beside_ms"] = percentile(_delays([other], beside), 99)
        return found


def _load(file: Path) -> Times:
    with np.load(file) as times:
        return times["sent"], times["came"]


def _delays(times: list[Times], stretches: list[tuple[float, float]]) -> Any:
    return np.concatenate([window(*each, stretch) for each in times for stretch in stretches])
