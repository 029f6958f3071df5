"""Print the files that one accepted update passes through, as one JSON line: python -m tools.walk [--release].

It is the second update of its device, in a buffer of 50, under the default strategy; with --release in a buffer of one,
so that a step and a release follow. Counted below the connection, from the delivery on, are the files, the calls, and
the calls that lead to another file.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import balanced
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from midge.wire import chunks, codecs, frames
from midge.wire.messages import DeviceState, Hello, Update

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("wire", "storage", "broker", "aggregator")
FEDERATION, DEVICES, SIZE = "walk", "abcdef", 16


def walked(work: Callable[[], None]) -> list[str]:
    """The file of each call into our code that `work` makes."""
    found: list[str] = []

    def called(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename).resolve()  # the folders below `midge` are links
        if event == "call" and path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            found.append(path.relative_to(ROOT).as_posix())

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def walk(directory: Path, buffer: int) -> list[str]:
    """The files that an update passes through."""
    posts: list[Post] = []
    config = AggregatorConfig(
        connector=Twin().connect,
        federation=FEDERATION,
        initial={"x": np.zeros(SIZE, np.float32)},
        store=directory,
        strategy=balanced(buffer_size=buffer, byte_rate=0.0),
    )
    federation = FederationRuntime(config, Outlet(posts.append, lambda *_, **__: None), 0.0)
    federation.begin(0.0)
    core, topics, random = federation.core, config.topics, np.random.default_rng(0)

    def update(device: str, seq: int) -> Delivery:
        body = codecs.encode_delta(random.normal(0, 0.01, SIZE).astype(np.float32), config.schema, "float32")
        header = Update(
            outbox=1,
            first=seq,
            seq=seq,
            lineage=core.lineage,
            generation=core.generation,
            base=core.version,
            schema_hash=core.schema_hash,
            codec="float32",
            size=len(body),
            sha256=chunks.checksum(body),
            examples=10,
            steps=10,
            seconds=1.0,
        )
        return Delivery(topics.update(device), frames.encode(header, body), 1, retain=False)

    greetings = [frames.encode(Hello(state=DeviceState.READY, outbox=1, first=1))] * len(DEVICES)
    federation.process(
        [Delivery(topics.status(name), each, 1, retain=False) for name, each in zip(DEVICES, greetings, strict=True)],
        0.5,
    )
    federation.process([update(name, 1) for name in DEVICES[:3]], 1.0)
    delivery, version, accepted = update("a", 2), core.version, core.counts["accepted"]
    now = 20.0 if buffer == 1 else 1.5  # a buffer that is not full makes a step after some seconds
    found = walked(lambda: federation.processor.process([delivery], now))
    assert core.counts["accepted"] == accepted + 1
    assert (core.version > version) == (buffer == 1)
    federation.close()
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="for an update that triggers a step and a release")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        calls = walk(Path(directory), 1 if arguments.release else 50)
    files = Counter(calls)
    changes = sum(one != other for one, other in pairwise(calls))
    found = {"files": len(files), "calls": len(calls), "changes": changes, "by_file": dict(files.most_common())}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
