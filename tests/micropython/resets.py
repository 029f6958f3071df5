"""Resets of a MicroPython device: N updates, R times the power is taken away, and the books of both sides compared.

`python -m tests.micropython.resets --updates 1000 --resets 100`: one JSON line. The device is killed at random moments,
and the aggregator with it at `--restarts` of them. `heap_kib` is the smallest heap, beside the code, for a model of
4,001 parameters with one hidden layer, trained and sent as int8.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tests.harness.ledger import Books
from tests.micropython.board import HEAP, code_bytes, compiled
from tests.micropython.federation import Board, federation


async def play(updates: int, resets: int, restarts: int, seed: int, directory: Path) -> dict[str, Any]:
    """What came of it."""
    code, random = compiled(directory / "code"), Random(seed)
    books = Books(devices=1, updates=updates, codec="int8:256", chunk=1024, store=str(directory / "store"))
    done, happened = 0, 0
    moments = sorted(random.sample(range(1, updates), min(resets, updates - 1)))
    kills = set(random.sample(moments, min(restarts, len(moments))))
    page = directory / "devices" / "device-0.jsonl"
    async with federation(books, directory) as life:
        board = Board(life, 0, code, HEAP + code_bytes(code))
        await board.start()
        for moment in moments:
            while done < moment and board.running:
                await asyncio.sleep(0.005)
                done = _settled(page)
            await asyncio.sleep(random.uniform(0, 0.05))  # somewhere in the next update
            if not board.running:
                break
            await board.reset()
            happened += 1
            if moment in kills:
                await life.aggregator.kill()
                await life.aggregator.start()
        await board.ended()
        events = board.events()
        books_say = await life.audit()
    return {
        "updates": books_say.accepted,
        "resets": happened,
        "lost": books_say.lost + updates - books_say.accepted,
        "doubled": books_say.doubled,
        "damaged": sum(event["event"] == "damaged" for event in events),
        "restarts": len(kills),
    }


def _settled(page: Path) -> int:
    """Up to which number the device was told that its updates are settled."""
    try:
        last = page.read_bytes().rsplit(b"\n", 2)[-2]
    except (OSError, IndexError):
        return 0
    line = json.loads(last)
    return int(line.get("seq", line.get("through", 0)))


def main() -> int:
    """Print the line; 1 if an update was lost or doubled, or a version was not to the bit that of the aggregator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--resets", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=0, help="of the aggregator, among the resets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heap", action="store_true", help="look for the smallest heap as well: some twenty seconds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(play(args.updates, args.resets, args.restarts, args.seed, Path(directory)))
    if args.heap:
        from tests.micropython.heap import smallest

        with tempfile.TemporaryDirectory() as directory:
            found["heap_kib"] = asyncio.run(smallest(Path(directory)))
    sys.stdout.write(json.dumps({"benchmark": "micro", "client": "micropython", **found}) + "\n")
    return 1 if found["lost"] or found["doubled"] or found["damaged"] else 0


if __name__ == "__main__":
    sys.exit(main())
