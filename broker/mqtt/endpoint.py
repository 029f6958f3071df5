"""Address and credentials of a broker: `mqtts://user:password@host:8883`."""

import ipaddress
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from midge.broker.mqtt.services import service_at

Scheme = Literal["mqtt", "mqtts", "ws", "wss"]

DEFAULT_PORTS: dict[str, int] = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
DEFAULT_PATH = "/mqtt"
"""The conventional path of MQTT over websockets."""

_STARTS_WITH_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DELIMITERS = "/?#"
"""Characters that end the authority part of a URL; RFC 3986, section 3.2."""


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS settings. Without `cafile` the system's certificate authorities are trusted."""

    cafile: Path | None = None
    certfile: Path | None = None
    """Our own certificate, if the broker requires one; PEM."""
    keyfile: Path | None = None
    insecure: bool = False
    """Accept any certificate for any name. A machine in the middle can then read everything."""
    alpn: tuple[str, ...] = ()
    """Application protocols to offer, if one port serves several: RFC 7301."""


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
    path: str = field(default=DEFAULT_PATH, repr=False)
    """For websockets only, with the query, which may hold a signature."""
    service: str | None = field(default=None, repr=False)
    """The hosted broker whose limits are kept to, a name in `midge.broker.mqtt.services`; None knows of none."""

    @property
    def credential_files(self) -> list[Path]:
        """Files that expire: our certificate, and the trusted authorities."""
        return [] if self.tls is None else [file for file in (self.tls.certfile, self.tls.cafile) if file is not None]

    @property
    def websockets(self) -> bool:
        return self.scheme in {"ws", "wss"}

    @property
    def address(self) -> str:
        """`host:port`, with brackets around IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def exposed(self) -> bool:
        """Whether others can read and change the traffic: it has no TLS and leaves this machine."""
        return self.tls is None and not is_loopback(self.host)

    def __str__(self) -> str:
        if self.websockets:
            return f"{self.scheme}://{self.address}{self.path.partition('?')[0]}"
        alpn = () if self.tls is None else self.tls.alpn
        return f"{self.scheme}://{self.address}{'?alpn=' + ','.join(alpn) if alpn else ''}"

    @classmethod
    def parse(cls, url: str, *, user: str | None = None, password: str | None = None, tls: Tls | None = None) -> Self:
        """Parse a URL such as `mqtt://localhost` or `mqtts://user:p%40ss@broker.example:8883`.

        Args:
            url: scheme `mqtt`, `mqtts`, `ws` or `wss`; default ports are 1883, 8883, 80 and 443; user and password
                percent-encoded. A websocket's path may have a query, which is passed on unchanged;
                `mqtts://host:443?alpn=NAME` offers that protocol in TLS, as AWS IoT Core requires on port 443.
            user: takes precedence over the URL's.
            password: takes precedence over the URL's.
            tls: details for `mqtts` and `wss`.

        Raises:
            ValueError: the address is invalid; the message says why, and never contains the password.
        """
        url = url.strip()
        if not (begins := _STARTS_WITH_SCHEME.match(url)):
            raise ValueError("A broker's address begins with its scheme, as in mqtt://localhost or mqtts://host:8883.")
        scheme = begins[1].lower()
        if scheme not in DEFAULT_PORTS:
            raise ValueError(f"{scheme}:// is not a scheme for MQTT: use mqtt, mqtts, ws or wss.")
        _check_reserved(url[begins.end() :], websockets=scheme in {"ws", "wss"})
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError(
                "The broker's address cannot be read: check its brackets, and percent-encode what is special in a user "
                "or password ('[' is %5B)."
            ) from None
        if not parts.hostname:
            raise ValueError(f"The broker's address names no host: write {scheme}://host.")
        host = _host(parts.hostname)
        if parts.fragment or "#" in url:
            raise ValueError(
                "The broker's address has a '#': percent-encode it in a password (%23), else leave it out."
            )
        user, password = _credentials(parts, user, password)
        secure, websockets = scheme in {"mqtts", "wss"}, scheme in {"ws", "wss"}
        if not websockets and parts.path not in {"", "/"}:
            raise ValueError(f"The broker's address has a path: write {scheme}://{host} without one.")
        alpn = () if websockets else _alpn(parts.query, asked="?" in url, secure=secure)
        if tls is not None and not secure:
            raise ValueError(f"TLS settings are given for {scheme}://: use mqtts:// or wss://.")
        if tls is not None and tls.keyfile is not None and tls.certfile is None:
            raise ValueError("A TLS key file is given without its certificate: give certfile too.")
        tls = tls or Tls()
        path = DEFAULT_PATH if parts.path in {"", "/"} else parts.path
        return cls(
            scheme=scheme,  # type: ignore[arg-type]
            host=host,
            port=_port(parts, scheme),
            user=user,
            password=password,
            tls=(replace(tls, alpn=alpn) if alpn else tls) if secure else None,
            path=f"{path}?{parts.query}" if parts.query and websockets else path,
            service=service_at(host),
        )


def _check_reserved(rest: str, *, websockets: bool) -> None:
    """Find a character in a user or a password that ends the host's part of a URL although an `@` follows.

    Raises:
        ValueError: there is such a character, or one that no URL has.
    """
    if any(character <= " " or character == "\x7f" for character in rest):
        raise ValueError(
            "The broker's address has a space or a control character: percent-encode it in a password (%20)."
        )
    end = next((place for place, character in enumerate(rest) if character in _DELIMITERS), len(rest))
    head = rest[:end]
    # A websocket's path or query may contain an '@'; then a host and its port stand before it.
    whole = websockets and ("@" in head or re.fullmatch(r"[^:]*(:\d*)?|\[.*](:\d*)?", head))
    if "@" in rest[end:] and not whole:
        raise ValueError(
            f"The broker's address has a {rest[end]!r} in its user or password: percent-encode it "
            f"({quote(rest[end], safe='')}), or leave the password out and give it by itself."
        )


def _host(host: str) -> str:
    """The host, with the zone of a link-local address as sockets need it; RFC 6874 writes `fe80::1%25eth0`."""
    address, percent, zone = host.partition("%")
    if not percent or ":" not in address:
        return host
    return f"{address}%{unquote(zone.removeprefix('25') or zone)}"


def _alpn(query: str, *, asked: bool, secure: bool) -> tuple[str, ...]:
    """The protocols of `?alpn=`, the only parameter allowed in an address without a path."""
    if not asked:
        return ()
    given = parse_qsl(query, keep_blank_values=True)
    if not given or any(name != "alpn" for name, _ in given):
        raise ValueError(
            "The broker's address has a '?': percent-encode it in a password (%3F), else leave it out; only "
            "mqtts://host?alpn=NAME is known."
        )
    if not secure:
        raise ValueError("alpn is a part of TLS: use mqtts://.")
    names = tuple(name for _, value in given for name in value.split(","))
    if not all(name and len(name.encode()) <= 255 for name in names):  # RFC 7301, section 3.1
        raise ValueError("alpn names one protocol or several, such as ?alpn=x-amzn-mqtt-ca.")
    return names


def _port(parts: SplitResult, scheme: str) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("The broker's port must be a number from 1 to 65535.")
    return DEFAULT_PORTS[scheme] if port is None else port


def _credentials(parts: SplitResult, user: str | None, password: str | None) -> tuple[str | None, str | None]:
    try:
        if user is None and parts.username:
            user = unquote(parts.username, errors="strict")
        if password is None and parts.password is not None:
            password = unquote(parts.password, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(
            "User or password are percent-encoded in another way than UTF-8: encode them as UTF-8."
        ) from None
    if password is not None and user is None:
        raise ValueError("A password is given without a user: MQTT wants both.")
    return user, password


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, judged by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
