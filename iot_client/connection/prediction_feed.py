"""A device's predictions on an MQTT topic, as JSON.

They are of the rows that its samples see, whether these are kept or not: rows without a label are those to predict.
They have a connection of their own, so that no model or update delays them; the newest is sent first, and while the
broker is away only the newest and the last alarm are kept.
"""

import asyncio
import json
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.broker.mqtt.connection import (
    BrokerError,
    Connection,
    Options,
    PacketTooLarge,
    PublishRefused,
)
from midge.iot_client.data.samples import DEVIATION
from midge.iot_client.parts import DeviceParts
from midge.iot_client.state.prediction import NoModel
from midge.storage.daemon_thread import DaemonThreads

log = logging.getLogger("iot_client")

Row = npt.NDArray[np.float32]
Message = tuple[bytes, dict[str, Any]]
"""A prediction as it is published, and its fields."""

_WAITING = 256
"""Maximum number of rows that wait for their prediction; the oldest are dropped first."""
_LEAST = 32
"""Rows needed before an unusual score can be distinguished."""
_UNUSUAL = 10.0
"""Robust deviations above the median of the scores of the device's own rows."""
_AGAIN = 256
"""Rows after which the threshold is computed again."""
_LONGEST = 60.0


class PredictionFeed:
    """Predicts each arriving row, and publishes the result.

    Args:
        parts: of the device; its config has `publish` and samples.
        unsuited: returns why the device's inputs are not the model's, or None.
    """

    def __init__(self, parts: DeviceParts, unsuited: Callable[[], str | None]) -> None:
        assert parts.config.publish is not None and parts.config.samples is not None
        self._parts, self._unsuited = parts, unsuited
        self._to, self._samples = parts.config.publish, parts.config.samples
        self._rows: deque[Row] = deque(maxlen=_WAITING)
        self._came, self._made = asyncio.Event(), asyncio.Event()
        self._newest: bytes | None = None
        """The newest prediction that is not published yet."""
        self._alarm_edge: bytes | None = None
        """The prediction with which the alarm began or ended, until it is published."""
        self._alarmed = False
        self._threshold_cache: tuple[tuple[int, int], float | None] = ((-1, -1), None)
        """The threshold, and the version and rows that it was computed for."""
        self._pause = 1.0
        """Seconds before the next attempt to connect, until a prediction is published."""
        self._told: set[str] = set()
        """Problems logged since the last published prediction."""

    async def run(self) -> None:
        """Predict and publish, forever."""
        loop = asyncio.get_running_loop()

        def came(row: Row) -> None:
            self._rows.append(row)
            loop.call_soon_threadsafe(self._came.set)

        self._samples.on_row = came
        predicting = asyncio.create_task(self._predict())
        try:
            while True:
                await self._made.wait()
                options = Options(client_id=f"midge-predictions-{self._parts.config.name}-{secrets.token_hex(6)}")
                try:
                    async with (self._to.connector or self._parts.config.connector)(options) as connection:
                        await self._publish(connection)
                except BrokerError as error:
                    self._say("broker", f"predictions cannot be published: {error} Trying again until they can")
                await asyncio.sleep(self._pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
                self._pause = min(2 * self._pause, _LONGEST)
        finally:
            self._samples.on_row = None
            predicting.cancel()

    def _say(self, kind: str, words: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s: %s.", self._parts.config.name, words)

    # ----------------------------------------------------------------------- predicting

    async def _predict(self) -> None:
        loop, threads = asyncio.get_running_loop(), DaemonThreads()
        while True:
            await self._came.wait()
            self._came.clear()
            while self._rows:
                row = self._rows.popleft()
                if why := self._unsuited():
                    self._say("unsuited", f"nothing is predicted: {why}")
                    continue
                try:
                    found = await loop.run_in_executor(threads, self._message, row)
                except NoModel as error:
                    self._say("model", f"nothing is predicted: {str(error).removesuffix('.')}")
                except Exception:
                    if "predict" not in self._told:
                        self._told.add("predict")
                        log.exception("%s: predict() failed.", self._parts.config.name)
                else:
                    self._take(found)

    def _take(self, message: Message) -> None:
        payload, found = message
        self._told -= {"unsuited", "model", "predict"}
        if (alarm := found.get("alarm")) is not None and alarm != self._alarmed:
            self._alarmed, self._alarm_edge = alarm, payload
            self._parts.tell("unusual" if alarm else "usual", **{key: found[key] for key in found if key != "device"})
        self._newest = payload
        self._made.set()

    def _message(self, row: Row) -> Message:
        """The prediction of a row. Blocks while it is computed."""
        model = self._parts.predicting.model
        version = 0 if model is None else model.version
        said: npt.NDArray[Any] = np.asarray(self._parts.predicting(row))
        value = said.item() if said.size == 1 else said.tolist()
        if isinstance(value, float) and not np.isfinite(value):
            value = None  # JSON has no infinity
        found: dict[str, Any] = {
            "device": self._parts.config.name,
            "federation": self._parts.config.federation,
            "time": round(time.time(), 3),
            "version": version,
        }
        kind: str = self._samples.kind
        limit, classes = self._to.alarm, self._to.classes
        if kind == "classification":
            named = classes[value] if isinstance(value, int) and 0 <= value < len(classes) else value
            found |= {"label": self._samples.label, "class": named}
            if limit is not None:
                found["alarm"] = named == limit
        else:
            found |= {"label": self._samples.label, "prediction": value} if kind == "regression" else {"score": value}
            if kind != "regression" and limit is None:
                limit = self._threshold(version)
            if limit is not None:
                found |= {"threshold": float(limit), "alarm": isinstance(value, int | float) and value > float(limit)}
        return json.dumps(found, allow_nan=False, ensure_ascii=False).encode(), found

    def _threshold(self, version: int) -> float | None:
        """The score above which a row is unusual compared with the device's own; None if they are too few."""
        state = version, self._samples.seen // _AGAIN
        if state != self._threshold_cache[0] or self._threshold_cache[1] is None:
            x, _ = self._samples.arrays(take=False)
            limit = None
            if len(x) >= _LEAST:
                scores = np.asarray(self._parts.predicting(x), np.float64)
                middle = float(np.median(scores))
                limit = middle + _UNUSUAL * DEVIATION * float(np.median(np.abs(scores - middle)))
            self._threshold_cache = state, limit
        return self._threshold_cache[1]

    # ----------------------------------------------------------------------- publishing

    async def _publish(self, connection: Connection) -> None:
        """Publish pending predictions, and new ones as they come.

        Raises:
            ConnectionLost: the connection ended; unacknowledged predictions are sent over the next one.
        """
        while True:
            await self._made.wait()
            self._made.clear()
            turned, newest = self._alarm_edge, self._newest
            try:
                if turned is not None:
                    await self._send(connection, f"{self._to.topic}/alarm", turned)
                    self._alarm_edge = None if self._alarm_edge is turned else self._alarm_edge
                if newest is not None:
                    await self._send(connection, self._to.topic, newest)
                    self._newest = None if self._newest is newest else self._newest
            except BrokerError:
                self._made.set()
                raise
            await asyncio.sleep(self._to.every)

    async def _send(self, connection: Connection, topic: str, payload: bytes) -> None:
        try:
            await connection.publish(topic, payload, retain=self._to.retain)
        except (PublishRefused, PacketTooLarge) as error:
            self._say("refused", f"the broker took no prediction on {topic}: {str(error).removesuffix('.')}")
        else:
            self._pause = 1.0
            self._told -= {"broker", "refused"}
