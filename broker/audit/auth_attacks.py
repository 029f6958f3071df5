"""Authentication attacks: connections that the broker must refuse at CONNECT."""

import secrets
import tempfile
from dataclasses import replace
from pathlib import Path

from midge.broker.audit.identities import Parties, Visitor
from midge.broker.audit.results import Trial, Version
from midge.broker.mqtt.connection import BrokerError
from midge.broker.mqtt.endpoint import Endpoint, Tls

_ANONYMOUS = "Require a certificate or a password (Mosquitto: allow_anonymous false, require_certificate)."


async def break_in(parties: Parties, visitor: Visitor) -> list[Trial]:
    """Try to connect without credentials, with made-up ones, and with revoked ones."""
    version = visitor.version
    bare = stranger(parties.attacker)
    return [
        await _entry("no credentials", visitor, bare, _ANONYMOUS),
        await _with_foreign_certificate(parties, visitor),
        await _entry(
            "guessed password",
            visitor,
            replace(bare, user=parties.victim_name, password=secrets.token_hex(8)),
            "Check passwords (Mosquitto: password_file), or ask for certificates.",
        ),
        await _revoked(parties, visitor, version),
    ]


def stranger(endpoint: Endpoint) -> Endpoint:
    """The same broker without credentials."""
    tls = None if endpoint.tls is None else replace(endpoint.tls, certfile=None, keyfile=None)
    return replace(endpoint, user=None, password=None, tls=tls)


async def _entry(name: str, visitor: Visitor, endpoint: Endpoint, advice: str) -> Trial:
    why = await visitor.let_in(endpoint)
    return Trial(name, "not let in", why or "let in", why is not None, "" if why else advice, visitor.version)


async def _with_foreign_certificate(parties: Parties, visitor: Visitor) -> Trial:
    """A certificate with the victim's name, signed by a made-up authority."""
    name = "foreign certificate"
    advice = "Trust one authority only, your own (Mosquitto: cafile, require_certificate true)."
    bare = stranger(parties.attacker)
    if bare.tls is None:
        return await _entry(name, visitor, bare, advice)
    try:
        import cryptography  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        return Trial(name, "not let in", 'not tried: pip install "midge[security]"', None, version=visitor.version)
    from midge.broker.provisioning.bundles import write_private  # noqa: PLC0415
    from midge.broker.provisioning.certificates import issue, make_authority  # noqa: PLC0415 - an extra
    from midge.broker.provisioning.fleet_registry import present  # noqa: PLC0415

    made_up = issue(make_authority("foreign", present()), parties.victim_name, present(), use="client")
    with tempfile.TemporaryDirectory(prefix="midge-check-") as directory:
        certificate, key = Path(directory) / "crt", Path(directory) / "key"
        write_private(certificate, made_up.certificate)
        write_private(key, made_up.key)
        tls: Tls = replace(bare.tls, certfile=certificate, keyfile=key)
        return await _entry(name, visitor, replace(bare, tls=tls), advice)


async def _revoked(parties: Parties, visitor: Visitor, version: Version) -> Trial:
    name, expected = "revoked identity", "not let in"
    advice = "Revocation does nothing here: give the broker the list (Mosquitto: crlfile) and send it SIGHUP."
    if parties.revoked is not None:
        return await _entry(name, visitor, parties.revoked, advice)
    if await visitor.let_in(stranger(parties.attacker)) is None:
        return Trial(
            name,
            expected,
            "anonymous clients are let in, so none can be shut out",
            passed=False,
            advice=_ANONYMOUS,
            version=version,
        )
    seen = "not tried: there are no revoked credentials (--fleet has some)"
    return Trial(name, expected, seen, None, version=version)


async def one_each(endpoint: Endpoint, visitor: Visitor) -> bool:
    """Whether a second connection of an identity ends the first one, whatever its client id."""
    try:
        async with visitor.visit(endpoint) as first:
            async with visitor.visit(endpoint):
                await first.unsubscribe("midge-check")
            await first.unsubscribe("midge-check")
    except BrokerError:
        return True
    return False
