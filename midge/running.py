"""Shared by scripts and commands: parsing a broker's address, and running a service until it is interrupted."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol

from midge.broker import BrokerError, Endpoint, Tls
from midge.notify import keep_notifying
from midge.wire.inert import inert

File = str | Path | None

_CAUGHT = (signal.SIGINT, signal.SIGTERM)
_AGAIN = signal.SIGHUP


class Service(Protocol):
    """Runs until it is stopped."""

    async def serve(self) -> None: ...

    def stop(self) -> None: ...


def run_until_interrupted(service: Service, reload: Callable[[], None] | None = None) -> bool:
    """Serve; the first Ctrl-C or SIGTERM ends it cleanly, a second one at once. Return whether one came.

    SIGHUP calls `reload`, in the loop; without one it ends the process, as ever. Outside the main thread no signal can
    be caught: there, another thread calls the service's `stop()`.

    Raises:
        RuntimeError: a loop already runs here, as in a notebook.
    """
    interrupted = False
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public one raises
        raise RuntimeError("An event loop runs here already, as in a notebook: say `await service.serve()` instead.")
    caught = _CAUGHT if threading.current_thread() is threading.main_thread() else ()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            nonlocal interrupted
            interrupted = True
            note_exit(interrupted=True)
            for number in caught:
                loop.remove_signal_handler(number)
            service.stop()

        if caught:
            _in_children_as_before()
        for number in caught:
            loop.add_signal_handler(number, stop)
        if caught and reload is not None:
            loop.add_signal_handler(_AGAIN, reload)
        telling = asyncio.create_task(keep_notifying())
        try:
            await service.serve()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(main())
    return interrupted


@cache
def _in_children_as_before() -> None:
    """Let a signal end a forked child, such as a trainer's worker, without notifying the parent's loop.

    Signals are blocked across the fork: one that came before the child has its own handlers would be the parent's. Done
    once per process, because fork hooks are permanent.
    """
    before = threading.local()

    def hold() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def restore() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        release()

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=restore)


def run_script(service: Service) -> None:
    """Serve for a script: an error that the user can fix becomes one sentence and exit code 2, without a traceback.

    Log lines have time and level, unless the script has set up logging.
    """
    from midge.logs import TEXT  # noqa: PLC0415 - not for commands that only parse an address

    logging.basicConfig(format=TEXT)
    try:
        run_until_interrupted(service)
    except user_facing_errors() as error:
        sys.stderr.write(f"midge: {inert(str(error))}\n")
        note_exit(exit_code=2)
        raise SystemExit(2) from error


def note_exit(**how: int) -> None:
    """Pass the process's exit code to threads that it does not wait for, if there are any."""
    if (threads := sys.modules.get("midge.storage.daemon_thread")) is not None:
        vars(threads).update(how)


def user_facing_errors() -> tuple[type[Exception], ...]:
    """Errors of services that the user can fix. To be called on an error: a device has no store."""
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
    """A broker's endpoint with credentials and, for `mqtts://`, the files for TLS.

    Raises:
        ValueError: the address is invalid, or the arguments contradict each other.
    """
    authority, certificate, key = _pem(cafile), _pem(certfile), _pem(keyfile)
    tls = Tls(authority, certificate, key) if authority or certificate or key else None
    return Endpoint.parse(url, user=user, password=password, tls=tls)


def _pem(file: File) -> Path | None:
    path = None if file is None else Path(file).expanduser()
    if path is not None and not path.is_file():
        raise ValueError(f"There is no file {path}: name the PEM file that the TLS connection needs.")
    return path
