"""Cost of the log of releases: `python -m benchmarks.ledger [--quick]` prints one JSON line.

A log of 400 entries is made by releases of 4, 20 and 100 updates each, in a store on disk. Each row has bytes in an
announcement, in an answer and per entry in the store, and the processor time in which a release's entries and a proof
are made; all are medians.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.suite import machine
from midge.aggregator.core import records as rec
from midge.aggregator.core.presets import fedbuff
from midge.wire import frames, messages
from midge.wire.messages.proofs import Prove
from tests.aggregator.rig import TOPICS, Rig, rig


def row(updates: int, entries: int, directory: Path) -> dict[str, Any]:
    """Measure releases of this many updates."""
    strategy = fedbuff(updates, release_floor=2, norm_limit=None, bounded=False, deadline=None)
    spent: list[float] = []
    with rig(directory, strategy) as life:
        write = life.store.ledger.write

        def timed(db: Any) -> None:
            began = time.process_time()
            write(db)
            spent.append(time.process_time() - began)

        life.store.ledger.write = timed  # type: ignore[method-assign]
        number = 0
        while life.store.ledger.head.size < entries:
            number += 1
            for device in range(updates):
                life.send(f"d{device}", number, [1.0, device, number, 1.0], base=life.core.version)
        ((stored,),) = life.store.query("SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'ledger%'")
        answers, proving = _proofs(life)
        payload = next(post.payload for post in reversed(life.posts) if post.topic == TOPICS.announcement())
        without = messages.decode_announcement(payload).model_copy(update={"ledger": b""})
        return {
            "updates": updates,
            "entries": life.store.ledger.head.size,
            "announcement_bytes": len(payload) - len(messages.encode_announcement(without)),
            "answer_bytes": answers,
            "stored_bytes_per_entry": round(stored / life.store.ledger.head.size, 1),
            "release_ms": round(1000 * statistics.median(spent[-100:]), 3),
            "proof_ms": proving,
        }


def _proofs(life: Rig) -> tuple[int, float]:
    """Bytes of an answer, and milliseconds in which it is made."""
    rows = life.store.query("SELECT record FROM journal WHERE kind = 'update' ORDER BY lsn")
    sizes, spent, size = [], [], life.store.ledger.head.size
    for (packed,) in rows[:: max(1, len(rows) // 200)]:
        update = rec.unpack("update", packed)
        assert isinstance(update, rec.UpdateRecord)
        asked = Prove(outbox=update.outbox, seq=update.seq, entries=size, earlier=size // 2)
        began = time.process_time()
        proof = life.store.ledger.prove(update.device, asked)
        spent.append(time.process_time() - began)
        assert not proof.why
        sizes.append(len(frames.encode(proof)))
    return round(statistics.median(sizes)), round(1000 * statistics.median(spent), 3)


def main() -> int:
    """Print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        rows = [row(number, 200 if args.quick else 400, Path(folder, str(number))) for number in (4, 20, 100)]
    print(json.dumps({"benchmark": "ledger", "quick": args.quick, "machine": machine(), "load": load, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
