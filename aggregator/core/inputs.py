"""The names of the model's inputs: given by the operator, or learned from the first two devices that agree on them.

Two columns that are swapped give a model that fits no one, and no norm or loss says so. So the names travel: devices
say theirs with their greeting, the announcement says the model's, and of a device whose names differ nothing is taken.
"""

from collections.abc import Mapping, Sequence

from midge.aggregator.store.store import Store, StoreError
from midge.wire import frames
from midge.wire.inputs import difference, listed, sayable
from midge.wire.messages import Hello

_KEY = "features"
_CLAIMS = 64
"""Devices whose names are remembered until two agree."""


class Inputs:
    """What the model's inputs are called, durably once it is known.

    Args:
        store: keeps what was learned; open.
        given: the names as the operator says; none at all: names are not compared; None: they are learned.
        width: how many inputs the model has, if that is known.

    Raises:
        StoreError: the store cannot be read or written.
    """

    def __init__(self, store: Store, given: Sequence[str] | None, width: int | None) -> None:
        self._store, self._width = store, width
        self._learning = given is None
        self._claims: dict[str, tuple[str, ...]] = {}
        self.names = _kept(store) if given is None else tuple(given)
        if given is not None and self.names != _kept(store):
            self._keep(self.names)

    def hear(self, device: str, names: Sequence[str]) -> bool:
        """Take in what a device calls its inputs; whether the model's names are known only now.

        Raises:
            StoreFull: there is no room to keep them.
        """
        said = sayable(names)
        if self.names or not self._learning:
            return False
        self._claims.pop(device, None)
        if not said or self._width not in (None, len(said)):
            return False
        if said in self._claims.values():
            self._keep(said)
            self.names = said
            self._claims.clear()
            return True
        self._claims[device] = said
        if len(self._claims) > _CLAIMS:
            del self._claims[next(iter(self._claims))]
        return False

    def forget(self, device: str) -> None:
        """Drop what a device has said."""
        self._claims.pop(device, None)

    def unlike(self, devices: Mapping[str, Hello]) -> dict[str, str]:
        """Devices of which nothing can be taken, each with why in words."""
        found = {}
        for device, hello in devices.items():
            if why := difference(self.names, hello.features) or self._swapped(device):
                found[device] = why[:400]
        return found

    def _swapped(self, device: str) -> str:
        """Why two devices' names cannot both be right: the same ones in another order."""
        ours = self._claims.get(device)
        for other, names in self._claims.items() if ours is not None else ():
            if names != ours and sorted(names) == sorted(ours or ()):
                return (
                    f"this device gives {listed(ours or ())}, and {other} gives {listed(names)}: a third device "
                    "decides, or the aggregator's features="
                )
        return ""

    def _keep(self, names: tuple[str, ...]) -> None:
        self._store.set_constant(_KEY, frames.pack(list(names)))


def _kept(store: Store) -> tuple[str, ...]:
    """What an earlier life has learned, or was told.

    Raises:
        StoreError: it cannot be read.
    """
    rows = store.query("SELECT value FROM meta WHERE name = ?", (_KEY,))
    if not rows:
        return ()
    names = frames.unpack(rows[0][0])
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"The store {store.directory} is damaged: it holds no names of inputs under {_KEY!r}.")
    return tuple(names)
