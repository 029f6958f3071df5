"""Answers an operator's surveys: statistics of the device's rows, once for each request, or why it gives none.

However often it is asked, its statistics change only with whole blocks of rows (`Samples.recorded`).
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict

from midge.broker.mqtt.connection import BrokerError, Connection, ConnectionLost
from midge.iot_client.connection.publisher import Publisher
from midge.iot_client.data.row_summary import TooFewRows, summary_of
from midge.iot_client.parts import DeviceParts
from midge.wire import sharing
from midge.wire.messages import Surveyed, SurveyRequest
from midge.wire.messages.survey import REASONS
from midge.wire.row_statistics import packed

log = logging.getLogger("iot_client")

RATE = 8e6
"""Weighted bytes a second of the answers of all devices together (`wire.sharing`), by which they spread."""
_LONGEST_SPREAD = 30.0
"""Seconds within which the devices of any fleet answer."""
_SMALL = 128
"""Bytes of an answer without statistics, about."""
_REMEMBERED = 64
"""Requests whose numbers are remembered."""
_WAITING = 8
"""Requests that may wait for their answer; the oldest is dropped first."""


class SurveyChannel:
    """The surveys of one device's federation.

    Args:
        parts: of the device; with `survey=False` it does not even read the requests.
        publisher: publishes the answers.
    """

    def __init__(self, parts: DeviceParts, publisher: Publisher) -> None:
        self._parts, self._publisher = parts, publisher
        self._waiting: OrderedDict[int, SurveyRequest] = OrderedDict()
        self._answered: OrderedDict[int, None] = OrderedDict()
        self._news = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether an answer is owed: no time to sleep."""
        return bool(self._waiting)

    async def subscribe(self, connection: Connection) -> None:
        """Subscribe to requests, if the owner allows surveys. A refusal is logged: the device takes part all the same.

        Raises:
            ConnectionLost: the connection ended.
        """
        if self._parts.config.survey:
            try:
                await connection.subscribe(self._parts.topics.survey, qos=0)
            except ConnectionLost:
                raise
            except BrokerError as error:
                log.info("%s: surveys are not answered: %s", self._parts.config.name, error)

    def expects(self, topic: str) -> bool:
        """Whether a message on this topic is a request."""
        return topic == self._parts.topics.survey

    def deliver(self, payload: bytes) -> None:
        """Process a request.

        Raises:
            WireError: it is none, or not trusted.
        """
        survey = self._parts.identity.survey(payload, time.time(), time.monotonic())
        if survey.number not in self._answered:
            self._waiting[survey.number] = survey
            if len(self._waiting) > _WAITING:
                self._waiting.popitem(last=False)
            self._news.set()

    async def follow(self, connection: Connection) -> None:
        """Answer over this connection: what was asked over an earlier one comes again if it is still open."""
        self._waiting.clear()
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                survey = next(iter(self._waiting.values()))
                if await self._answer(connection, survey):
                    self._answered[survey.number] = None
                self._waiting.pop(survey.number, None)
                if len(self._answered) > _REMEMBERED:
                    self._answered.popitem(last=False)

    async def _answer(self, connection: Connection, survey: SurveyRequest) -> bool:
        """Answer one request; return whether the broker has the answer."""
        parts, rows, answer = self._parts, 0, b""
        if (state := self._refusal()) is None:
            try:
                rows, answer = await asyncio.to_thread(self._summary, survey)
            except TooFewRows:
                state = "few"
            except (ValueError, ModuleNotFoundError) as error:  # a WireError is a ValueError
                log.warning("%s: a survey gets no statistics: %s", parts.config.name, error)
                state = "unfit"
        size = len(answer) or _SMALL
        spread = min(_LONGEST_SPREAD, sharing.spread(RATE, survey.devices, size, 1))
        await asyncio.sleep(spread * random.random())  # noqa: S311 - spreads load
        state = self._refusal() or state  # the owner may have been faster
        if state is not None:
            rows, answer = 0, parts.identity.frame(Surveyed.model_validate({"to": survey.number, "state": state}))
        if not await self._publisher.publish(connection, parts.topics.report(parts.config.name), answer):
            return False
        parts.tell("survey_answered", rows=rows, why=REASONS[state] if state else "")
        return True

    def _refusal(self) -> str | None:
        """Why nothing about the rows may be sent, as a state of the answer; None if it may."""
        parts = self._parts
        if parts.consent.withheld() is not None:
            return "withheld"
        if parts.config.secure is not None:
            return "secure"
        if parts.withdrawn is not None:
            return "forgotten"
        if parts.constraints.muted() is not None:
            return "muted"
        return "own" if parts.config.samples is None else None

    def _summary(self, survey: SurveyRequest) -> tuple[int, bytes]:
        """The number of rows and the answer with their summary; in a thread.

        Raises:
            TooFewRows: the device has too few for statistics.
            ValueError: they cannot be summarised, or the key of the request is invalid.
            ModuleNotFoundError: the library to seal is not installed.
        """
        parts = self._parts
        assert parts.config.samples is not None
        columns, summary = summary_of(parts.config.name, parts.config.samples)
        return summary.rows, parts.identity.answer(survey, packed(summary, columns))
