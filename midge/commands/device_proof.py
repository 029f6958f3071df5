"""`midge device proof SEQ` and `midge device consent`: what became of what this device gave, proven by the log."""

import argparse
import asyncio
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midge.broker import BrokerError, Connector, connector
from midge.commands.device_status import day, open_outbox
from midge.commands.output import say
from midge.commands.parts import Problem, read_config, read_endpoint, user_errors
from midge.iot_client.board.local_status import runs
from midge.iot_client.connection.proofs import NotAnswered, Proven, VerifiedHead, prove
from midge.iot_client.session.trust import Trust
from midge.iot_client.state.consent import Consent
from midge.iot_client.state.given import KEPT, STATISTICS, UNSENT, UNSETTLED, GivenUpdate, given
from midge.iot_client.state.outbox_files import unwrapped, witness_of
from midge.storage.key_files import read_key
from midge.wire import signing
from midge.wire.errors import WireError
from midge.wire.ledger import Unproven
from midge.wire.plurals import counted
from midge.wire.topics import Topics

_PROVEN = 20
"""Updates that `consent status` asks proofs of, the newest ones: each costs a message in both directions."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an outbox remembers, read without changing anything."""

    path: Path
    device: str
    """The name that the outbox belongs to; empty in one that has never run."""
    given: list[GivenUpdate]
    waiting: int
    trust: bytes | None
    statistics: float | None
    """When it first gave statistics of its rows, in seconds since 1970."""

    @classmethod
    def of(cls, path: Path) -> "Remembered":
        """Read it.

        Raises:
            Problem: there is no outbox, or it cannot be read.
        """
        if not path.is_file():
            raise Problem(
                f"There is no outbox {path}: name the file that the device was given, such as pump-17.outbox."
            )
        try:
            with closing(open_outbox(path)) as db:
                meta = {name: unwrapped(value) for name, value in db.execute("SELECT name, value FROM meta")}
                ((waiting,),) = db.execute("SELECT count(*) FROM updates WHERE header != x''").fetchall()
                found = given(db)
        except sqlite3.Error as error:
            raise Problem(f"{path} cannot be read ({error}): is it an outbox?") from error
        sent = meta.get(STATISTICS)
        name = (meta.get("device") or b"").decode()
        return cls(path, name, found, waiting, meta.get("trust.train"), None if sent is None else float(sent))


def outbox_of(args: argparse.Namespace, named: Sequence[str]) -> Path:
    """The outbox that the command line names: after the words, by --outbox, or by the device's name."""
    given = named[0] if named else args.outbox
    if given is not None:
        path = Path(given).expanduser()
        if path.is_dir():
            raise Problem(f"{given!r} is no outbox: name the file that the device was given.")
        return path
    name = args.name or (read_config(args.config, args.broker).name if args.config is not None else None)
    if name is None:
        raise Problem(f"Say whose: midge device {' '.join(args.app)} OUTBOX, such as pump-17.outbox.")
    return Path(f"{name}.outbox")


def run_proof(args: argparse.Namespace, seq: str, named: Sequence[str]) -> int:
    """Prove that an update is in a release."""
    if not seq.isdecimal() or not int(seq):
        raise Problem(f"{seq!r} is no number of an update: `midge device status` says which is the next.")
    known = Remembered.of(outbox_of(args, named))
    wanted = [each for each in known.given if each.seq == int(seq)]
    if not wanted:
        reach = f"it knows {known.given[0].seq} to {known.given[-1].seq}" if known.given else "it knows none yet"
        raise Problem(
            f"{known.path} does not remember update {seq}: {reach}. Of settled updates the last {KEPT} are, and "
            "only what the device remembers can be compared with what the log has."
        )
    place = _place(args, known)
    if place is None:
        raise Problem("Say where: --config with the device's bundle, or --broker URL and --federation NAME.")
    (found,) = _ask(place, known, wanted[-1:])
    if args.json:
        print(json.dumps(_plain(found, pinned=place.pinned)))
    else:
        say(_words(found, pinned=place.pinned))
        if found.release is not None:
            say(
                "Versions after it contain it too, unless training went back to a model without it since: no device is "
                f"told, so ask the operator for `midge explain STORE {place.device}/{seq}`."
            )
    return 0 if found.release is not None else 1


def run_consent(args: argparse.Namespace, verb: str, named: Sequence[str]) -> int:
    """Withdraw consent, give it again, or say what became of what was given."""
    path = outbox_of(args, named)
    consent = Consent.beside(path)
    if verb == "status":
        new = not path.is_file() and consent.withheld() is not None  # withdrawn with --new
        known = Remembered(path, "", [], 0, None, None) if new else Remembered.of(path)
        return _consent_status(args, known, consent)
    _refuse_others(path, known=args.new or consent.withheld() is not None)
    try:
        changed = consent.withdraw(time.time()) if verb == "off" else consent.give()
    except OSError as error:
        raise Problem(f"{consent.path} cannot be changed: {error.strerror}.") from error
    if args.json:
        print(json.dumps({"consent": verb == "on", "changed": changed}))
    elif verb == "off":
        running = runs(path)
        which = "follows within seconds" if running else "does not run now" if path.is_file() else "has never run"
        say(
            f"Consent {'is' if changed else 'was already'} withdrawn for {path}, whose device {which}. Until "
            "`midge device consent on` it trains on nothing and sends nothing of its data; what waits is dropped. "
            "Models are still received and used. What was given before stays there: `midge device consent status` "
            "says what, and what can be taken back."
        )
    else:
        say(f"Consent is given for {path}{': its device goes on with the next version' if changed else ' as before'}.")
    return 0


