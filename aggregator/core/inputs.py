"""The names of the model's inputs: given by the operator, or learned from the first two devices that agree on them.

Swapped columns spoil the model, and no norm or loss shows it. So devices send their names with their status, the
announcement has the model's, and updates of a device with other names are refused.
"""

from collections.abc import Mapping, Sequence

from midge.aggregator.store.store import Store, StoreError
from midge.wire import frames
from midge.wire.inputs import difference, listed, sayable
from midge.wire.messages import Hello

_KEY = "features"
_CLAIMS = 64
"""Most devices whose names are remembered until two agree."""


class Inputs:
    """The names of the model's inputs; durable once they are known.

    Args:
        store: keeps them; it is open.
        given: the operator's names; empty disables the comparison, None learns them from devices.
        width: number of the model's inputs, if known.

    Raises:
        StoreError: the store cannot be read or written.
    """

    def __init__(self, store: Store, given: Sequence[str] | None, width: int | None) -> None:
        self._store, self._width = store, width
        self._learning = given is None
        self._claims: dict[str, tuple[str, ...]] = {}
        self.names = _stored(store) if given is None else tuple(given)
        if given is not None and self.names != _stored(store):
            self._keep(self.names)

    def hear(self, device: str, names: Sequence[str]) -> bool:
        """Record a device's names; return whether this made the model's names known.

        Raises:
            StoreFull: there is no room to store them.
        """
        claim = sayable(names)
        if self.names or not self._learning:
            return False
        self._claims.pop(device, None)  # a device must not agree with itself
        if not claim or self._width not in (None, len(claim)):
            return False
        if claim in self._claims.values():
            self._keep(claim)
            self.names = claim
            self._claims.clear()
            return True
        self._claims[device] = claim
        if len(self._claims) > _CLAIMS:
            del self._claims[next(iter(self._claims))]
        return False

    def adopt(self, names: Sequence[str]) -> None:
        """Take the names that the federation's aggregator announces.

        Raises:
            StoreFull: there is no room to store them.
        """
        self._learning = False
        self._claims.clear()
        if self.names != tuple(names):
            self.names = tuple(names)
            self._keep(self.names)

    def forget(self, device: str) -> None:
        """Drop a device's names."""
        self._claims.pop(device, None)

    def unlike(self, devices: Mapping[str, Hello]) -> dict[str, str]:
        """Devices whose updates must be refused, each with the difference of its names."""
        unlike = {}
        for device, hello in devices.items():
            if why := difference(self.names, hello.features) or self._swapped(device):
                unlike[device] = why[:400]
        return unlike

    def contested(self, devices: Mapping[str, Hello]) -> dict[str, str]:
        """Devices whose statistics must wait: they name other inputs than each other, and none are decided."""
        if self.names or not self._learning:
            return {}
        named = {device: names for device, hello in devices.items() if (names := sayable(hello.features))}
        if len(set(named.values())) < 2:
            return {}
        why = "devices give different names of their inputs, this one {}: two that agree decide, or features= does"
        return {device: why.format(listed(names)) for device, names in named.items()}

    def _swapped(self, device: str) -> str:
        """A conflict of two devices' names while none are decided: the same ones in another order."""
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


def _stored(store: Store) -> tuple[str, ...]:
    """The names that an earlier process learned or was given; empty if there are none.

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
