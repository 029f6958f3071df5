"""Where a broker is and how to be let in: `mqtts://user:password@host:8883`."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from urllib.parse import SplitResult, unquote, urlsplit

Scheme = Literal["mqtt", "mqtts", "ws", "wss"]

DEFAULT_PORTS: dict[Scheme, int] = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
DEFAULT_PATH = "/mqtt"
"""Where brokers serve MQTT over websockets, by convention."""

_STARTS_WITH_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Tls:
    """What to trust and what to show. Without `cafile` the system's certificate authorities are trusted."""

    cafile: Path | None = None
    certfile: Path | None = None
    """Our own certificate, where the broker wants one; PEM."""
    keyfile: Path | None = None
    insecure: bool = False
    """Take any certificate for any name. Whoever sits between us and the broker then reads everything."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker's address and our credentials. The password is in neither `repr` nor `str`."""

    scheme: Scheme
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    """None for a connection without TLS."""
    path: str = DEFAULT_PATH
    """For websockets only."""

    @property
    def credential_files(self) -> list[Path]:
        """What may run out: our certificate, and the authorities that are trusted."""
        return [] if self.tls is None else [file for file in (self.tls.certfile, self.tls.cafile) if file is not None]

    @property
    def websockets(self) -> bool:
        return self.scheme in {"ws", "wss"}

    @property
    def address(self) -> str:
        """`host:port`, as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def exposed(self) -> bool:
        """Whether what is sent can be read and changed by others: there is no TLS, and it leaves this machine."""
        return self.tls is None and not is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path if self.websockets else ''}"

    @classmethod
    def parse(cls, url: str, *, user: str | None = None, password: str | None = None, tls: Tls | None = None) -> Self:
        """Read a URL such as `mqtt://localhost` or `mqtts://user:p%40ss@broker.example:8883`.

        Args:
            url: scheme `mqtt`, `mqtts`, `ws` or `wss`; ports 1883, 8883, 80 and 443 where none is given; user and
                password percent-encoded.
            user: takes precedence over the URL's.
            password: takes precedence over the URL's.
            tls: details for `mqtts` and `wss`.

        Raises:
            ValueError: the address is not one; the message says what is wrong, and never the password.
        """
        if not _STARTS_WITH_SCHEME.match(url):
            raise ValueError("A broker's address begins with its scheme, as in mqtt://localhost or mqtts://host:8883.")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("The broker's address cannot be read: check its brackets.") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError(f"{parts.scheme}:// is not a scheme for MQTT: use mqtt, mqtts, ws or wss.")
        scheme = parts.scheme
        if not parts.hostname:
            raise ValueError(f"The broker's address names no host: write {scheme}://host.")
        if parts.query or parts.fragment or "?" in url or "#" in url:
            raise ValueError(
                "The broker's address has a '?' or '#': percent-encode it in a password (%3F, %23), else leave it out."
            )
        if scheme in {"mqtt", "mqtts"} and parts.path not in {"", "/"}:
            raise ValueError(f"The broker's address has a path: write {scheme}://{parts.hostname} without one.")
        user, password = _credentials(parts, user, password)
        secure = scheme in {"mqtts", "wss"}
        if tls is not None and not secure:
            raise ValueError(f"TLS settings are given for {scheme}://: use mqtts:// or wss://.")
        if tls is not None and tls.keyfile is not None and tls.certfile is None:
            raise ValueError("A TLS key file is given without its certificate: give certfile too.")
        return cls(
            scheme=scheme,
            host=parts.hostname,
            port=_port(parts, scheme),
            user=user,
            password=password,
            tls=(tls or Tls()) if secure else None,
            path=DEFAULT_PATH if parts.path in {"", "/"} else parts.path,
        )


def _port(parts: SplitResult, scheme: Scheme) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("The broker's port must be a number from 1 to 65535.")
    return DEFAULT_PORTS[scheme] if port is None else port


def _credentials(parts: SplitResult, user: str | None, password: str | None) -> tuple[str | None, str | None]:
    if user is None and parts.username:
        user = unquote(parts.username)
    if password is None and parts.password is not None:
        password = unquote(parts.password)
    if password is not None and user is None:
        raise ValueError("A password is given without a user: MQTT wants both.")
    return user, password


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
