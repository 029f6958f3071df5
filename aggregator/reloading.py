"""Changes of the config of an aggregator that serves: its strategy and its limits, as a restart would make them."""

import time
from collections.abc import Callable
from dataclasses import fields, replace

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store.store import StoreFull

_CHANGING = ("strategy", "limits")


def reload(
    federation: FederationRuntime,
    old: AggregatorConfig,
    config: AggregatorConfig,
    *,
    begun: bool,
    put: Callable[[Post], None],
) -> None:
    """Go on under another strategy or other limits.

    Another strategy is written into the journal, and the state is rebuilt from the store under it.

    Args:
        federation: that serves.
        old: its config until now; the federation's own may be without ties, for an older store.
        config: of it from here on.
        begun: whether `begin` was called; it is called again for another strategy.
        put: takes what is published again.

    Raises:
        RuntimeError: something else is different; nothing is changed.
        StoreFull: the disk is full; nothing is changed.
    """
    others = [field.name for field in fields(config) if field.name not in _CHANGING]
    if changed := [name for name in others if getattr(old, name) is not getattr(config, name)]:
        raise RuntimeError(f"{', '.join(changed)} of an aggregator cannot change while it serves: stop it first.")
    if federation.core.full is not None:
        raise StoreFull(f"The disk of the store {federation.store.directory} is full: make room first.")
    strategy, limits, now = config.strategy, config.limits, time.monotonic()
    federation.config = replace(federation.config, strategy=strategy, limits=limits)
    if limits != old.limits:
        federation.admission.limit(limits, now)
    if strategy != old.strategy:
        federation.rebuild()
        if begun:
            federation.begin(now)
            for post in federation.everything():
                put(post)
