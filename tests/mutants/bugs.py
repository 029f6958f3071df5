"""Bugs that a federation could have, to be put in on purpose: tests that miss them prove nothing.

Each is planted by replacing a function of the product, in the test's own process or, through `launch.py`, in the
processes that it starts. Product code knows nothing of them.
"""

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from safetensors.numpy import load as load_tensors

from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.engine import Engine
from midge.aggregator.service import Aggregator
from midge.aggregator.shell import AggregatorShell
from midge.aggregator.store.store import Checkpoint, Entry, Store
from midge.broker.mqtt.connection import Connection, Delivery
from midge.iot_client.connection.publisher import Publisher
from midge.iot_client.runtime import DeviceRuntime
from midge.iot_client.session.timers import Timer
from midge.iot_client.state.memory_outbox import AnyOutbox, MemoryOutbox
from midge.iot_client.state.outbox import Outbox
from midge.iot_client.state.outbox_files import INSERT, checksum, enter, packed
from midge.storage.failpoints import failpoint
from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import Update
from tests.aggregator.rig import TOPICS
from tests.federation.participant import Participant

Patch = Callable[[object, str, Any], None]
"""`setattr`, or pytest's, which takes it back."""


@dataclass(frozen=True)
class Bug:
    """One bug and what must see it."""

    plant: Callable[[Patch], None]
    killer: str
    """The cheapest kind of test that catches it; empty where none can, because the design makes it harmless."""
    wishes: tuple[str, ...] = ()
    """Of that test, where it is one of failpoints: where to kill."""
    devices: int = 2
    """Of that test as well. One has nobody whose next update mends what it misses."""

    @property
    def name(self) -> str:
        return self.plant.__name__

    @property
    def words(self) -> str:
        return (self.plant.__doc__ or "").partition("\n")[0]


# -------------------------------------------------------------------- the aggregator


def no_deduplication(patch: Patch) -> None:
    """The aggregator takes whatever comes."""

    def arrived(core: AggregatorCore, device: str, update: Update, key: int, _now: float) -> Sequence[ev.Action]:
        core._state.outboxes.advance_to(device, update.outbox, update.first)
        return [ev.Decode(device, update, key)]

    patch(AggregatorCore, "_arrived", arrived)


def outboxes_not_in_checkpoints(patch: Patch) -> None:
    """A restart knows the repeats since the last checkpoint only."""
    dump = AggregatorCore.dump
    patch(AggregatorCore, "dump", lambda core: {**dump(core), "outboxes": []})


def no_journal(patch: Patch) -> None:
    """The aggregator remembers what it decided until it is restarted."""
    patch(Store, "commit", lambda _store, _entries: None)


def commit_one_batch_late(patch: Patch) -> None:
    """What was receipted is written with the next batch."""
    commit = Store.commit
    waiting: WeakKeyDictionary[Store, list[Entry]] = WeakKeyDictionary()

    def lazy(store: Store, entries: Iterable[Entry]) -> None:
        late, waiting[store] = waiting.get(store, []), list(entries)
        commit(store, late)

    patch(Store, "commit", lazy)


def receipt_before_commit(patch: Patch) -> None:
    """The aggregator says that it has an update before it has."""
    carry_out = AggregatorShell.carry_out

    def hasty(shell: AggregatorShell, actions: Sequence[ev.Action], now: float) -> None:
        for action in actions:
            if isinstance(action, ev.Reply):
                shell.host.reply(action.device, action.outbox, action.hi, action.settled)
        shell.host.flush(now)
        carry_out(shell, actions, now)

    patch(AggregatorShell, "carry_out", hasty)


def no_checkpoint_digest(patch: Patch) -> None:
    """A damaged checkpoint is taken for a whole one."""

    def trusting(store: Store) -> Iterator[Checkpoint]:
        rows = store._open_db.execute("SELECT lsn, file FROM checkpoints ORDER BY lsn DESC").fetchall()
        for lsn, file in rows:
            arrays = load_tensors((store.directory / file).read_bytes())
            plain = frames.unpack(arrays.pop("plain").tobytes())
            yield Checkpoint(lsn, arrays, plain["values"], plain["core"])

    patch(Store, "checkpoints", trusting)


def frames_not_made_again(patch: Patch) -> None:
    """Frames that were not yet stored at a kill are gone. Harmless: a snapshot is made in their place."""
    patch(Engine, "write_replayed", lambda _engine: None)


def acknowledge_before_commit(patch: Patch) -> None:
    """The broker forgets a message before the aggregator has it. Harmless: the device does not."""
    process = Aggregator._process

    def hasty(server: Aggregator, connection: Connection, batch: list[Delivery]) -> None:
        for delivery in batch:
            connection.ack(delivery)
        process(server, _Deaf(connection), batch)

    patch(Aggregator, "_process", hasty)


