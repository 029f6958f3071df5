"""Prediction with the newest verified model, available immediately after a restart.

The newest is the served model (the channel `serve`) or, without one, the model that was fetched to train from. A new
one replaces the old between two predictions. It is kept in a file beside the outbox.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midge.iot_client.state import model_file
from midge.iot_client.state.local_tensors import Missing
from midge.storage.files import atomic_write
from midge.wire import lineage
from midge.wire.errors import WireError
from midge.wire.inputs import difference
from midge.wire.lineage import State
from midge.wire.schema import Parameters, Schema
from midge.wire.topics import Channel

log = logging.getLogger("iot_client")

Predict = Callable[[Parameters, Any], Any]
"""Called with all tensors by name and the argument of `Device.predict`."""
Join = Callable[[dict[str, Any], Schema], Parameters]

EVERY = 600.0
"""Least seconds between two writes of a model: flash memory wears."""
FORMAT = 1


class NoModel(RuntimeError):
    """There is no model to predict with."""


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A verified model."""

    channel: Channel
    lineage: bytes
    version: int
    state: State
    features: tuple[str, ...] = ()
    """Names of its inputs, in order; none if they have no names."""


class Predicting:
    """The model in use.

    Args:
        path: the file that keeps it; None keeps it in memory.
        predict: predicts with it; None keeps no model.
        join: adds the device's local tensors.
        features: the device's names of its inputs, in order.
    """

    def __init__(self, path: Path | None, predict: Predict | None, join: Join, features: Sequence[str] = ()) -> None:
        self.path, self.predict, self._join, self._features = path, predict, join, tuple(features)
        self.model: VerifiedModel | None = None
        """The model in use."""
        self.written = 0
        """Bytes written to the disk, in whole pages."""
        self._newest: VerifiedModel | None = None
        """The newest, served or fetched …"""
        self._preferred: VerifiedModel | None = None
        """… and the one that is used in its place."""
        self._parameters: Parameters | None = None
        self._lock = threading.Lock()
        self._saved_at = -math.inf
        self._unsaved = False

    def __call__(self, x: Any) -> Any:
        """Predict with the model in use.

        Raises:
            NoModel: there is none yet, or no function to predict with; or its inputs are not this device's.
            Exception: whatever the function raised.
        """
        parameters = self._parameters
        if self.predict is None:
            raise NoModel("Say how to predict: Device(predict=…), a function of the parameters and of x.")
        if parameters is None:
            raise NoModel("No model has been fetched and verified yet.")
        if self.model is not None and (why := difference(self.model.features, self._features)):
            raise NoModel(f"The model in use is not for this device's inputs: {why}.")
        return self.predict(parameters, x)

    def restore(self) -> None:
        """Load the model from before a restart; a damaged file is ignored."""
        if self.path is None or self.predict is None:
            return
        with suppress(OSError):
            try:
                self._newest = read(self.path)
                self._switch(self._newest)
            except (WireError, Missing) as error:
                log.warning("The model in %s is not used: %s.", self.path, error)

    def take(self, model: VerifiedModel, now: float) -> None:
        """Use a model, unless a served one takes precedence. Blocks while it is written.

        Raises:
            Missing: it has local tensors of which the device has no values.
        """
        if self.predict is None:
            return
        with self._lock:
            held = self._newest
            if held is not None and held.lineage == model.lineage and held.channel == "serve" != model.channel:
                return
            if self._preferred is None:
                self._switch(model)
            self._newest, self._unsaved = model, True
            if now - self._saved_at >= EVERY:
                self._saved_at = now
                self._save()

    def prefer(self, model: VerifiedModel | None) -> None:
        """Use this model whatever is newer; None uses the newest.

        Raises:
            Missing: it has local tensors of which the device has no values.
        """
        if self.predict is None:
            return
        with self._lock:
            self._switch(model if model is not None else self._newest)
            self._preferred = model

    def _switch(self, model: VerifiedModel | None) -> None:
        self._parameters = None if model is None else self._joined(model)
        self.model = model

    def refresh(self) -> None:
        """Use the device's changed local tensors."""
        with self._lock:
            if self.model is not None and any(tensor.role == "local" for tensor in self.model.state.schema.tensors):
                self._parameters = self._joined(self.model)

    def close(self) -> None:
        """Write the model if that was delayed."""
        with self._lock:
            self._save()

    def _joined(self, model: VerifiedModel) -> Parameters:
        return self._join(model.state.parameters(), model.state.schema)

    def _save(self) -> None:
        if self.path is None or self._newest is None or not self._unsaved:
            return
        data = packed(self._newest)
        try:
            atomic_write(self.path, data)
        except OSError as error:
            log.warning("The model cannot be kept in %s (%s).", self.path, error.strerror)
            return
        self._unsaved = False
        self.written += model_file.on_disk(data)


def packed(model: VerifiedModel) -> bytes:
    """Encode a model as the bytes of its file."""
    about = {
        "channel": model.channel,
        "lineage": model.lineage,
        "version": model.version,
        "features": list(model.features),
    }
    return model_file.encode(FORMAT, about, model.state)


def read(path: Path) -> VerifiedModel:
    """Read the model in a file.

    Raises:
        OSError: there is none.
        WireError: it is damaged, or of another format.
    """
    header, body = model_file.read(path, FORMAT)
    channel: Channel = "serve" if header.get("channel") == "serve" else "train"
    try:
        features = tuple(str(name) for name in header.get("features", ()))
        state = lineage.decode_snapshot(body)
        return VerifiedModel(channel, bytes(header["lineage"]), int(header["version"]), state, features)
    except (KeyError, TypeError, ValueError) as error:
        raise WireError("the file is broken") from error
