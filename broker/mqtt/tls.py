"""The TLS context of a connection, and explanations of TLS failures."""

import re
import socket
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from midge.broker.mqtt.connection import BrokerError, BrokerRefused, BrokerUnreachable
from midge.broker.mqtt.endpoint import Endpoint, Tls
from midge.wire.clocks import SANE, said

_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = frozenset({2, 18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 64})
"""X509_V_ERR_… of OpenSSL's x509_vfy.h, for a certificate of another name."""
_VALIDITY = re.compile(rb"[\x17\x18].(\d{12,14})Z[\x17\x18].(\d{12,14})Z", re.DOTALL)
"""The two times of a certificate, one after the other; RFC 5280, section 4.1.2.5."""
_PEEK = 5.0
"""Seconds to read a certificate that is not trusted."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """A client's context, cached until one of the files changes on disk.

    Loading the system's certificate authorities takes about 1 MB and 30 ms, which a fleet in one process should pay
    once; the next connection must nevertheless see a renewed certificate.

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
    """A socket that is closed if its TLS or websocket handshake fails; paho leaves it open."""

    alert = ""
    """The peer's TLS alert, by OpenSSL's name; paho drops it."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - as the one that it replaces
        try:
            return super().read(len, buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.alert = error.reason or ""
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            # With TLS 1.3, a client's certificate is refused only after the client's side of the handshake has ended.
            with suppress(BlockingIOError, ConnectionError, TimeoutError, ssl.SSLWantReadError, ssl.SSLEOFError):
                self.read(1)
            raise ConnectionAbortedError("it disconnected after the TLS handshake") from error

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
    if tls.alpn:
        context.set_alpn_protocols(list(tls.alpn))
    return context


def alert_on(sock: Any) -> str:
    """The broker's TLS alert on this socket, or on the one below its websocket; empty if none."""
    return str(getattr(getattr(sock, "_socket", sock), "alert", ""))


def not_agreed(endpoint: Endpoint, error: OSError) -> BrokerError:
    """The error for a failed TLS handshake. May fetch the broker's certificate, which blocks for some seconds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BrokerRefused(_untrusted(endpoint, error))
    reason = str(getattr(error, "reason", None) or error)
    if "ALERT" in reason:
        return error_for_alert(endpoint, reason)
    if isinstance(error, ssl.SSLEOFError | ConnectionError) or "WRONG_VERSION" in reason or "EOF" in reason:
        plain = "ws://" if endpoint.websockets else "mqtt://"
        return BrokerUnreachable(
            f"{endpoint} does not answer in TLS ({reason}): this port may serve {plain} only. Name the port that "
            "serves TLS, by convention 8883, or 443 for websockets."
        )
    return BrokerUnreachable(f"{endpoint} does not agree on TLS ({reason}): check that this port serves TLS.")


def error_for_alert(endpoint: Endpoint, alert: str) -> BrokerError:
    """The error for a broker's TLS alert; RFC 8446, section 6.2."""
    ours = None if endpoint.tls is None else endpoint.tls.certfile
    why = alert.lower().partition("alert_")[2].replace("_", " ")
    if "protocol" in why and "application" in why:
        return BrokerRefused(f"{endpoint} knows no protocol of that name ({why}): check alpn= in its address.")
    if "protocol version" in why:
        return BrokerUnreachable(f"{endpoint} speaks no version of TLS that we do ({why}): it needs TLS 1.2 or later.")
    if "unrecognized name" in why:
        return BrokerRefused(f"{endpoint} serves no host of that name ({why}): use the name that it is known by.")
    if ours is None:
        return BrokerRefused(
            f"{endpoint} ended TLS ({why}): it may want a client certificate; give certfile and keyfile."
        )
    return BrokerRefused(
        f"{endpoint} does not take our certificate {ours} ({why}): see that it is in force, and signed by an authority "
        "that the broker trusts."
    )


def _untrusted(endpoint: Endpoint, error: ssl.SSLCertVerificationError) -> str:
    """Why the broker's certificate is not trusted, and what to do."""
    whose, why = f"The certificate of {endpoint} is not trusted", error.verify_message
    now = time.time()
    if error.verify_code in {_NOT_YET_VALID, _EXPIRED}:
        since, until = _validity(endpoint) or (0.0, 0.0)
        clock = f"this machine's clock says {said(now)} UTC"
        dates = f": it is good from {said(since)} to {said(until)}, and {clock}" if until else f" ({why}): {clock}"
        if until and since <= now <= until:  # then it is another certificate
            dates = f" ({why}): the authority that signed it is out of its time, and {clock}"
        if error.verify_code == _NOT_YET_VALID or now < SANE:
            return f"{whose}{dates}. Set the clock; if it is right, wait, or give the broker a certificate of today."
        return f"{whose}{dates}. Renew the broker's certificate; if the clock is wrong, set it."
    if error.verify_code in _OTHER_NAME:
        return (
            f"{whose} ({why}): it was made for another name. Use that name in the address, or give the broker a "
            f"certificate for {endpoint.host}."
        )
    if error.verify_code in _UNKNOWN_ISSUER:
        known = None if endpoint.tls is None else endpoint.tls.cafile
        if known is None:
            return f"{whose} ({why}): give the authority that signed it as cafile."
        return f"{whose} ({why}): no authority in {known} signed it. Give the one that did as cafile."
    return f"{whose} ({why}): give the authority that signed it as cafile, and use the host name it was made for."


def _validity(endpoint: Endpoint) -> tuple[float, float] | None:
    """Validity of the broker's certificate, read without trust; None if it cannot be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        suppress(OSError, ValueError),
        socket.create_connection((endpoint.host, endpoint.port), timeout=_PEEK) as plain,
        context.wrap_socket(plain, server_hostname=endpoint.host) as secured,
    ):
        found = _VALIDITY.search(secured.getpeercert(binary_form=True) or b"")
        if found is not None:
            since, until = (_seconds(each.decode()) for each in found.groups())
            return since, until
    return None


def _seconds(text: str) -> float:
    """Seconds since 1970 of a time in a certificate; years of two digits are from 1950 to 2049."""
    if len(text) == len("YYMMDDhhmmss"):
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
