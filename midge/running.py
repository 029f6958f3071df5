"""What scripts and commands share: reading a broker's address, and running a service until it is interrupted."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Protocol

from midge.broker import BrokerError, Endpoint, Tls
from midge.notify import keep_notifying
from midge.wire.inert import inert

File = str | Path | None


class Service(Protocol):
    """What runs until it is told to stop."""

    async def serve(self) -> None: ...

    def stop(self) -> None: ...


def run_until_interrupted(service: Service) -> bool:
    """Serve; the first Ctrl-C or SIGTERM ends it cleanly, a second one at once. Whether one came."""
    interrupted = False

    async def main() -> None:
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM)

        def stop() -> None:
            nonlocal interrupted
            interrupted = True
            for number in caught:
                loop.remove_signal_handler(number)
            service.stop()

        for number in caught:
            loop.add_signal_handler(number, stop)
        telling = asyncio.create_task(keep_notifying())
        try:
            await service.serve()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(main())
    return interrupted


def run_script(service: Service) -> None:
    """Serve for a script: what a person can mend ends it with one sentence and exit code 2, without a traceback."""
    try:
        run_until_interrupted(service)
    except user_facing_errors() as error:
        sys.stderr.write(f"midge: {inert(str(error))}\n")
        raise SystemExit(2) from error


def user_facing_errors() -> tuple[type[Exception], ...]:
    """What services raise that a person can mend. To be called when there is an error: a device has no store."""
    from midge.iot_client.connection.connection_loop import DuplicateDeviceName  # noqa: PLC0415
    from midge.iot_client.state.outbox import OutboxError  # noqa: PLC0415
    from midge.iot_client.training.update_encoder import TrainerError  # noqa: PLC0415

    found: tuple[type[Exception], ...] = (BrokerError, DuplicateDeviceName, OutboxError, TrainerError)
    try:
        from midge.aggregator.store.store import StoreError  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        return found
    return (*found, StoreError)


def endpoint_of(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    cafile: File = None,
    certfile: File = None,
    keyfile: File = None,
) -> Endpoint:
    """A broker's address with credentials and, for `mqtts://`, the files for TLS.

    Raises:
        ValueError: the address is none, or what is given does not go together.
    """
    authority, certificate, key = _pem(cafile), _pem(certfile), _pem(keyfile)
    tls = Tls(authority, certificate, key) if authority or certificate or key else None
    return Endpoint.parse(url, user=user, password=password, tls=tls)


def _pem(file: File) -> Path | None:
    path = None if file is None else Path(file).expanduser()
    if path is not None and not path.is_file():
        raise ValueError(f"There is no file {path}: name the PEM file that the TLS connection needs.")
    return path
