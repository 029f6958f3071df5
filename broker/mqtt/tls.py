"""The TLS context of a connection."""

import ssl
from functools import lru_cache
from pathlib import Path

from midge.broker.mqtt.connection import BrokerRefused
from midge.broker.mqtt.endpoint import Tls


def tls_context(tls: Tls) -> ssl.SSLContext:
    """A client's context, made again where one of the files has changed on disk.

    The system's certificate authorities take about 1 MB and 30 ms to load, which a fleet in one process should pay
    once; a certificate that was renewed should be seen by the next connection all the same.

    Raises:
        BrokerRefused: a file is missing or holds no certificate or key.
    """
    try:
        stamps = tuple(file.stat().st_mtime_ns for file in _files(tls))
        return _context(tls, stamps)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(str(file) for file in _files(tls))
        raise BrokerRefused(f"The TLS files cannot be used ({error}): check {names}.") from error


def _files(tls: Tls) -> list[Path]:
    return [Path(file) for file in (tls.cafile, tls.certfile, tls.keyfile) if file is not None]


class _Socket(ssl.SSLSocket):
    """A socket that a failed handshake, of TLS or of websockets in it, closes; paho forgets it open."""

    def __del__(self) -> None:
        self.close()

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


@lru_cache(maxsize=8)
def _context(tls: Tls, stamps: tuple[int, ...]) -> ssl.SSLContext:  # noqa: ARG001  # the stamps are part of the key
    context = ssl.create_default_context(cafile=None if tls.cafile is None else str(tls.cafile))
    context.sslsocket_class = _Socket
    if tls.certfile is not None:
        context.load_cert_chain(tls.certfile, tls.keyfile)
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
