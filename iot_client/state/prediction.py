"""Prediction with the newest verified model, available immediately after a restart.

The newest is the served model (the channel `serve`) or, without one, the model that was fetched to train from. A new
one replaces the old between two predictions. It is kept in a file beside the outbox.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from midge.iot_client.state import model_file
from midge.iot_client.state.local_tensors import Missing
from midge.iot_client.state.model_keeper import ModelKeeper
from midge.iot_client.state.verified_model import VerifiedModel, about, verified
from midge.storage.files import atomic_write
from midge.wire.errors import WireError
from midge.wire.inputs import difference
from midge.wire.schema import Parameters, Schema

log = logging.getLogger("iot_client")

Predict = Callable[[Parameters, Any], Any]
"""Called with all tensors by name and the argument of `Device.predict`."""
Join = Callable[[dict[str, Any], Schema], Parameters]

EVERY = 600.0
"""Least seconds between two writes of a model: flash memory wears."""
FORMAT = 1


class NoModel(RuntimeError):
    """There is no model to predict with."""


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
        self._written = 0
        self._newest: VerifiedModel | None = None
        """The newest, served or fetched …"""
        self._preferred: VerifiedModel | None = None
        """… and the one that is used in its place."""
        self._parameters: Parameters | None = None
        self.keeper: ModelKeeper | None = None
        """Keeps the model in use while another one is worse; None uses what comes."""
        self._choosing = threading.Lock()
        """Held while it is decided which model is used, which may take long …"""
        self._lock = threading.Lock()
        """… and while that changes."""
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
        if self.keeper is not None and (kept := self.keeper.restore()) is not None:
            with suppress(Missing):  # the training reports it, with details
                self._switch(kept)

    def take(self, model: VerifiedModel, now: float) -> None:
        """Use a model, unless a served one takes precedence. Blocks while it is written.

        Raises:
            Missing: it has local tensors of which the device has no values.
        """
        if self.predict is None:
            return
        with self._choosing:
            held = self._newest
            if held is not None and held.lineage == model.lineage and held.channel == "serve" != model.channel:
                return
            if self._preferred is None:
                self._offer(model)
            with self._lock:
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
        with self._choosing:
            self._offer(model if model is not None else self._newest)
            self._preferred = model

    def look(self) -> bool:
        """Judge the models again by the rows that came; return whether another one is used now. Blocks meanwhile.

        Raises:
            Missing: a model has local tensors of which the device has no values.
        """
        with self._choosing:
            offered = self._preferred or self._newest
            if self.keeper is None or self.model is None or offered is None:
                return False
            if (chosen := self.keeper.look(self.model, offered)) is None:
                return False
            self._switch(chosen)
            return True

    @property
    def written(self) -> int:
        """Bytes written to the disk, in whole pages."""
        return self._written + (0 if self.keeper is None else self.keeper.written)

    @property
    def keeps(self) -> int:
        """The version that is kept because a newer one is worse here; 0 if none is."""
        kept = None if self.keeper is None else self.keeper.kept
        return 0 if kept is None else kept.model.version

    def _offer(self, model: VerifiedModel | None) -> None:
        """Use a model, unless the one in use is kept."""
        if self.keeper is None or self.model is None or model is None or self.keeper.takes(self.model, model):
            self._switch(model)

    def _switch(self, model: VerifiedModel | None) -> None:
        parameters = None if model is None else self.joined(model)
        with self._lock:
            self._parameters, self.model = parameters, model

    def refresh(self) -> None:
        """Use the device's changed local tensors."""
        with self._lock:
            if self.model is not None and any(tensor.personal for tensor in self.model.state.schema.tensors):
                self._parameters = self.joined(self.model)

    def close(self) -> None:
        """Write the model if that was delayed."""
        with self._lock:
            self._save()

    def joined(self, model: VerifiedModel) -> Parameters:
        """A model's tensors by name, with the device's local ones.

        Raises:
            Missing: it has local tensors of which the device has no values.
        """
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
        self._written += model_file.on_disk(data)


def packed(model: VerifiedModel) -> bytes:
    """Encode a model as the bytes of its file."""
    return model_file.encode(FORMAT, about(model), model.state)


def read(path: Path) -> VerifiedModel:
    """Read the model in a file.

    Raises:
        OSError: there is none.
        WireError: it is damaged, or of another format.
    """
    return verified(*model_file.read(path, FORMAT))
