"""`trouble` messages: tell devices what was dropped without a receipt or is doubted, rarely and within their budget."""

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
"""Bytes that one is charged, of those published at the device's request."""


class Troubles:
    """Reports problems with messages on `receipt/{device}`, to each device at most once in ten seconds.

    Args:
        admission: the devices' budgets.
        credentials: which names are devices.
        outlet: takes the messages.
        encode: signs them; None leaves them unsigned.
    """

    def __init__(
        self, admission: Admission, credentials: Credentials, outlet: Outlet, encode: Encode | None = None
    ) -> None:
        self._admission, self._credentials, self._outlet = admission, credentials, outlet
        self._encode = encode

    def tell(self, device: str, why: str, now: float) -> bool:
        """Report a problem to its device if that is due; return whether it was. Unknown names get none."""
        if not (
            is_name(device) and self._admission.may_notify(device, _COST, now) and self._credentials.registered(device)
        ):
            return False
        trouble = Trouble(why=why[:400])
        payload = frames.encode(trouble) if self._encode is None else self._encode(device, trouble)
        self._outlet.put(Post(self._credentials.topics.receipt(device), payload, retain=False))
        return True
