"""An aggregator that is one of two: it serves, or follows the other one."""

import logging
from dataclasses import replace

from midge.aggregator.connecting import authorities
from midge.aggregator.contention import AnotherAggregator
from midge.aggregator.service import Aggregator
from midge.aggregator.standby.feed import link_of
from midge.aggregator.standby.files import follows, has_copy
from midge.aggregator.standby.follower import Follower

log = logging.getLogger("aggregator")


class StandbyAggregator:
    """Serves an aggregator whenever it is its turn.

    Args:
        aggregator: not yet serving; its config has `standby.follow`, and so a release key.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self._aggregator = aggregator
        self._follower: Follower | None = None
        self._stopped = False

    def stop(self) -> None:
        """End `serve` cleanly. To be called in its loop."""
        self._stopped = True
        self._aggregator.stop()
        if self._follower is not None:
            self._follower.stop()

    async def serve(self) -> None:
        """Follow and serve until `stop()`.

        Raises:
            StoreError: the store cannot be used.
            BrokerError: the first connection failed.
        """
        aggregator = self._aggregator
        directory = aggregator.config.directory
        may_serve = has_copy(directory) and not follows(directory)
        while not self._stopped:
            if not may_serve:
                link = link_of(authorities(aggregator.config)[0])
                assert link is not None
                self._follower = Follower(aggregator.config, link, aggregator.tell)
                if not await self._follower.follow():
                    return
                self._follower = None
                aggregator.insists = True
            try:
                await aggregator.serve()
            except AnotherAggregator as error:
                log.warning("%s This one follows it.", error)
            else:
                return
            may_serve = aggregator.insists = False
            aggregator.config = replace(aggregator.config)  # another start has keys and numbers of its own
