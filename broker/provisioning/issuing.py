"""`midge broker renewals`: answers requests for new credentials, on the machine with the authority's key.

Requests and answers are retained, so it need not run always: an hour each week is enough, and a sleeping device finds
its answer when it wakes. Once a device has connected with the new credentials, it removes its request, and its answer
is removed.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from midge.broker import Connector, connector
from midge.broker.mqtt.connection import BrokerError, Connection, Delivery, Options
from midge.broker.mqtt.waiting import batches, happened
from midge.broker.provisioning import manage_devices, renewals
from midge.broker.provisioning.bundles import read_bundle
from midge.broker.provisioning.fleet_registry import ISSUER, Fleet, FleetError, present, read_fleet
from midge.broker.provisioning.own_certificates import renew_own

log = logging.getLogger("midge.renewals")

_BATCH = 0.5
"""Seconds for which requests are collected, so that the register is written once for all of them."""
_AT_MOST = 500
"""Requests of a batch at most."""
_TEND = 3600.0
"""Seconds between two checks of what expires here."""
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class IssuingService:
    """The issuer of one fleet.

    Args:
        directory: of the fleet.
        tell: takes events: dicts, like those of devices and aggregators.
        connect: replaces the connector of the bundle.

    Raises:
        FleetError: the directory holds no authority.
    """

    def __init__(
        self, directory: Path, tell: Callable[[dict[str, Any]], None], *, connect: Connector | None = None
    ) -> None:
        self._directory, self._listener, self._connect = directory, tell, connect
        self._topics = _prepared(directory).topics
        self._stop = asyncio.Event()
        self._said: tuple[str, ...] = ()

    def stop(self) -> None:
        """End `serve`."""
        self._stop.set()

    async def serve(self) -> None:
        """Answer requests until stopped.

        Raises:
            BrokerError: the very first connection failed.
        """
        pause, before = _PAUSE, False
        while not self._stop.is_set():
            try:
                connect = self._connect or connector(read_bundle(self._directory / "issuer").endpoint)
                async with connect(Options(client_id=f"midge-issuer-{secrets.token_hex(4)}")) as connection:
                    before, pause = True, _PAUSE
                    self._emit("connected")
                    await self._answer(connection)
            except BrokerError as error:
                if not before:
                    raise
                self._emit("disconnected", why=str(error), refused=False)
                await happened(self._stop, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _answer(self, connection: Connection) -> None:
        await connection.subscribe(self._topics.renewals)
        trusted, tended = b"", float("-inf")
        async with batches(connection, self._stop) as batch:
            while not self._stop.is_set():
                if time.monotonic() >= tended + _TEND:
                    tended = time.monotonic()
                    await asyncio.to_thread(self.tend)
                # Read each time, because another process, the command, changes it.
                if (newest := renewals.whom_to_trust(self._directory)) != trusted:
                    await connection.publish(self._topics.authorities, newest, retain=True)
                    trusted = newest
                if found := await batch(5.0):
                    await asyncio.sleep(_BATCH)
                    await self._take(connection, [*found, *connection.waiting()])

    async def _take(self, connection: Connection, batch: list[Delivery]) -> None:
        newest = {delivery.topic.rsplit("/", 1)[-1]: delivery.payload for delivery in batch}
        asked = {name: payload for name, payload in newest.items() if payload}
        for first in range(0, len(asked), _AT_MOST):
            some = dict(list(asked.items())[first : first + _AT_MOST])
            found = await asyncio.to_thread(renewals.answer, self._directory, some)
            # A broker with a new password in its file refuses it until the file is read; the device retries.
            posts = [
                connection.publish(self._topics.renewed(name), reply, retain=True)
                for name, reply in found.replies.items()
            ]
            # Unanswered messages only report whom a device trusts, or come from an unknown sender: remove them.
            posts += [
                connection.publish(self._topics.renew(name), b"", retain=True)
                for name in some.keys() - found.replies.keys()
            ]
            await asyncio.gather(*posts)
            self._emit("renewed", granted=found.granted, refused=len(found.replies) - found.granted)
            if found.told is not None and found.told.todo:
                self._emit("todo", commands=list(found.told.todo))
        done = [name for name, payload in newest.items() if not payload]
        await asyncio.gather(*(connection.publish(self._topics.renewed(name), b"", retain=True) for name in done))
        for delivery in batch:
            connection.ack(delivery)

    def tend(self) -> None:
        """Renew certificates that lie here, and report what expires soon."""
        for name in renew_own(self._directory, present()):
            self._emit("renewed_here", whose=name)
        said = tuple(manage_devices.warnings(self._directory, present()))
        for alarm in said:
            if alarm not in self._said:
                log.warning("%s", alarm)
                self._emit("alarm", why=alarm)
        self._said = said

    def _emit(self, event: str, **fields: Any) -> None:
        self._listener({"event": event, "time": time.time(), **fields})


def _prepared(directory: Path) -> Fleet:
    """The register, with an issuer added if an earlier version made the directory."""
    fleet = read_fleet(directory)
    if fleet.way == "join":
        raise FleetError("This fleet's authority is another team's: certificates are renewed there.")
    if ISSUER not in fleet.members or not (directory / "issuer").is_dir():
        manage_devices.add_issuer(directory)
    return fleet
