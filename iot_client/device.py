"""The public device: its config is a value, and `iot_client.runtime` runs while it serves."""

import asyncio
from typing import Any

from midge.iot_client.board.local_status import answering
from midge.iot_client.config import DeviceConfig
from midge.iot_client.parts import DeviceParts
from midge.iot_client.runtime import DeviceRuntime
from midge.iot_client.state.outbox import OutboxError
from midge.wire.messages import DeviceState
from midge.wire.topics import Topics


class Device:
    """One participant of one federation. `run()` takes part until it is interrupted.

    Args:
        config: may be replaced until the device serves.

    Raises:
        KeyUnusable: a key cannot be read.
    """

    def __init__(self, config: DeviceConfig) -> None:
        self._parts = DeviceParts.of(config)
        self._runtime: DeviceRuntime | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    @property
    def config(self) -> DeviceConfig:
        """The configuration. Replaced as a whole, as by `device.config = replace(device.config, name="pump-2")`.

        Raises:
            RuntimeError: the device serves, or has served.
            KeyUnusable: a key of the new one cannot be read.
        """
        return self._parts.config

    @config.setter
    def config(self, config: DeviceConfig) -> None:
        if self._runtime is not None:
            raise RuntimeError("The config of a device cannot be replaced once it serves: do it before serve().")
        self._parts = DeviceParts.of(config)

    @property
    def name(self) -> str:
        """Its name in the federation."""
        return self.config.name

    @property
    def topics(self) -> Topics:
        """The topics of its federation."""
        return self._parts.topics

    # ------------------------------------------------------------------------- life cycle

    def run(self) -> None:
        """Take part until interrupted."""
        asyncio.run(self.serve())

    async def serve(self) -> None:
        """Take part until `stop()`. Reconnects by itself, with back-off and jitter.

        Raises:
            OutboxError: the outbox cannot be used, and there is no model to continue predicting with.
            BrokerError: the very first connection failed, of a device that has never taken part.
            DuplicateDeviceName: another live device has our name.
            TrainerError: the trainer's result is no update.
            Exception: whatever the trainer raised.
        """
        parts = self._parts
        with parts.outbox:
            parts.identity.begin(self.name, parts.outbox)
            self._loop = asyncio.get_running_loop()
            self._runtime = runtime = self._begin(parts)
            if self._stopped:
                runtime.connections.stop()
            try:
                async with answering(parts.outbox.path, runtime.figures):
                    await runtime.run()
            except OutboxError as error:
                if parts.predicting.model is None:
                    raise
                await runtime.predict_on(str(error))
            finally:
                if (end := getattr(parts.config.train, "end_training", None)) is not None:
                    end()
                parts.flush()
                if parts.config.samples is not None:
                    parts.config.samples.close()

    def _begin(self, parts: DeviceParts) -> DeviceRuntime:
        """Make the runtime; the outbox is open."""
        return DeviceRuntime(parts)

    def stop(self) -> None:
        """End `serve` cleanly. From any thread."""
        self._stopped = True
        if self._runtime is None or self._loop is None:
            return
        if asyncio._get_running_loop() is self._loop:  # noqa: SLF001 - the public one raises
            self._runtime.connections.stop()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._runtime.connections.stop)

    def hang_up(self) -> None:
        """End the current connection with a last status; the connector returns when there is another. In its loop."""
        if self._runtime is not None:
            self._runtime.connections.part(DeviceState.DISCONNECTED)

    def look(self) -> None:
        """Check now whether the device's own constraints keep it from training. While `serve` runs, and in its loop."""
        if self._runtime is not None:
            self._runtime.look()

    # ------------------------------------------------------------------------- its data

    def observe(self, x: Any, y: float | None = None) -> bool:
        """Add a row of the device's data; return whether it is kept. From any thread; see `Samples.observe`."""
        if self.config.samples is None:
            raise ValueError("Say where to keep rows: Device(samples=midge.Samples(…)).")
        return self.config.samples.observe(x, y)

    def predict(self, x: Any) -> Any:
        """Predict with the newest verified model: the served one, or the newest fetched. From any thread.

        Raises:
            NoModel: there is none yet, or the device has no `predict` function.
        """
        return self._parts.predicting(x)

    # ---------------------------------------------------------------------- its figures

    @property
    def holding(self) -> int:
        """Number of updates without a receipt; 0 before it serves."""
        return 0 if self._runtime is None else self._runtime.session.holding

    @property
    def next_seq(self) -> int:
        """The sequence number of the next update; 1 before it serves."""
        return 1 if self._runtime is None else self._runtime.session.next

    @property
    def bytes_up(self) -> int:
        """Payload bytes published so far."""
        return self._parts.counters.bytes_up

    @property
    def bytes_down(self) -> int:
        """Payload bytes received so far."""
        return self._parts.counters.bytes_down

    @property
    def killed(self) -> int:
        """Number of trainings whose process was killed."""
        return self._parts.counters.killed