def _refuse_others(path: Path, *, known: bool) -> None:
    """Refuse a path that is no outbox, because no device would read a switch beside it.

    A damaged outbox, which has its witness beside it, is one. `known` says that it need not be there.
    """
    if path.is_file():
        if not witness_of(path).path.is_file():
            Remembered.of(path)
    elif not path.parent.is_dir() or not known:
        raise Problem(
            f"There is no outbox {path}: name the file that the device was given, such as pump-17.outbox, or add --new "
            "if its device has never run."
        )


@dataclass(frozen=True, slots=True)
class _Place:
    connector: Connector
    topics: Topics
    device: str
    trust: Trust
    pinned: bool


def _place(args: argparse.Namespace, known: Remembered) -> _Place | None:
    """Where to ask; None if the options do not say."""
    bundle = None if args.config is None else read_config(args.config, args.broker)
    if bundle is not None:
        endpoint, topics = bundle.endpoint, bundle.topics
    elif args.broker is not None and args.federation is not None:
        with user_errors():
            endpoint, topics = read_endpoint(args, args.broker), Topics(args.federation)
    else:
        return None
    device = known.device or args.name or (bundle and bundle.name)
    if not device:
        raise Problem(f"{known.path} does not say whose it is: add --name NAME.")
    key = args.release_key or (None if bundle is None else bundle.release_key)
    with user_errors():
        pinned = [] if key is None else [signing.read_public(*read_key(key))]
        trust = Trust(pinned, topics.federation, device, known.trust)
    return _Place(connector(endpoint), topics, device, trust, bool(pinned))


def _ask(place: _Place, known: Remembered, updates: Sequence[GivenUpdate]) -> list[Proven]:
    verified = VerifiedHead(known.path.with_name(f"{known.path.name}.ledger"))
    asking = prove(
        place.connector,
        place.topics,
        place.device,
        updates,
        trust=place.trust,
        verified=verified,
        now=(time.time(), time.monotonic()),
    )
    try:
        return asyncio.run(asking)
    except Unproven as error:
        return [Proven(each, None, why=str(error), forged=True) for each in updates]
    except (BrokerError, NotAnswered, WireError) as error:
        raise Problem(str(error)) from error


def _plain(found: Proven, *, pinned: bool) -> dict[str, Any]:
    release = found.release
    return {
        "seq": found.given.seq,
        "proven": release is not None,
        "signed": pinned,
        "why": found.why,
        "forged": found.forged,
        "weight": found.weight,
        "release": None
        if release is None
        else {
            "generation": release.generation,
            "version": release.version,
            "digest": release.digest.hex(),
            "updates": release.updates,
        },
    }


def _words(found: Proven, *, pinned: bool) -> str:
    seq = found.given.seq
    if found.release is not None:
        root = "signed by the release key that this device pins" if pinned else "NOT signed: no release key is pinned"
        return (
            f"Update {seq} is in version {found.release.version}, one of its "
            f"{counted(found.release.updates, 'update')}, with weight {found.weight:g} in its step. The log's root is "
            f"{root}; the model of that version has the digest {found.release.digest.hex()}."
        )
    if found.forged:
        return f"WRONG: update {seq}: {found.why}. Keep this output, and ask the operator for an audit."
    return f"Update {seq} is not proven: {found.why}."


def _consent_status(args: argparse.Namespace, known: Remembered, consent: Consent) -> int:
    place = _place(args, known)
    counts = Counter(each.verdict or "settled" for each in known.given)
    accepted = [each for each in known.given if each.verdict in ("accepted", "", UNSETTLED)]
    asked = accepted[-_PROVEN:] if place is not None else []
    proven = _ask(place, known, asked) if place is not None and asked else []
    said: dict[str, Any] = {
        "consent": consent.withheld() is None,
        "since": consent.since,
        "waiting": known.waiting,
        "given": dict(counts),
        "statistics": known.statistics,
        "remembered": KEPT,
        "releases": [_plain(each, pinned=place.pinned) for each in proven] if place is not None else None,
    }
    if args.json:
        print(json.dumps(said))
        return 0
    if said["consent"]:
        say("Consent is given: this device trains on its rows, and sends what it learned. The rows stay here.")
    else:
        since = day(consent.since) if consent.since is not None else "an unknown time (its file is damaged)"
        say(f"Consent is withdrawn since {since}: nothing is trained on, and nothing is sent.")
    parts = [f"{counted(counts['accepted'], 'update')} accepted by the federation"]
    parts += [f"{counts[UNSENT]} dropped before sending"] if counts[UNSENT] else []
    parts += [f"{counts[UNSETTLED]} sent without an answer, which may count"] if counts[UNSETTLED] else []
    parts += [f"{known.waiting} waiting"] if known.waiting else []
    say(f"Given: {', '.join(parts)}; of the last {KEPT} that this device remembers.")
    if known.statistics is not None:
        say(
            f"Given since {day(known.statistics)}: statistics of its rows (count, mean and spread of each input), from "
            "which the model's normalisation is made."
        )
    for each in proven:
        say("  " + _words(each, pinned=place is not None and place.pinned))
    if place is None and accepted:
        say(
            "In which releases they are, with proof: add --config with the device's bundle, or --broker URL and "
            "--federation NAME."
        )
    say(
        f"What can be taken back: ask the operator. If a version without this device was released since, its number "
        f"is in `midge explain STORE {known.device or 'NAME'}/SEQ`: no device is told of it. Otherwise `midge replay "
        f"STORE --without {known.device or 'NAME'}` computes that model, exactly for what the journal still holds, and "
        "--promote releases it. Versions that were released before are in other hands and stay there. `midge "
        "device-forget` erases the device's name and updates at the aggregator."
    )
    return 0
