"""The aggregator's retained status: made of the federation's state and health, and published when it changes."""

import time
from collections.abc import Callable

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.health import HealthReporter
from midge.aggregator.publish.publish_queue import Post
from midge.wire.messages import AggregatorState, AggregatorStatus


class StatusPublisher:
    """The status of one start of an aggregator.

    Args:
        federation: the open runtime.
        boot: random bits of this start.
        put: takes messages to publish.
        tell: takes events.
    """

    def __init__(
        self, federation: FederationRuntime, boot: int, put: Callable[[Post], None], tell: Callable[..., None]
    ) -> None:
        self._federation, self._boot, self._put = federation, boot, put
        self._held: str | None = None
        """Why no updates are accepted, as last published."""
        self._number = 0
        """The number of the key of the day, as last published."""
        self.health = HealthReporter(federation, tell, self.publish)

    def status(self, state: AggregatorState | None = None) -> AggregatorStatus:
        """The status in a state, by default the current one of an aggregator that serves."""
        core, issuer = self._federation.core, self._federation.issuer
        state = state or (AggregatorState.READY if self._federation.hold is None else AggregatorState.PAUSED)
        return AggregatorStatus(
            state=state,
            boot=self._boot,
            lineage=core.lineage,
            generation=core.generation,
            version=core.version,
            step=core.step,
            why=self._why[:400] if state.serves else "",
            health=self.health.health(time.monotonic()) if state.serves else None,
            token=issuer.token,
            name=issuer.site,
            vouch=issuer.certificate,
            site_size=core.bounds.site_size,
        )

    def post(self, state: AggregatorState | None = None) -> Post:
        """The status as a message, signed if there is a key."""
        payload = self._federation.issuer.own_message(self.status(state))
        return Post(self._federation.config.topics.aggregator, payload, urgent=True)

    def publish(self) -> None:
        """Publish the current status."""
        self._held, self._number = self._federation.hold, self._key_number
        self._put(self.post())

    def follow_hold(self) -> None:
        """Publish the status if updates are accepted again, or no longer, or are sealed to another key."""
        if self._federation.hold != self._held or self._key_number != self._number:
            self.publish()

    @property
    def _why(self) -> str:
        """Why the model does not advance; empty if it does. Devices show it to their owners."""
        finding = self._federation.watchdog.finding
        tells = finding.state.alarming or finding.obstacle not in ("", "no device")
        return self._federation.hold or (finding.why if tells else "")

    @property
    def _key_number(self) -> int:
        daily = self._federation.issuer.daily
        return 0 if daily is None else daily.number
