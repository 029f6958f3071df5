"""The tensors of a site: their mean over its devices, and the retained message that brings it to them."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store.store import Store
from midge.wire import chunks
from midge.wire.messages import SiteValues
from midge.wire.schema import Vector
from midge.wire.topics import Topics

log = logging.getLogger("gateway")

_FEWEST = 3
"""Devices from which on values are trimmed. Of two that differ, no rule can tell which one is wrong."""
_AT_ONCE = 2**18
"""Values of all devices that are averaged at once: two megabytes."""
_TRIMMED = 5
"""One of this number of devices is left out at each end, and always at least one."""


def mean_of(values: Sequence[Vector], *, robust: bool) -> Vector:
    """The mean of the devices' values, each device weighted equally, whatever their order.

    Args:
        values: of each device, all of one length; at least one.
        robust: whether the largest and the smallest fifth of the devices are left out of each value: the
            coordinate-wise trimmed mean (Yin et al., arXiv:1803.01498, definition 2). With three or four devices it is
            their median. So each value of the result lies within those of the honest devices, as long as at most a
            fifth of them, or one, is not.
    """
    count = len(values)
    left_out = max(1, count // _TRIMMED) if robust and count >= _FEWEST else 0
    mean = np.empty_like(values[0], np.float32)
    width = max(1, _AT_ONCE // count)
    for start in range(0, len(mean), width):
        part = np.stack([each[start : start + width] for each in values]).astype(np.float64)
        part.sort(axis=0)  # so that the sum does not depend on the order of the devices
        mean[start : start + width] = part[left_out : count - left_out].mean(axis=0)
    return mean


class SiteValuesPublisher:
    """Publishes the values of one site's tensors.

    Args:
        store: of the gateway, with the devices' values.
        issuer: signs messages with the gateway's key.
        topics: of the federation.
        robust: see `mean_of`.
        tell: takes events.
    """

    def __init__(
        self, store: Store, issuer: AnnouncementSigner, topics: Topics, *, robust: bool, tell: Callable[..., None]
    ) -> None:
        self._store, self._issuer, self._topics, self._robust, self._tell = store, issuer, topics, robust, tell
        self.since: float | None = None
        """When the first device gave values that are not published, by a monotonic clock; None if none did."""
        self._number = 0
        """Counts the messages of this start."""
        self.largest: int | None = None
        """Most bytes of a body that the broker takes; None sets no limit."""

    @property
    def given(self) -> int:
        """The number of devices of which values are not published yet."""
        return len(self._store.site.given)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Why the values cannot be published."""
        size = 0 if self._store.schema is None else self._store.schema.site_size
        if self.largest is None or size <= self.largest:
            return ()
        return (f"the site's tensors have {size} bytes, and the broker takes {self.largest}: raise its limit",)

    def look(self, now: float, due: Callable[[int, float], float]) -> Post | None:
        """The message, if it is due.

        Args:
            now: seconds of a monotonic clock.
            due: from the number of devices with other values, and since when there are some, to when it is due.
        """
        site = self._store.site
        if site.given and self.since is None:
            self.since = now
        if not (site.removed or (self.since is not None and now >= due(self.given, self.since))):
            return None
        return self.post()

    def post(self) -> Post | None:
        """The message of now; None if it is too large for the broker. It is empty if no device has given values."""
        values = [np.frombuffer(each, "<f4") for each in self._store.site.values().values()]
        self._store.site.clear()
        self.since = None
        if self.alarms:
            return None
        if not values:
            return Post(self._topics.site_values, b"")
        body = mean_of(values, robust=self._robust).astype("<f4").tobytes()
        self._number += 1
        header = SiteValues(
            lineage=self._store.lineage,
            name=self._issuer.site,
            size=len(body),
            sha256=chunks.checksum(body),
            token=self._issuer.token,
            number=self._number,
            devices=len(values),
        )
        self._tell("site_averaged", devices=len(values), size=len(body))
        return Post(self._topics.site_values, self._issuer.site_values(header, body))
