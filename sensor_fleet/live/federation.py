"""The server side of a live fleet: a broker, and the aggregator's process; both can be killed and restarted."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from midge.broker import BrokerError, connector
from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.mqtt.federation_view import clear_federation
from midge.sensor_fleet.live.aggregator_process import AggregatorProcess
from midge.sensor_fleet.live.masked import MODULE as HELPER
from midge.sensor_fleet.setting import BrokerAddress
from midge.wire.topics import Topics

Which = Literal["auto", "mosquitto", "embedded"]


class LocalFederation:
    """The broker and the aggregator of a run.

    Args:
        topics: of the federation.
        directory: of the run's files.
        broker: the address of a running one, or which kind to start.
        task: for the aggregator's process (`sensor_fleet.live.server`); None starts none.
        on_event: called with each event of the aggregator.
    """

    def __init__(
        self,
        topics: Topics,
        directory: Path,
        broker: Which | BrokerAddress,
        task: Mapping[str, Any] | None,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._topics, self._directory, self._task, self._on_event = topics, directory, task, on_event
        self._broker = broker
        self.local: LocalBroker | None = None
        """Our broker; None if it is not ours."""
        self.aggregator: AggregatorProcess | None = None
        self.helper: AggregatorProcess | None = None
        """The mask helper's process; None if there is none."""
        self.helped: dict[str, int] = {"sums": 0}
        """What the helper has done."""

    @asynccontextmanager
    async def reach_broker(self) -> AsyncIterator[BrokerAddress]:
        """Provide the broker within the block. Retained messages on a broker that is not ours are cleared."""
        if isinstance(self._broker, BrokerAddress):
            try:
                yield self._broker
            finally:
                if self._task is not None:
                    with suppress(BrokerError):
                        await clear_federation(connector(self._broker.endpoint()), self._topics)
            return
        directory = self._directory / "broker"
        directory.mkdir()
        async with local_broker(self._broker, directory=directory) as self.local:
            yield BrokerAddress(str(self.local.endpoint))

    @asynccontextmanager
    async def start_aggregator(self, broker: BrokerAddress) -> AsyncIterator[None]:
        """Run the aggregator for the duration of the block, if there is a task."""
        if self._task is None:
            yield
            return
        task = {**self._task, "broker": asdict(broker), "directory": str(self._directory)}
        self.aggregator = AggregatorProcess(task, self._directory / "aggregator.log", self._on_event)
        try:
            await self.aggregator.start()
            yield
        finally:
            self.aggregator.failure.cancel()
            await self.aggregator.stop()

    @asynccontextmanager
    async def start_helper(self, broker: BrokerAddress, k_min: int) -> AsyncIterator[None]:
        """Run the mask helper of secure aggregation for the duration of the block."""
        task = {
            "broker": asdict(broker),
            "directory": str(self._directory),
            "federation": self._topics.federation,
            "root": self._topics.root,
            "k_min": k_min,
        }
        self.helper = AggregatorProcess(
            task, self._directory / "helper.log", self._of_helper, module=HELPER, name="mask helper"
        )
        try:
            await self.helper.start()
            yield
        finally:
            self.helper.failure.cancel()
            await self.helper.stop()

    def _of_helper(self, event: dict[str, Any]) -> None:
        if event["event"] == "dealt":
            self.helped["sums"] += event["sums"]

    async def run_beside(self, *works: "asyncio.Future[Any]", within: float | None = None) -> bool:
        """Wait for the first of these to end; False on timeout.

        Raises:
            Exception: of the one that ended.
            DemoError: the aggregator's process ended.
        """
        failure = [each.failure for each in (self.aggregator, self.helper) if each is not None]
        done, _ = await asyncio.wait({*works, *failure}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
        return bool(done)

    # ------------------------------------------------------------------------- breaking things

    @property
    def aggregator_running(self) -> bool:
        return self.aggregator is not None and self.aggregator.running

    @property
    def broker_running(self) -> bool:
        """Whether our broker runs; True if it is not ours, since its state is not known."""
        return self.local is None or self.local.running

    def kill_aggregator(self) -> bool:
        """Kill the aggregator's process with SIGKILL. False if it is not running."""
        if self.aggregator is None or not self.aggregator.running:
            return False
        self.aggregator.kill()
        return True

    def kill_broker(self) -> bool:
        """Kill our broker with SIGKILL. False if it is not running or not ours."""
        if self.local is None or not self.local.running:
            return False
        self.local.kill()
        return True
