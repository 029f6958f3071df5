"""Local tensors, such as a head of its own: they stay on the device. The federation knows only names and shapes.

Tensors of a site are kept here too: the device's own last values, which stand where its site has published none.
"""

import io
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from midge.iot_client.state.site_tensors import SiteTensors
from midge.storage.checked import Rotten, content, with_checksum
from midge.storage.files import atomic_write
from midge.wire.schema import Parameters, Schema

log = logging.getLogger("iot_client")

Values = Mapping[str, np.ndarray] | Callable[[], Mapping[str, np.ndarray]]
_SAVE_EVERY = 60.0
"""Seconds between two writes: flash memory wears, and a power cut costs the training since."""


class Missing(ValueError):
    """The model has tensors of a device or of a site of which this device has no values."""


class LocalTensors:
    """A device's local tensors, kept in a file of its own.

    Args:
        path: the file; None keeps them in memory.
        initial: their initial values by name, or a function that makes them.
        site: values that the device's site has published.
    """

    def __init__(self, path: Path | None, initial: Values | None, site: SiteTensors | None = None) -> None:
        self.path = path
        self.site = site or SiteTensors(None)
        self._initial = initial
        self._tensors: dict[str, np.ndarray] | None = None
        self._saved_at: float | None = None
        self._unsaved = False

    def join(self, parameters: dict[str, np.ndarray], schema: Schema) -> dict[str, np.ndarray]:
        """All tensors of the model: those of the federation, our local ones, and the newest of our site.

        Raises:
            Missing: one of them has no value, or one of another shape.
        """
        private = [tensor for tensor in schema.tensors if tensor.personal]
        if not private:
            return parameters
        published = self.site.values(schema)
        if self._tensors is None:
            self._tensors = self._load()
        first: Mapping[str, np.ndarray] | None = None
        for tensor in private:
            if tensor.name in published:
                continue
            known = self._tensors.get(tensor.name)
            if known is None or known.shape != tensor.shape:
                first = self._first() if first is None else first
                value = first.get(tensor.name)
                if value is None or np.shape(value) != tensor.shape:
                    names = ", ".join(f"{each.name} {each.shape}" for each in private)
                    raise Missing(
                        f"The federation leaves these tensors to each device, and this one has no first values for "
                        f"{tensor.name} in its shape: {names}. Give them as Device(local={{name: array}})."
                    )
                self._tensors[tensor.name] = np.array(value, dtype=tensor.dtype)
        values = {**self._tensors, **published}
        own = {tensor.name: values[tensor.name].copy() for tensor in private}
        return {
            tensor.name: own[tensor.name] if tensor.name in own else parameters[tensor.name]
            for tensor in schema.tensors
        }

    def keep(self, parameters: Parameters, schema: Schema, now: float) -> None:
        """Keep their values after a training."""
        for tensor in schema.tensors:
            if tensor.personal and tensor.name in parameters and self._tensors is not None:
                self._tensors[tensor.name] = np.array(parameters[tensor.name], dtype=tensor.dtype)
                self._unsaved = True
        if self._unsaved and (self._saved_at is None or now - self._saved_at >= _SAVE_EVERY):
            self._saved_at = now
            self.save()

    def save(self) -> None:
        """Write them if they changed; if that fails they stay in memory."""
        self.site.save()
        if self.path is None or not self._unsaved or self._tensors is None:
            return
        data = io.BytesIO()
        np.savez(data, **self._tensors)  # type: ignore[arg-type]
        try:
            atomic_write(self.path, with_checksum(data.getvalue(), self.path.name))
            self._unsaved = False
        except OSError as error:
            log.warning("The device's own tensors cannot be written to %s (%s).", self.path, error.strerror)

    def _load(self) -> dict[str, np.ndarray]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            return read_tensors(self.path)
        except (OSError, Rotten) as error:
            log.warning("The device's own tensors in %s cannot be read (%s); they start over.", self.path, error)
            with suppress(OSError):
                self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))
            return {}

    def _first(self) -> Mapping[str, np.ndarray]:
        return (self._initial() if callable(self._initial) else self._initial) or {}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors in a file.

    Raises:
        OSError: it cannot be read.
        Rotten: it is damaged.
    """
    data = content(path.read_bytes(), path.name)  # rejects the file of another device in this folder
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # from an earlier Midge, without a checksum: NumPy and zipfile raise many types then
        raise Rotten(f"the file is damaged: {error}") from error
