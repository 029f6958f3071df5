"""What an aggregator does about what is announced on its topics already, before it publishes anything."""

import logging
from collections.abc import Callable, Sequence

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.store.store import StoreError
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import Announcement

log = logging.getLogger("aggregator")


class ForeignFederation(StoreError):
    """Another lineage is announced on our topics."""


def take_over(federation: FederationRuntime, payloads: Sequence[bytes], now: float, tell: Callable[..., None]) -> None:
    """Compare the retained announcement with the store.

    Another lineage is replaced only if the config says so. One that is ahead of the store means that the store was put
    back: a new generation begins above it, because devices know versions that this store does not.

    Raises:
        ForeignFederation: it is of another store.
    """
    config, core, issuer = federation.config, federation.core, federation.issuer
    announced, ours = _read(federation, payloads)
    if announced is None:
        return
    if announced.lineage != core.lineage:
        if not config.replace:
            raise ForeignFederation(
                f"Another store's model, version {announced.version}, is announced as federation "
                f"{config.federation!r} under {config.root!r}. Start with that store, choose another federation name, "
                "or say --replace to take the topics over; its devices then start over."
            )
        if ours and announced.epoch >= issuer.epoch:
            federation.raise_epoch(announced.epoch + 1)
        return
    if not ours:
        # Whoever may publish on the topic could have forged it: it must not move us to another generation.
        log.warning("What is announced on our topic is not signed by our key; it will be replaced.")
        return
    if announced.epoch > issuer.epoch:  # raised since this store was copied
        federation.raise_epoch(announced.epoch)
    if (announced.generation, announced.version) > (core.generation, core.version):
        log.warning(
            "Version %d was announced and this store knows %d: it was put back. A new generation begins.",
            announced.version,
            core.version,
        )
        tell("put_back", announced=announced.version, version=core.version)
        federation.begin_generation(announced.generation, announced.version, now)


def _read(federation: FederationRuntime, payloads: Sequence[bytes]) -> tuple[Announcement | None, bool]:
    """The announcement, and whether our key signed it."""
    announced, ours = None, False
    for payload in payloads:
        try:
            announced = messages.decode_announcement(payload)
            ours = federation.issuer.is_ours(payload)
        except WireError as error:
            log.warning("What was announced on our topic is no announcement (%s); it will be replaced.", error)
    return announced, ours
