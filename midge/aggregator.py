"""An aggregator at a broker's URL."""

from typing import Any

from aggregator.service import Aggregator as AggregatorService
from broker import connector
from midge.initial import read_initial
from midge.running import File, endpoint_of, run_script


class Aggregator(AggregatorService):
    """An aggregator at a broker's URL; `run()` serves until it is interrupted.

    Args:
        url: the broker's address, such as `mqtts://aggregator:secret@broker.local:8883`.
        initial: the model to begin with: a dict of arrays, a torch state dict, a torch module, or a file of
            pre-trained weights (.safetensors, .npz, a torch state dict as .pt).
        like: the model that such a file must fit, as a module or a dict of arrays.
        user: of the broker, where it is not in the URL.
        password: of that user.
        cafile: the certificate authority to trust, PEM; the system's where it is None.
        certfile: our own certificate, PEM, for a broker that wants one.
        keyfile: the key of that certificate.
        arguments: those of `aggregator.service.Aggregator`: federation, strategy, store and more.

    Raises:
        ValueError: an address, a name, a model or a strategy that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        initial: Any,
        like: Any = None,
        user: str | None = None,
        password: str | None = None,
        cafile: File = None,
        certfile: File = None,
        keyfile: File = None,
        **arguments: Any,
    ) -> None:
        endpoint = endpoint_of(url, user=user, password=password, cafile=cafile, certfile=certfile, keyfile=keyfile)
        parameters, roles = read_initial(initial, like)
        arguments["roles"] = {**roles, **(arguments.get("roles") or {})}
        self.endpoint = endpoint
        super().__init__(connector(endpoint), initial=parameters, **arguments)

    def run(self) -> None:
        run_script(self)
