"""The device's message with the normalisation statistics that the aggregator requests."""

import logging
import time
from contextlib import suppress

from midge.iot_client.parts import DeviceParts
from midge.iot_client.state.given import STATISTICS
from midge.iot_client.state.outbox import OutboxFull
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Moment, Statistics

log = logging.getLogger("iot_client")


class StatisticsSource:
    """Makes the message, once there are enough rows."""

    def __init__(self, parts: DeviceParts) -> None:
        self._parts = parts
        self._warned: str | None = None
        """The missing statistics that were last warned of."""

    @property
    def of_samples(self) -> bool:
        """Whether they are computed from the samples: then they have a channel for each feature."""
        config = self._parts.config
        return config.samples is not None and config.moments == config.samples.moments

    def unready(self, announcement: Announcement | None) -> str | None:
        """Why the requested statistics are not worth sending yet: those of a few rows would be noise."""
        samples = self._parts.config.samples
        if announcement is None or announcement.phase != "statistics" or samples is None or not self.of_samples:
            return None
        return samples.scarce

    def message(self, lineage: bytes, asked: tuple[Moment, ...], announcement: Announcement | None) -> bytes | None:
        """The message, sealed and signed like others of the device; None if the statistics are not available now."""
        if self._parts.masker is not None:
            self._warn("any: this device's owner requires secure aggregation")
            return None
        given = self._parts.config.moments
        moments = given() if callable(given) else (given or {})
        if not moments and callable(given):
            return None  # its first rows have not come yet
        wrong = [
            f"{moment.name} ({moment.channels} channels)"
            for moment in asked
            if moment.name not in moments or moments[moment.name].count.size != moment.channels
        ]
        if wrong:
            self._warn(", ".join(wrong))
            return None
        header = Statistics(
            lineage=lineage,
            names=tuple((moment.name, moment.channels) for moment in asked),
            missing=self._parts.config.missing,
        )
        body = b"".join(moments[moment.name].to_bytes() for moment in asked)
        try:
            header, body = self._parts.identity.seal_statistics(header, body, announcement)
        except (WireError, ModuleNotFoundError) as error:
            log.warning("%s: the statistics cannot be sealed: %s", self._parts.config.name, error)
            return None
        self._remember()
        return self._parts.identity.frame(header, body)

    def _remember(self) -> None:
        """Note in the outbox when statistics were first given, for the owner."""
        outbox = self._parts.outbox
        if outbox.remembered(STATISTICS) is None:
            outbox.pending[STATISTICS] = str(int(time.time())).encode()
            with suppress(OutboxFull):  # then with the next update
                outbox.write_pending()

    def _warn(self, missing: str) -> None:
        if missing != self._warned:
            self._warned = missing
            log.warning(
                "%s: the federation asks for statistics that this device does not give: %s. Others' will be used.",
                self._parts.config.name,
                missing,
            )
