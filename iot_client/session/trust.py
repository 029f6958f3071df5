"""What a device has verified, and the checks that follow: nothing forged, older, expired or mixed is accepted.

A signature alone does not stop a broker from serving an old model forever, or one version's announcement after
another's: those are rollback, freeze and mix-and-match attacks in The Update Framework (TUF specification, section
1.5.2). So the newest verified state is stored on the device, in its outbox.

Without a pinned key everything is accepted, and nothing is stored.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from functools import lru_cache

from midge.wire import chunks, clocks, envelopes, frames, messages, signing
from midge.wire.errors import WireError
from midge.wire.lineage import logged
from midge.wire.messages import (
    MOST_TOKEN,
    AggregatorStatus,
    Announcement,
    Answer,
    Envelope,
    ModelAlias,
    SiteCertificate,
    SiteValues,
    SurveyRequest,
    Trouble,
)
from midge.wire.messages.proofs import Proof
from midge.wire.signing import BadSignature, PublicKey
from midge.wire.topics import Channel

EVERY = 600.0
"""Seconds after which the verified state is written, if no update is stored meanwhile, with which it would be."""
FORMAT = 1


class Untrusted(WireError):
    """A signed message that must nevertheless be ignored."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest verified announcement, and the keys that may sign the next."""

    lineage: bytes = b""
    epoch: int = 0
    generation: int = 0
    version: int = 0
    digest: bytes = b""
    issued: float = 0.0
    """Seconds since 1970 at the aggregator: a lower bound of the time, if no clock that was set disagrees."""
    number: int = 0
    """Number of key successions followed."""
    keys: tuple[bytes, ...] = ()
    log: bytes = b""
    """The hash over all releases up to that version; empty if unknown."""
    token: int = 0
    """The highest fencing token of an aggregator: one with a lower one has been replaced."""
    site: str = ""
    """The site of whose gateway that token is; empty is the federation's own aggregator."""
    sealing: int = 0
    """The number of the newest key of the day under that token; 0 if its aggregator names none."""

    @property
    def order(self) -> tuple[int, int, int]:
        return self.epoch, self.generation, self.version


