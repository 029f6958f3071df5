"""Runs all trials on one device, over one connection."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from midge.aggregator.referee import life_trials
from midge.aggregator.referee.model import RefereedModel
from midge.aggregator.referee.referee import Referee, Silent
from midge.aggregator.referee.rules import RuleVerdict
from midge.aggregator.referee.trials import TRIALS
from midge.broker.mqtt.connection import ConnectionLost, Connector, Options, Will
from midge.broker.mqtt.retained import read_retained
from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, Hello
from midge.wire.topics import Topics

_GIVEN_UP = 2
"""Silent trials in a row after which the others are skipped."""


class FederationServed(RuntimeError):
    """An aggregator serves the federation that the referee should play."""


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """One run of the trials.

    Args:
        connect: opens the connection.
        topics: of a federation used only for this.
        device: the name of the device under test.
        parameters: the announced model.
        roles: which of its tensors are not trained.
        moments: statistics that are requested first: names and numbers of channels.
        wait: seconds in which the device must send READY.
        patience: seconds in which it must fetch, train and send.
        say: called with the name of each trial.
    """

    connect: Connector
    topics: Topics
    device: str
    parameters: Mapping[str, Any]
    roles: Mapping[str, str] = field(default_factory=dict)
    moments: Mapping[str, int] = field(default_factory=dict)
    wait: float = 120.0
    patience: float = 60.0
    say: Callable[[str], None] = lambda _words: None

    async def run(self) -> list[RuleVerdict]:
        """Run all trials.

        Raises:
            FederationServed: another aggregator is online.
            BrokerError: the connection failed.
        """
        model = RefereedModel.begin(self.topics, secrets.token_bytes(16), self.parameters, self.roles)
        last = AggregatorStatus(state=AggregatorState.LOST, boot=0, lineage=model.name)
        options = Options(
            client_id=f"midge-referee-{secrets.token_hex(6)}", will=Will(self.topics.aggregator, frames.encode(last))
        )
        async with self.connect(options) as connection:
            await self._look_around(connection)
            referee = Referee(connection, self.topics, self.device, model, patience=self.patience, say=self.say)
            await connection.subscribe(
                f"{self.topics.prefix}/update/+/{self.device}",
                self.topics.status(self.device),
                self.topics.report(self.device),
            )
            listening = asyncio.create_task(referee.listen())
            trying = asyncio.create_task(self._try_all(referee))
            try:
                await asyncio.wait({listening, trying}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():
                    listening.result()
                await trying
                await self._look_at_retained(referee)
            finally:
                for task in (trying, listening):
                    task.cancel()
                await asyncio.gather(trying, listening, return_exceptions=True)
                with suppress(ConnectionLost):
                    await referee.post_status(AggregatorState.STOPPED)
                    await referee.clear()
        return referee.notebook.findings()

    async def _look_around(self, connection: Any) -> None:
        """Check that no other aggregator serves here."""
        marker = f"{self.topics.aggregator}/{secrets.token_hex(6)}"
        for delivery in await read_retained(connection, self.topics.aggregator, marker=marker):
            with suppress(WireError):
                status, _ = messages.decode(AggregatorStatus, delivery.payload)
                if status.state.serves:
                    raise FederationServed(
                        f"An aggregator serves federation {self.topics.federation!r} on this broker: give the referee "
                        "and the device a federation of their own with --federation."
                    )

    async def _try_all(self, referee: Referee) -> None:
        silent = 0
        try:
            self.say("waiting for the device to greet: start it now")
            await life_trials.greeting(referee, self.wait)
            self.say("statistics")
            await life_trials.statistics(referee, self.moments)
        except Silent:
            return
        for words, trial, rules in TRIALS:
            self.say(words)
            try:
                await trial(referee)
                silent = 0
            except Silent as why:
                self.say(f"  {why}")
                for name in rules:
                    referee.notebook.failed(name, str(why))
                silent += 1
                if silent == _GIVEN_UP:
                    self.say("the device has gone silent: nothing more is tried")
                    return

    async def _look_at_retained(self, referee: Referee) -> None:
        """Check the device's retained messages."""
        marker, book = f"{self.topics.aggregator}/{secrets.token_hex(6)}", referee.notebook
        async with self.connect(Options(client_id=f"midge-referee-{secrets.token_hex(6)}")) as connection:
            updates = f"{self.topics.prefix}/update/+/{self.device}"
            found = await read_retained(connection, updates, self.topics.status(self.device), marker=marker)
        wrong = [delivery.topic for delivery in found if "/update/" in delivery.topic]
        statuses = [delivery for delivery in found if delivery.topic == self.topics.status(self.device)]
        if wrong:
            book.failed("retained", f"a message on {wrong[0]} is retained")
        elif not statuses and referee.observer.outbox is not None:
            book.failed("retained", "its status is not retained")
        elif statuses:
            with suppress(WireError):
                hello, _ = messages.decode(Hello, statuses[0].payload)
                book.passed("retained", f"its status is retained, {hello.state.value}")
