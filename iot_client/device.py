"""The device that a program holds: its config says what it is, `iot_client.runtime` is what runs while it serves."""

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
        config: what it is; another one may take its place until it serves.

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
        """What it is. Replaced as a whole, as by `device.config = replace(device.config, name="pump-2")`.

        Raises:
            RuntimeError: the device serves, or has served: it is too late.
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
        """Those of its federation."""
        return self._parts.topics

    # ------------------------------------------------------------------------- its life

    def run(self) -> None:
        """Take part until interrupted."""
        asyncio.run(self.serve())

    async def serve(self) -> None:
        """Take part until `stop()`. Reconnects by itself, with growing, jittered pauses.

        Raises:
            OutboxError: the outbox cannot be used, and there is no model to go on predicting with.
            BrokerError: the very first connection failed, of a device that has never taken part.
            DuplicateDeviceName: another live device has our name.
            TrainerError: the trainer returned what is no update.
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
        """What is to run; the outbox is open."""
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
        """End the connection that stands, with a goodbye; the connector says when there is another. In its loop."""
        if self._runtime is not None:
            self._runtime.connections.part(DeviceState.DISCONNECTED)

    def look(self) -> None:
        """See now whether something of the device's own keeps it from training. While `serve` runs, and in its loop."""
        if self._runtime is not None:
            self._runtime.look()

    # ------------------------------------------------------------------------- its data

    def observe(self, x: Any, y: float | None = None) -> bool:
        """Keep a row of the device's data; whether it is worth keeping. From any thread; see `Samples.observe`."""
        if self.config.samples is None:
            raise ValueError("Say where rows are to be kept: Device(samples=midge.Samples(…)).")
        return self.config.samples.observe(x, y)

    def predict(self, x: Any) -> Any:
        """Predict with the newest verified model: that of the channel `serve`, or the newest fetched. From any thread.

        Raises:
            NoModel: there is none yet, or the device was not told how to predict.
        """
        return self._parts.predicting(x)

    # ---------------------------------------------------------------------- its figures

    @property
    def holding(self) -> int:
        """How many updates wait for their receipt; 0 before it serves."""
        return 0 if self._runtime is None else self._runtime.session.holding

    @property
    def next_seq(self) -> int:
        """The number that the next update will get; 1 before it serves."""
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
        """Trainings whose process was killed so far."""
        return self._parts.counters.killed