class _Deaf:
    """A connection on which everything is acknowledged already."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def ack(self, delivery: Delivery) -> None:
        pass


# ------------------------------------------------------------------------ the device


def forget_on_puback(patch: Patch) -> None:
    """The device takes the broker's acknowledgement for the aggregator's."""
    publish, sends = Publisher.publish, Participant.send

    async def careless(
        publisher: Publisher, connection: Connection, topic: str, payload: bytes, *, retain: bool = False
    ) -> bool:
        done = await publish(publisher, connection, topic, payload, retain=retain)
        with suppress(WireError):
            header, _ = messages.decode_update(payload)
            if isinstance(header, Update) and header.kind == "update":
                runtime = publisher._put.__self__.__self__  # type: ignore[attr-defined]
                _forget(runtime, header.seq)
        return done

    def virtually(participant: Participant, update: Update) -> None:
        sends(participant, update)
        _forget(participant, update.seq)

    patch(Publisher, "publish", careless)
    patch(Participant, "send", virtually)


def _forget(hooks: Any, seq: int) -> None:
    hooks.session._sending.held.pop(seq, None)
    hooks.forget(seq)


def never_resend(patch: Patch) -> None:
    """The device waits for a receipt for ever."""
    patch(Timer, "start", lambda *_arguments: None)


def resend_as_new(patch: Patch) -> None:
    """What is sent again has an identity of its own."""
    sent: set[tuple[int, int]] = set()

    def planted(hooks: type[Any]) -> None:
        send = hooks.send

        def again(self: Any, update: Update) -> None:
            name = update.outbox, update.seq
            if name not in sent:
                sent.add(name)
                send(self, update)
                return
            body = self.outbox.body(update.seq) if isinstance(self, Participant) else self.parts.outbox.body(update.seq)
            new = update.model_copy(update={"outbox": secrets.randbits(62), "first": 1, "seq": 1})
            if isinstance(self, Participant):
                self._publish(TOPICS.update(self.name), frames.encode(new, body))
            else:
                self.publisher.send(self.parts.topics.update(self.parts.config.name), frames.encode(new, body))

        patch(hooks, "send", again)

    planted(Participant)
    planted(DeviceRuntime)


def renumber_on_restart(patch: Patch) -> None:
    """After a restart the device sends what it held under new numbers."""
    enter, boot = Outbox.__enter__, Participant.boot

    def renumbered(outbox: Outbox) -> Outbox:
        enter(outbox)
        _renumber(outbox)
        return outbox

    def booted(participant: Participant) -> None:
        _renumber(participant.outbox)
        boot(participant)

    patch(Outbox, "__enter__", renumbered)
    patch(Participant, "boot", booted)


def _renumber(outbox: AnyOutbox) -> None:
    held = [(update, outbox.body(update.seq)) for update in outbox.held()]
    if isinstance(outbox, MemoryOutbox):
        first = outbox.next_seq
        again = [
            update.model_copy(update={"seq": first + place, "first": first}) for place, (update, _) in enumerate(held)
        ]
        outbox._held = {update.seq: (update, body) for update, (_, body) in zip(again, held, strict=True)}
        outbox.next_seq += len(held)
        return
    with outbox._db as db:
        db.execute("DELETE FROM updates")
        for number, (update, body) in enumerate(held, start=outbox.next_seq):
            row = update.model_copy(update={"seq": number, "first": outbox.next_seq})
            db.execute(INSERT, (number, packed(row), body, checksum(packed(row), body)))
        outbox.state = replace(outbox.state, next=outbox.next_seq + len(held))
        enter(outbox._db, outbox.state)


def outbox_in_two_transactions(patch: Patch) -> None:
    """An update is stored, and only then its number is taken."""

    def store(
        outbox: Outbox,
        update: Update,
        body: bytes,
        _residual: bytes | None = None,
        *,
        sent: int = 0,
        rho: float = 0.0,
    ) -> None:
        header = packed(update)
        with outbox._db as db:
            db.execute(INSERT, (update.seq, header, body, checksum(header, body)))
        failpoint("outbox.storing")
        state = replace(outbox.state, next=update.seq + 1, sent=max(outbox.sent, sent))
        with outbox._db:
            enter(outbox._db, state)
        outbox.state = state

    patch(Outbox, "store", store)


# ------------------------------------------------------------------------- both


def no_waiting_for_the_disk(patch: Patch) -> None:
    """What is committed, and each file, is left to the operating system to write."""
    connect = sqlite3.connect

    class Hasty(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("synchronous=FULL", "synchronous=OFF"), *arguments)

    patch(sqlite3, "connect", lambda *arguments, **named: connect(*arguments, factory=Hasty, **named))
    patch(os, "fsync", lambda _descriptor: None)


BUGS = {
    bug.name: bug
    for bug in (
        Bug(no_deduplication, "virtual"),
        Bug(outboxes_not_in_checkpoints, "virtual"),
        Bug(no_journal, "virtual"),
        Bug(commit_one_batch_late, "virtual"),
        Bug(receipt_before_commit, "virtual"),
        Bug(no_checkpoint_digest, "damage"),
        Bug(frames_not_made_again, ""),
        Bug(acknowledge_before_commit, ""),
        Bug(forget_on_puback, "virtual"),
        Bug(never_resend, "virtual"),
        Bug(resend_as_new, "virtual"),
        Bug(renumber_on_restart, "virtual"),
        Bug(outbox_in_two_transactions, "failpoints", ("outbox.storing:2",)),
        Bug(no_waiting_for_the_disk, "power cut"),
    )
}
