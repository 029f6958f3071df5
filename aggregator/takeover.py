"""Handling of an existing announcement on the aggregator's topics, before it publishes anything."""

import logging
from collections.abc import Callable, Sequence

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.issuing import MOST_EPOCH
from midge.aggregator.store.store import StoreError
from midge.broker.mqtt.connection import Delivery
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import MOST_GENERATION, MOST_VERSION, Announcement

log = logging.getLogger("aggregator")


class ForeignFederation(StoreError):
    """Another lineage is announced on our topics."""


def refuse_foreign(
    federation: FederationRuntime, retained: Sequence[Delivery], tell: Callable[..., None], *, begun: bool
) -> Announcement | None:
    """The retained announcement to compare with the store; None if there is none.

    One of another lineage is replaced only if the config says so, or if it was announced without our key while we serve
    (`begun`): then no message may end us.

    Raises:
        ForeignFederation: it is of another store.
    """
    config, issuer = federation.config, federation.issuer
    try:
        announced = _read(federation, retained)
    except WireError as error:
        # Any client that may publish on the topic could have put it there: it must neither stop nor move us.
        log.warning("The announcement on our topic is ignored, because %s; it will be replaced.", error)
        tell("untrusted", why=str(error))
        return None
    if announced is None or announced.lineage == federation.core.lineage or config.replace:
        return announced
    if begun and not issuer.signs:
        log.warning("Another store's model is announced on our topic, while we serve; it will be replaced.")
        tell("untrusted", why="another store's model is announced on our topic")
        return None
    raise ForeignFederation(
        f"Another store's model, version {announced.version}, is announced as federation "
        f"{config.federation!r} under {config.root!r}. Start with that store, choose another federation name, "
        "or say --replace to take the topics over; its devices then start over."
    )


def take_over(
    federation: FederationRuntime, announced: Announcement | None, now: float, tell: Callable[..., None]
) -> None:
    """Continue after an existing announcement, now that no other aggregator serves.

    One that is ahead of the store means that the store was restored: a new generation begins above it, because devices
    know versions that this store does not.
    """
    core, issuer = federation.core, federation.issuer
    if announced is None:
        return
    if announced.lineage != core.lineage:
        if announced.epoch >= issuer.epoch:
            federation.issued.raise_epoch(announced.epoch + 1)
        return
    if issuer.signs:
        issuer.dating.resume(announced.issued)  # later than in the store, if that was restored
    if announced.epoch > issuer.epoch:  # raised since this store was copied
        federation.issued.raise_epoch(announced.epoch)
    if (announced.generation, announced.version) > (core.generation, core.version):
        log.warning(
            "Version %d was announced and this store knows %d: it is an old copy. A new generation begins.",
            announced.version,
            core.version,
        )
        tell("put_back", announced=announced.version, version=core.version)
        federation.begin_generation(announced.generation, announced.version, now)


def _read(federation: FederationRuntime, retained: Sequence[Delivery]) -> Announcement | None:
    """The retained announcement; None if there is none.

    Raises:
        WireError: it is invalid, is not signed by our key if we have one, or has impossible numbers.
    """
    announced = None
    topic = federation.config.topics.announcement()
    for payload in (delivery.payload for delivery in retained if delivery.topic == topic):
        announced = messages.decode_announcement(payload)
        if not federation.issuer.is_ours(payload):
            raise WireError("it is not signed by our key")
        numbers = announced.generation, announced.version, announced.epoch
        if any(
            number > most for number, most in zip(numbers, (MOST_GENERATION, MOST_VERSION, MOST_EPOCH), strict=True)
        ):
            raise WireError(f"it says version {numbers[0]}.{numbers[1]} of epoch {numbers[2]}, which cannot be")
    return announced
