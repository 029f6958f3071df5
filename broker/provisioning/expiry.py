"""Expiry of certificates, authorities, revocation lists and release keys, read from their files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

NEAR = 60
"""Days before an expiry from which on it is an alarm: time for a visit, an order, and holidays in between."""
ENDS = ".ends"
"""Suffix to the name of a release key: a file with the date, ISO 8601, at which it is due to have a successor."""


@dataclass(frozen=True, slots=True)
class End:
    """One credential and when it expires."""

    what: str
    at: datetime
    advice: str

    def left(self, now: datetime) -> int:
        """Whole days; negative once it has expired."""
        return (self.at - now) // timedelta(days=1)

    def near(self, now: datetime) -> bool:
        """Whether it is an alarm."""
        return self.left(now) < NEAR

    def seen(self, now: datetime) -> str:
        """The remaining time, as text."""
        left = self.left(now)
        return f"{self.what} runs out in {left} days" if left >= 0 else f"{self.what} ran out {-left} days ago"

    def alarm(self, now: datetime) -> str:
        """An alarm, or nothing if the expiry is far away."""
        return f"{self.seen(now)}: {self.advice}" if self.near(now) else ""


def alarms(files: Iterable[Path], now: float) -> tuple[str, ...]:
    """Alarms for these files, at a time in seconds since 1970. Unreadable files are skipped."""
    present = datetime.fromtimestamp(now, UTC)
    return tuple(said for file in files for end in ends(file) if (said := end.alarm(present)))


def ends(file: Path) -> Iterator[End]:
    """Expiries in a PEM file, one for each certificate, or of a release key."""
    beside = file.with_name(file.name + ENDS)
    if beside.is_file():
        try:
            at = datetime.fromisoformat(beside.read_text().strip())
        except (OSError, ValueError):
            return
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        yield End(f"The release key {file}", at, "`midge release-key succeed`; devices follow by themselves.")
        return
    try:
        data = file.read_bytes()
    except OSError:
        return
    if b"-----BEGIN CERTIFICATE-----" in data:
        yield from _of_certificates(file, data)
    if b"-----BEGIN X509 CRL-----" in data:
        yield from _of_lists(data)


def _of_certificates(file: Path, data: bytes) -> Iterator[End]:
    from cryptography.x509 import BasicConstraints, ExtensionNotFound, load_pem_x509_certificates  # noqa: PLC0415

    try:
        certificates = load_pem_x509_certificates(data)
    except ValueError:
        return
    newest = max(certificate.not_valid_after_utc for certificate in certificates)
    for certificate in certificates:
        try:
            authority = certificate.extensions.get_extension_for_class(BasicConstraints).value.ca
        except ExtensionNotFound:
            authority = False
        if not authority:
            yield End(
                f"The certificate {file}",
                certificate.not_valid_after_utc,
                "`midge broker renewals` renews it over MQTT.",
            )
        elif certificate.not_valid_after_utc == newest:  # a newer one in the same file has replaced it
            yield End(
                f"The authority {file}", newest, "`midge broker authority succeed`; devices get the new one over MQTT."
            )


def _of_lists(data: bytes) -> Iterator[End]:
    from cryptography.x509 import load_pem_x509_crl  # noqa: PLC0415

    end = b"-----END X509 CRL-----"
    for part in data.split(end)[:-1]:
        try:
            at = load_pem_x509_crl(part + end + b"\n").next_update_utc
        except ValueError:
            return
        if at is not None:
            yield End(
                "The revocation list",
                at,
                "it ends everybody's access; write it again with `midge device list --renew`.",
            )
