"""Programs that tell on standard output what they have promised, until the power goes: `writers.py server DIR`."""

import hashlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = 9000
"""36 kB in float32: as large as bodies that lie beside the journal."""
IDENTITY = "identity"


def server(directory: Path) -> None:
    """An aggregator that says of each update that its receipt is on the way."""
    import numpy as np

    from midge.aggregator.store.store import Store
    from tests.aggregator.rig import rig

    parameters = {"x": np.zeros(PLACES, np.float32)}
    with rig(directory, parameters=parameters, store=Store(directory)) as life:
        for seq in range(1, PLACES):
            delta = np.zeros(PLACES, np.float32)
            delta[seq] = 1
            life.send("a", seq, delta)
            tell(seq)
            if seq % 20 == 0:
                life.engine.checkpoint(life.core)


def device(directory: Path) -> None:
    """An outbox that says of each update that it is stored; receipts settle all but the last three."""
    from midge.iot_client.state.outbox import Outbox
    from midge.wire.messages import Update

    body = os.urandom(2000)
    with Outbox(directory / "outbox") as outbox:
        tell(IDENTITY, outbox.identity)
        for seq in range(1, 10**6):
            update = Update(
                outbox=outbox.identity,
                first=max(1, seq - 3),
                seq=seq,
                lineage=bytes(16),
                generation=0,
                base=1,
                schema_hash=bytes(16),
                codec="float32",
                size=len(body),
                sha256=hashlib.sha256(body).digest(),
            )
            outbox.store(update, body)
            tell(seq)
            outbox.forget(seq - 3)


def keys(directory: Path) -> None:
    """Release keys with their successors, one fleet after another, that say of each that it is written."""
    from midge.aggregator.publish.announcement_signer import succeed, write_secret
    from midge.wire import signing

    for fleet in range(10**6):
        folder = directory / str(fleet)
        folder.mkdir()
        write_secret(folder / "release.key", signing.new_key().pem())
        tell(fleet, 0)
        for link in range(1, 6):
            succeed(folder / "release.key", "f", float(link))
            tell(fleet, link)


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.mutants.bugs import BUGS
    from tests.mutants.launch import VARIABLE

    if name := os.environ.get(VARIABLE):
        BUGS[name].plant(setattr)
    {"server": server, "device": device, "keys": keys}[sys.argv[1]](Path(sys.argv[2]))
