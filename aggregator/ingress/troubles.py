"""Telling devices what was dropped of them that no receipt answers, and why: seldom, and within what they may cost."""

from collections.abc import Callable

from midge.aggregator.ingress.authentication import Credentials
from midge.aggregator.ingress.rate_limits import Admission
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.wire import frames
from midge.wire.messages import Trouble
from midge.wire.topics import is_name

Encode = Callable[[str, Trouble], bytes]
"""Encodes a `trouble` for a device, signed if there is a key."""
_COST = 512
"""Bytes that one costs the device whose it is, of those that are published because it asks."""


class Troubles:
    """Says why on `receipt/{device}`: to each at most once in ten seconds (`Admission.tells`).

    Args:
        admission: what a device may cost.
        credentials: which names are devices.
        outlet: takes what is said.
        encode: signs it; None leaves it unsigned.
    """

    def __init__(
        self, admission: Admission, credentials: Credentials, outlet: Outlet, encode: Encode | None = None
    ) -> None:
        self._admission, self._credentials, self._outlet = admission, credentials, outlet
        self._encode = encode

    def tell(self, device: str, why: str, now: float) -> bool:
        """Tell that something of a device was dropped, if it is time; whether it was. Other names are told nothing."""
        if not (is_name(device) and self._admission.tells(device, _COST, now) and self._credentials.registered(device)):
            return False
        trouble = Trouble(why=why[:400])
        payload = frames.encode(trouble) if self._encode is None else self._encode(device, trouble)
        self._outlet.put(Post(self._credentials.topics.receipt(device), payload, retain=False))
        return True