class Trust:
    """One device's trust in one federation.

    Args:
        pinned: the keys that may sign at first; without any, everything is accepted.
        federation: its name.
        device: its own name.
        remembered: what `packed` returned before a restart.
        channel: of the announcements; each channel has a trust of its own.
    """

    def __init__(
        self,
        pinned: Sequence[PublicKey],
        federation: str,
        device: str,
        remembered: bytes | None = None,
        *,
        channel: Channel = "train",
    ) -> None:
        self._federation, self._channel = federation, channel
        self._context = signing.of_device(federation, device)
        self._pins = hashlib.sha256(b"".join(sorted(key.encoded for key in pinned))).digest()[:16]
        self.pinned = bool(pinned)
        self.newest = Newest(keys=tuple(key.raw for key in pinned))
        if remembered is not None and self.pinned:
            self._recall(remembered)
        self._keys = [signing.read_public(key) for key in self.newest.keys]
        self._written, self._written_at = self.newest, 0.0
        self._floor = self.newest.issued
        self._floor_at: float | None = None
        self.site: SiteCertificate | None = None
        """The certificate of the gateway that answers here; None is the federation's own aggregator."""
        self._site_keys: list[PublicKey] = []
        self._daily = b""
        self.doubt = ""
        """Why our clock or the aggregator's is wrong, as text; empty if they agree."""

    def _recall(self, remembered: bytes) -> None:
        fields = frames.unpack(remembered)
        if fields.pop("format") == FORMAT and fields.pop("pins") == self._pins:
            known = {field.name for field in dataclass_fields(Newest)}  # a later version may have written more
            self.newest = Newest(**{name: value for name, value in fields.items() if name in known})

    def packed(self) -> bytes:
        """Bytes to store, for `remembered` after a restart."""
        return frames.pack({"format": FORMAT, "pins": self._pins, **asdict(self.newest)})

    # ----------------------------------------------------------------------- time

    def time(self, wall: float, now: float) -> float:
        """Seconds since 1970: of the clock, or the least that must have passed if the clock is behind.

        A board without a battery begins in 1970. Then the last verified time is the earliest that it can be.
        """
        if self._floor_at is None:
            self._floor_at = now
        least = self._floor + (now - self._floor_at)
        # A clock that was set is more reliable than one announcement of an aggregator whose own was a year ahead.
        return wall if _ahead(least, wall) else max(wall, least)

    # ------------------------------------------------------------------- messages

    def announcement(self, payload: bytes, wall: float, now: float) -> Announcement:
        """Read an announcement, and store it as the newest.

        Args:
            payload: as received.
            wall: the clock's seconds since 1970.
            now: seconds of a monotonic clock.

        Raises:
            BadSignature: no key that we trust has signed it.
            Untrusted: it is another federation's, expired, older than known, or contradicts a known one.
            WireError: it is no announcement.
        """
        if not self.pinned:
            return _read(payload)
        envelope, _ = messages.decode(Envelope, payload)
        keys, number = self._followed(envelope)
        signer = envelopes.signed_by(envelope, signing.ANNOUNCEMENT, self._federation, keys)
        if signer is None:
            raise BadSignature("the announcement is not signed by a key that this device trusts")
        announcement, _ = messages.decode(Announcement, envelope.body)
        raised = announcement.epoch > self.newest.epoch
        # The operator's command overrides what one wrong date caused.
        self._check(announcement, wall if raised else self.time(wall, now))
        self._accept(announcement, keys, number, wall, now)
        return announcement

    def _followed(self, envelope: Envelope) -> tuple[list[PublicKey], int]:
        """The keys in force when the announcement was issued, by the chain from those we trust."""
        keys, number = self._keys, self.newest.number
        if envelope.chain:
            announcement, _ = messages.decode(Announcement, envelope.body)  # not yet trusted
            chain = [] if self._beside(envelope) else envelope.chain
            for count, link in enumerate(chain, start=1):
                if count > number:
                    succession = envelopes.read_succession(link, self._federation, keys)
                    if succession.number != count:
                        raise Untrusted(f"link {count} of the chain of keys says that it is number {succession.number}")
                    if succession.since > announcement.issued:
                        break
                    keys, number = [signing.read_public(succession.key)], count
        return keys, number

    def _beside(self, envelope: Envelope) -> bool:
        """Whether the chain is that of another key: ours is a companion that signs too, and has no successors."""
        if self.newest.number or not all(key.kind == signing.P256 for key in self._keys):
            return False
        first, _ = messages.decode(Envelope, envelope.chain[0])
        ours = {key.id for key in self._keys}
        return envelopes.signers(envelope) & ours != set() and not envelopes.signers(first) & ours

    def _check(self, announcement: Announcement, time: float) -> None:
        newest = self.newest
        if announcement.federation != self._federation or announcement.channel != self._channel:
            raise Untrusted(f"the announcement is of {announcement.federation!r}, channel {announcement.channel!r}")
        if announcement.expires and time > announcement.expires:
            raise Untrusted(
                f"the announcement of version {announcement.version} expired {time - announcement.expires:.0f} s ago: "
                f"the broker holds newer ones back, the aggregator is away, or this device's clock, which says "
                f"{clocks.said(time)}, is ahead: see that it is right. If the aggregator's was wrong, start that once "
                "with --raise-epoch"
            )
        if not newest.lineage or announcement.epoch > newest.epoch:
            return
        if announcement.lineage != newest.lineage:
            raise Untrusted(
                "the announcement is of another lineage in the same epoch: an old store's, or a new one whose operator "
                "must raise the epoch (midge aggregate --raise-epoch)"
            )
        order = announcement.epoch, announcement.generation, announcement.version
        if order < newest.order:
            raise Untrusted(f"version {announcement.version} is older than {newest.version}, which was verified before")
        if order == newest.order and announcement.digest != newest.digest:
            raise Untrusted(f"version {announcement.version} was verified before with another digest")
        if order == newest.order and announcement.log and newest.log and announcement.log != newest.log:
            raise Untrusted(f"version {announcement.version} was verified before, at the end of other releases")
        follows = order == (newest.epoch, newest.generation, newest.version + 1)
        if follows and announcement.parent and announcement.parent != newest.digest:
            raise Untrusted(f"version {announcement.version} does not follow on version {newest.version} as known here")
        told = announcement.log if newest.log else b""
        if follows and told and told != logged(newest.log, order[1], order[2], announcement.digest):
            raise Untrusted(f"the releases up to version {announcement.version} are not those that were known here")

    def _accept(self, announcement: Announcement, keys: list[PublicKey], number: int, wall: float, now: float) -> None:
        issued, known, token, site = announcement.issued, self.newest.issued, self.newest.token, self.newest.site
        sealed = self.newest.sealing
        self.doubt = ""
        if announcement.epoch > self.newest.epoch:
            self._floor, known, token, sealed = 0.0, 0.0, 0, 0
        if _ahead(issued, wall):
            self.doubt = (
                f"version {announcement.version} was issued on {clocks.said(issued)}, and this device's clock says "
                f"{clocks.said(wall)}: one of the two clocks is wrong, see to both"
            )
            issued = known  # accepted, but no lower bound: it would block correct ones for as long as the clock was off
        elif issued > self._floor or _ahead(self._floor, wall):
            self._floor, self._floor_at = issued, now
            known = min(known, issued) if _ahead(known, wall) else known
        self._keys = keys
        self.newest = Newest(
            lineage=announcement.lineage,
            epoch=announcement.epoch,
            generation=announcement.generation,
            version=announcement.version,
            digest=announcement.digest,
            issued=max(issued, known),
            number=number,
            keys=tuple(key.raw for key in keys),
            log=announcement.log,
            token=token,
            site=site,
            sealing=sealed,
        )

    def alias(self, payload: bytes, wall: float, now: float) -> ModelAlias:
        """Read a name of a registered version.

        Whether it is older than the one that is known is seen by whoever keeps it.

        Raises:
            BadSignature: no key that we trust has signed it.
            Untrusted: it is another federation's or lineage's, or expired.
            WireError: it is none.
        """
        alias, envelope = messages.decode_alias(payload)
        if not self.pinned:
            return alias
        if envelopes.signed_by(envelope, signing.ALIAS, self._federation, self._keys) is None:
            raise BadSignature(f"the name {alias.name} is not signed by a key that this device trusts")
        if alias.federation != self._federation or self.newest.lineage not in {b"", alias.lineage}:
            raise Untrusted(f"the name {alias.name} is of another federation or lineage")
        if alias.expires and self.time(wall, now) > alias.expires:
            raise Untrusted(f"the name {alias.name} has expired: the broker holds newer ones back, or a clock is wrong")
        return alias

    def survey(self, payload: bytes, wall: float, now: float) -> SurveyRequest:
        """Read the request of a survey.

        Raises:
            BadSignature: no key that we trust has signed it.
            Untrusted: it is another federation's, or expired.
            WireError: it is none.
        """
        survey, envelope = messages.decode_survey(payload)
        if self.pinned and envelopes.signed_by(envelope, signing.SURVEY, self._federation, self._keys) is None:
            raise BadSignature("the survey is not signed by a key that this device trusts")
        if survey.federation != self._federation:
            raise Untrusted(f"the survey is of {survey.federation!r}")
        if self.time(wall, now) > survey.expires:
            raise Untrusted("the survey has ended: its request was left on the broker, or a clock is wrong")
        return survey

    def read_answer(self, payload: bytes) -> Answer:
        """Read a receipt, a `trouble` or a proof: a forged receipt would make us forget an update.

        A proof is not signed: who asked for it compares it with an announced root.

        Raises:
            BadSignature: no key that we trust has signed it.
            Untrusted: its aggregator has been replaced by another.
            WireError: it is none of them.
        """
        answer, body = messages.decode_answer(payload)
        if isinstance(answer, Proof):
            return answer
        if self.pinned:
            _, signature = signing.split(answer, body)
            head = signing.head_of(payload, body)
            if not any(key.verifies(signature, signing.RECEIPT, self._context, head) for key in self._answering):
                raise BadSignature("the receipt is not signed by a key that this device trusts")
            if isinstance(answer, Trouble):
                return answer
            if 0 < answer.token < self.newest.token:
                raise Untrusted("the receipt is of an aggregator that another one has replaced")
            self._fence(answer.token)
        return answer

    def status(self, payload: bytes) -> AggregatorStatus:
        """Read the aggregator's status. The token of an unsigned one is ignored.

        Raises:
            WireError: it is none.
        """
        status, _ = messages.decode(AggregatorStatus, payload)
        if not self.pinned:
            return status
        keys, certificate = self._keys, None
        if status.vouch:
            certificate = envelopes.read_certificate(status.vouch, self._federation, self._keys)
            if 0 < certificate.expires < self.newest.issued:
                raise Untrusted(f"the certificate of the site {certificate.name} has expired: midge gateway certify")
            keys = [signing.read_public(certificate.key)]
        if not signing.signs_for_federation(keys, self._federation, payload):
            nothing = {"token": 0, "vouch": b"", "seal_key": b"", "site_size": 0}
            return status.model_copy(update={**nothing, "name": self.newest.site})
        self._move(certificate, keys)
        self._take_key(status)
        self._fence(status.token)
        return status.model_copy(update={"name": self.newest.site})

    def site_values(self, payload: bytes) -> tuple[SiteValues, bytes]:
        """Read the values of the site's tensors.

        Raises:
            BadSignature: the site's certified gateway has not signed them.
            Untrusted: they are of an earlier start of it, which this one has replaced.
            WireError: they are none, or were changed.
        """
        header, body = messages.decode(SiteValues, payload)
        own, signature = signing.split(header, body)
        if self.pinned:
            head = signing.head_of(payload, body)
            if not any(key.verifies(signature, signing.SITE_VALUES, self._federation, head) for key in self._site_keys):
                raise BadSignature("the values of the site's tensors are not signed by its certified gateway")
            if header.token < self.newest.token:
                raise Untrusted("the values of the site's tensors are of an earlier start of its gateway")
        if len(own) != header.size or not chunks.fits(own, header.sha256):
            raise WireError("the values of the site's tensors are not those of their header")
        return header, bytes(own)

    def _move(self, certificate: SiteCertificate | None, keys: list[PublicKey]) -> None:
        """Take receipts from another aggregator from here on: a site's gateway, or the federation's own."""
        self.site, self._site_keys = certificate, [] if certificate is None else keys
        site = "" if certificate is None else certificate.name
        if site != self.newest.site:
            self.newest = replace(self.newest, site=site, token=0, sealing=0)  # each counts its own starts
            self._daily = b""

    @property
    def daily(self) -> bytes | None:
        """The key of the day to seal to; empty if the aggregator names none, None if it is not known yet."""
        return None if not self._daily and self.newest.sealing else self._daily

    def _take_key(self, status: AggregatorStatus) -> None:
        """Take the key of the day, unless a broker shows an earlier one."""
        newest = self.newest
        if newest.token < status.token <= MOST_TOKEN or (
            status.token == newest.token and status.number >= newest.sealing
        ):
            self._daily = status.seal_key
            self.newest = replace(newest, sealing=status.number if status.seal_key else 0)

    @property
    def _answering(self) -> list[PublicKey]:
        """Keys that sign receipts here."""
        return self._site_keys or self._keys

    def _fence(self, token: int) -> None:
        if self.newest.token < token <= MOST_TOKEN:
            self.newest = replace(self.newest, token=token)

    # ------------------------------------------------------------------- storage

    @property
    def unwritten(self) -> bool:
        """Whether something was verified since it was last written."""
        return self.pinned and self.newest != self._written

    def urgent(self, now: float) -> bool:
        """Whether it must be written before it is acted on.

        A mere new version is written with the next stored update, in the same transaction, or after ten minutes: a
        device that loses its power earlier can be led back at most ten minutes, to a version from which it had stored
        nothing. Other keys, epochs, generations and lineages are written at once.
        """
        if not self.unwritten:
            return False
        same = replace(
            self.newest,
            version=self._written.version,
            digest=self._written.digest,
            issued=self._written.issued,
            log=self._written.log,
            sealing=self._written.sealing,
        )
        return same != self._written or now - self._written_at >= EVERY

    def wrote(self, now: float) -> None:
        """Record that it is written."""
        self._written, self._written_at = self.newest, now


def _ahead(when: float, wall: float) -> bool:
    """Whether a time is further ahead than two right clocks can differ; a clock that was never set cannot tell."""
    return wall >= clocks.SANE and when > wall + clocks.DAY


@lru_cache(maxsize=4)
def _read(payload: bytes) -> Announcement:
    """An announcement. Cached: it is repeated, and in a simulated fleet thousands of devices share one."""
    return messages.decode_announcement(payload)
