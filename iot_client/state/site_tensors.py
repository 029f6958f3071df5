"""The values of a site's tensors, as its gateway published them; kept on the disk as the device's own tensors are."""

import logging
from contextlib import suppress
from pathlib import Path

import numpy as np

from midge.storage.checked import Rotten, content, with_checksum
from midge.storage.files import atomic_write
from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorStatus, SiteValues
from midge.wire.schema import Schema

log = logging.getLogger("iot_client")


class SiteTensors:
    """The newest values that the gateway of a device's site has published.

    Args:
        path: the file; None keeps them in memory.
        pinned: whether what comes is verified; then an older message never replaces a newer one.
    """

    def __init__(self, path: Path | None, *, pinned: bool = False) -> None:
        self.path, self._pinned = path, pinned
        self._unsaved = False
        self._header: SiteValues | None = None
        self._values = b""
        self.site: str | None = None
        """The site whose gateway settles our updates; empty is the root, None if it is not known yet."""
        self._lineage = b""
        self._restore()

    def seen(self, status: AggregatorStatus) -> None:
        """Follow the aggregator, by its verified status."""
        self.site, self._lineage = status.name, status.lineage

    def take(self, header: SiteValues, values: bytes) -> bool:
        """Take verified values; return whether they are new.

        Raises:
            WireError: they are of another site or lineage, or older than those that are known.
        """
        if header.name != self.site or header.lineage != self._lineage:
            raise WireError(f"values of the tensors of another site, {header.name!r}")
        known = self._header
        if known is not None and (known.name, known.lineage) == (header.name, header.lineage):
            if header.order == known.order and values == self._values:
                return False
            if self._pinned and header.order <= known.order:
                raise WireError("values of the site's tensors that are older than those that are known")
        self._header, self._values, self._unsaved = header, values, True
        return True

    def values(self, schema: Schema) -> dict[str, np.ndarray]:
        """The site's tensors by name; empty if this site has published none for this schema."""
        header = self._header
        if header is None or not schema.site_size or self.site not in {None, header.name}:
            return {}
        try:
            return schema.unpack_site(self._values)
        except WireError as error:
            log.warning("The values of the site's tensors are not used: %s", error)
            return {}

    def save(self) -> None:
        """Write them if they changed; if that fails they stay in memory."""
        if self.path is None or not self._unsaved or self._header is None:
            return
        try:
            data = frames.encode(self._header, self._values)
            atomic_write(self.path, with_checksum(data, self.path.name))
            self._unsaved = False
        except OSError as error:
            log.warning("The site's tensors cannot be written to %s (%s).", self.path, error.strerror)

    def _restore(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            self._header, self._values = read_site(self.path)
        except (OSError, Rotten, WireError) as error:
            log.warning("The site's tensors in %s cannot be read (%s); they come again.", self.path, error)
            with suppress(OSError):
                self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))


def read_site(path: Path) -> tuple[SiteValues, bytes]:
    """Header and values in a file.

    Raises:
        OSError: it cannot be read.
        Rotten: it is damaged.
        WireError: it is no such file.
    """
    header, values = messages.decode(SiteValues, content(path.read_bytes(), path.name))
    return header, bytes(values)
