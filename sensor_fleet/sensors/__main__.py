"""Simulated sensors as a file: `python -m midge.sensor_fleet.sensors vibration --devices 50 --hours 24 --out vib.npz`.

The file suits `--data`: `x`, `y`, `unit` (the device's number), `split` (0 train, 1 test), `columns` (names of the
inputs), and `class_names` for classes. Test rows are those at the end of the period.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors import KINDS, Drift, Flaws, Stream

HOUR = 3600.0


def write(stream: Stream, seconds: float, path: Path) -> tuple[int, int]:
    """Write all rows within `seconds`, and the test rows; return the numbers of training and test rows."""
    parts: list[Rows] = []
    units: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    for number in range(len(stream.devices)):
        x, y = stream.rows(number, seconds)
        parts.append(Rows(x, y))
        units.append(np.full(len(y), number, np.int64))
    test = stream.at(seconds).test
    trained = sum(len(part) for part in parts)
    arrays = {
        "x": np.concatenate([*(part.x for part in parts), test.x]),
        "y": np.concatenate([*(part.y for part in parts), test.y]),
        "unit": np.concatenate([*units, np.full(len(test), -1)]),
        "split": np.repeat(np.array([0, 1], np.uint8), [trained, len(test)]),
        "columns": np.array(stream.features),
    }
    if stream.names:
        arrays["class_names"] = np.array(stream.names)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return trained, len(test)


def main(words: Sequence[str] | None = None) -> int:
    """Write a file."""
    parser = argparse.ArgumentParser(
        prog="python -m midge.sensor_fleet.sensors", description="Simulated sensors as a file."
    )
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--devices", type=int, default=50, help="default: 50")
    parser.add_argument("--hours", type=float, default=168.0, help="duration (default: 168, a week)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: 0)")
    parser.add_argument("--drift", type=float, metavar="HOURS", help="change the concept after this time")
    parser.add_argument("--clean", action="store_true", help="without wrong labels and gaps")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    args = parser.parse_args(words)
    if not 0 < args.hours <= 24 * 3650:
        parser.error(f"--hours is {args.hours:g}: it must be above 0 and at most ten years.")
    try:
        stream = KINDS[args.kind](
            args.devices,
            seed=args.seed,
            history=0.0,
            flaws=Flaws.none() if args.clean else None,
            drift=None if args.drift is None else Drift(HOUR * args.drift),
            window=10**6,
        )
        trained, tested = write(stream, HOUR * args.hours, args.out)
    except (ValueError, OSError) as error:
        print(f"sensors: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"{args.out}: {trained:,} rows of {args.devices} devices, {tested:,} test rows.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
