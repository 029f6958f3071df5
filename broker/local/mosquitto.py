"""Mosquitto as a child process on the loopback, with a generated configuration."""

import hashlib
import os
import secrets
import shutil
import subprocess
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from midge.broker.mqtt.endpoint import Tls

PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/sbin")
"""Folders where packages install it, beside PATH; Debian's is not on an ordinary user's PATH."""

MAX_QUEUED_MESSAGES = 1_000_000
"""Most messages queued for one client. With the default, 1,000, further ones are dropped silently although they were
acknowledged; 0 for no limit is broken in some versions up to 2.0.22."""
ITERATIONS = 101
"""Iterations of PBKDF2: the number of `mosquitto_passwd`. The file is ours and lives as long as the broker."""


def find_mosquitto() -> Path | None:
    """The path of the binary, or None."""
    found = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *PLACES]))
    return None if found is None else Path(found)


def mosquitto_version(binary: Path) -> str:
    """Its version, such as `2.0.11`; empty if unknown."""
    answer = subprocess.run([binary, "-h"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    words = (answer.stdout + answer.stderr).split()
    return words[words.index("version") + 1].rstrip(",") if "version" in words[:3] else ""


@dataclass(frozen=True, slots=True)
class MosquittoSettings:
    """Settings of `mosquitto.conf`."""

    max_packet_size: int = 16 * 1024 * 1024
    """In bytes. Since 2.1 the default is 2 MB."""
    user: str | None = None
    """None disables authentication."""
    password: str | None = None
    tls: Tls | None = None
    """The broker's own `certfile` and `keyfile`; with `cafile` it requires client certificates."""


def write_configuration(directory: Path, port: int, settings: MosquittoSettings) -> Path:
    """Write `mosquitto.conf`, and a password file beside it if there is a user."""
    lines = [
        f"listener {port} 127.0.0.1",
        "persistence false",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_packet_size {settings.max_packet_size}",
        "set_tcp_nodelay true",  # otherwise a message that follows an acknowledgement waits 40 ms
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
        "connection_messages false",
        f"allow_anonymous {'true' if settings.user is None else 'false'}",
    ]
    if settings.user is not None:
        lines.append(f"password_file {_write_passwords(directory, settings.user, settings.password or '')}")
    if settings.tls is not None:
        lines += [f"certfile {settings.tls.certfile}", f"keyfile {settings.tls.keyfile}"]
        if settings.tls.cafile is not None:
            lines += [f"cafile {settings.tls.cafile}", "require_certificate true"]
    if os.geteuid() == 0:
        lines.append("user root")  # otherwise it changes to a user who may not read its own files
    path = directory / "mosquitto.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def _write_passwords(directory: Path, user: str, password: str) -> Path:
    path = directory / "passwords"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(f"{user}:{password_hash(password)}\n")
    return path


def password_hash(password: str) -> str:
    """A hash in the format of Mosquitto 2's password file: PBKDF2 (RFC 8018, section 5.2) with SHA-512.

    Computed here and not by the installed `mosquitto_passwd`, which takes the password from a command line, visible to
    everyone on the machine; a newer one may also write what an older broker cannot read.
    """
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${b64encode(salt).decode()}${b64encode(digest).decode()}"
