"""Secure aggregation of a demo: the keys of all parties, and the mask helper's process.

The process, `python -m midge.sensor_fleet.live.masked`, reads its task as one JSON line from standard input, and stops
at the end of that input. It writes events as JSON lines to standard output.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from midge.broker import connector
from midge.iot_client.masking_requirement import RequireSecure
from midge.mask_helper.config import HelperConfig, read_roster
from midge.mask_helper.service import HelperService
from midge.sensor_fleet.setting import BrokerAddress
from midge.storage.files import PUBLIC, atomic_write_all, make_folder
from midge.wire import signing

MODULE = "midge.sensor_fleet.live.masked"


class MaskingKeys:
    """The keys of a demo in its directory: of the aggregator, of the helper, and of each device."""

    def __init__(self, directory: Path) -> None:
        self.release, self.helper = directory / "release.key", directory / "helper" / "helper.key"
        self.helper_public = directory / "helper.pub"
        self.release_public = directory / "release.key.pub"
        self.roster, self._devices = directory / "helper" / "roster", directory / "devices"

    def make(self, names: Iterable[str]) -> None:
        """Make them all."""
        for folder in (self.roster, self._devices):
            make_folder(folder)
        keys = {name: signing.new_key() for name in names}
        release, helper = signing.new_key(), signing.new_key()
        atomic_write_all(self.release.parent, {self.release.name: release.pem()})
        atomic_write_all(self.helper.parent, {self.helper.name: helper.pem()})
        public = {self.helper_public.name: helper.public_pem(), self.release_public.name: release.public_pem()}
        atomic_write_all(self.release.parent, public, mode=PUBLIC)
        atomic_write_all(self.roster, {f"{name}.pub": key.public_pem() for name, key in keys.items()}, mode=PUBLIC)
        atomic_write_all(self._devices, {f"{name}.key": key.pem() for name, key in keys.items()})

    def of_device(self, name: str, k_min: int) -> dict[str, Any]:
        """Arguments of a device's config."""
        return {
            "release_key": self.release_public,
            "signing_key": self._devices / f"{name}.key",
            "secure": RequireSecure(helper_key=self.helper_public, k_min=k_min),
        }

    def of_aggregator(self) -> dict[str, Any]:
        """Arguments of the aggregator's config."""
        return {
            "release_key": self.release,
            "helper_key": self.helper_public,
            "device_keys": self.roster,
            "require_signed": True,
            "require_sealed": True,
        }


def of_task(task: dict[str, Any]) -> HelperService:
    """The helper of a task."""
    keys = MaskingKeys(Path(task["directory"]))

    def emit(event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    config = HelperConfig(
        connector=connector(BrokerAddress(**task["broker"]).endpoint()),
        federation=task["federation"],
        root=task["root"],
        directory=keys.helper.parent / "ledger",
        key=signing.read_private(keys.helper.read_bytes()),
        release_keys=[signing.read_public(keys.release_public.read_bytes())],
        roster=read_roster(keys.roster),
        least=task["k_min"],
        on_event=emit,
    )
    return HelperService(config)


async def main() -> int:
    """Read the task, and serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    if not (line := await lines.readline()):
        return 1
    helper = of_task(json.loads(line))
    watching = asyncio.create_task(lines.read())
    watching.add_done_callback(lambda _: helper.stop())
    try:
        await helper.serve()
    finally:
        watching.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
