"""The updates in the outbox: sent in order, resent until they are settled, in chunks on request if large."""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from midge.iot_client.session.events import Action, Forget, Offer, Renew, Send, SendChunks
from midge.iot_client.session.situation import Situation
from midge.iot_client.session.states import Link
from midge.iot_client.session.timers import Timer
from midge.wire import chunks
from midge.wire.messages import Grant, Settled, Update

IN_FLIGHT = 8
"""Maximum updates in flight: the number that an aggregator keeps out of order for a device."""


@dataclass(slots=True)
class Held:
    """An update in the outbox."""

    update: Update
    form: Update | None = None
    """Its header as it was sent last: sealed, if it has to be."""
    sent: bool = False
    """Whether it is in flight on this connection."""
    ever_sent: bool = True
    """Whether it may ever have left the device."""
    parts: int = 1
    """Number of chunks of a large update when it was offered. It stays the same, or the aggregator would begin again.
    """

    @property
    def size(self) -> int:
        """Bytes of its body, as it is sent."""
        return (self.form or self.update).size

    def named_by(self, digest: bytes) -> bool:
        """Whether a receipt's `body` means this update."""
        return self.update.named_by(digest) or (self.form is not None and self.form.named_by(digest))


class Sending:
    """The updates of one outbox.

    Args:
        situation: of the device.
        outbox: the identity of the outbox.
        held: its updates from before, in order.
        next_seq: the number of the next update.
        jitter: a random number in [0, 1), new at each call.
        patience: seconds before an unanswered update is sent again; doubled each time.
        sent: the highest seq that was ever sent; None if unknown: any may have been.
        as_sent: the header of an update as it is sent now; None while it cannot be sent.
    """

    def __init__(
        self,
        situation: Situation,
        outbox: int,
        held: Iterable[Update],
        next_seq: int,
        *,
        jitter: Callable[[], float],
        patience: float,
        sent: int | None = None,
        as_sent: Callable[[Update], Update | None] = lambda update: update,
    ) -> None:
        self._situation, self._jitter, self._as_sent = situation, jitter, as_sent
        self.outbox, self.next = outbox, next_seq
        self.held = {update.seq: Held(update, ever_sent=sent is None or update.seq <= sent) for update in held}
        self.held_back = False
        """Whether the aggregator asked to wait: nothing is sent until the resend timer is due."""
        self.unsure = 0
        """Updates that renewals left behind because they may have been settled: they could count twice."""
        self.told_to_wait = False
        """Whether the aggregator asked to wait since the outbox was last empty."""
        self.resend = Timer(patience)

    @property
    def first(self) -> int:
        """The lowest seq that is held, or the next one if none is."""
        return min(self.held, default=self.next)

    @property
    def sent(self) -> int:
        """The highest seq that was ever sent, or is about to be; 0 if none is known."""
        return max((seq for seq, held in self.held.items() if held.ever_sent), default=0)

    @property
    def size(self) -> int:
        """Bytes of all held bodies."""
        return sum(held.size for held in self.held.values())

    # -------------------------------------------------------------------- what is held

    def add(self, update: Update) -> Update:
        """Number a new update and hold it."""
        numbered = update.model_copy(update={"outbox": self.outbox, "seq": self.next, "first": self.first})
        self.held[self.next] = Held(numbered, ever_sent=False)
        self.next += 1
        return numbered

    def drop_last(self) -> None:
        """Drop the newest update, which could not be stored. Its seq is free again: it was never sent."""
        self.next -= 1
        del self.held[self.next]

    def forget(self, through: int) -> list[Action]:
        """Remove what is settled."""
        settled = [seq for seq in self.held if seq <= through]
        for seq in settled:
            del self.held[seq]
        self.told_to_wait = self.told_to_wait and bool(self.held)
        if settled and not self.held_back:
            self.resend.stop()  # the aggregator answers, so the back-off ends
        return [Forget(through)] if settled else []

    def was_restored(self, hi: int) -> bool:
        """Whether the aggregator has settled what was never sent: then this outbox is an old copy of itself."""
        return hi >= self.next or any(seq <= hi and not held.ever_sent for seq, held in self.held.items())

    def undecided(self, verdicts: Iterable[Settled]) -> set[int]:
        """Numbers of held updates under which the aggregator has judged another body: it does not know ours."""
        return {
            settled.seq
            for settled in verdicts
            if settled.body and settled.verdict.final and not self.held[settled.seq].named_by(settled.body)
        }

    def renew(self, undecided: Container[int], settled: Container[int]) -> Renew:
        """Request a new identity. What was certainly never settled moves over; the rest may have been."""
        keep = tuple(seq for seq, held in self.held.items() if seq in undecided or not held.ever_sent)
        self.unsure += sum(seq not in keep and seq not in settled for seq in self.held)
        return Renew(keep)

    def renewed(self, outbox: int, held: Iterable[Update], next_seq: int) -> None:
        """Adopt the new identity."""
        self.outbox, self.next = outbox, next_seq
        self.held = {update.seq: Held(update, ever_sent=False) for update in held}
        self.resend.stop()

    # ------------------------------------------------------------------------ sending

    def send(self, now: float) -> list[Action]:
        """Send held updates that are not in flight, in order; a large one is sent alone, after an offer."""
        situation = self._situation
        if situation.link is not Link.UP or self.held_back or not situation.aggregator_ready:
            return []
        if situation.muted is not None:
            return []
        actions: list[Action] = []
        for seq in sorted(self.held)[:IN_FLIGHT]:
            if seq > self.first and seq - 1 not in self.held:
                break  # one in between is lost: `first` says so only once those before it are settled
            held = self.held[seq]
            if not held.sent:
                form = self._as_sent(held.update)
                if form is None:
                    break  # the key to seal it to is not known yet
                held.form = form
                if form.sealed and not form.key:
                    held.update = form  # sealed once, for an aggregator that names the body as it came
            large = held.size > situation.chunk
            if held.sent:
                if large:
                    break
                continue
            if large and seq != self.first:
                break  # its chunks would fill the aggregator's memory until those before it are settled
            held.sent = held.ever_sent = True
            update = self._identified(held)
            if large:
                held.parts = self._cut(held)
                actions.append(Offer(update.model_copy(update={"kind": "offer", "parts": held.parts})))
                break
            held.parts = 1  # it may have been offered before, over a narrower link
            actions.append(Send(update))
        if self.resend.due is None and any(held.sent for held in self.held.values()):
            self.resend.start(now, self._jitter())
        return actions

    def send_again(self, now: float) -> list[Action]:
        """Send all held updates, as if nothing had been sent."""
        self.held_back = False
        for held in self.held.values():
            held.sent = False
        return self.send(now)

    def wait_for_turn(self, now: float) -> None:
        """Send after a random delay if all devices may be about to send as much."""
        spread = self._situation.spread(self.size, 2 * len(self.held))
        if spread:
            self.resend.due = now + self._jitter() * spread
        self.held_back = spread > 0

    def hold_back(self, now: float, seconds: float) -> None:
        """Send nothing for this time, as the aggregator asks."""
        self.held_back = self.told_to_wait = True
        self.resend.start(now, self._jitter(), max(1.0, seconds))

    def send_again_soon(self, now: float) -> None:
        """Send all again in a second: the aggregator misses an update before those sent."""
        self.resend.start(now, self._jitter(), 1.0)

    def postpone(self, now: float) -> None:
        """Restart the resend timer: a chunk has arrived, or is on its way."""
        self.resend.stop()
        self.resend.start(now, self._jitter())

    def grant(self, grants: Iterable[Grant], now: float) -> list[Action]:
        """Send the chunks that the aggregator requests."""
        actions: list[Action] = []
        for grant in grants:
            if grant.seq in self.held and grant.parts and self._situation.muted is None:
                held = self.held[grant.seq]
                update = self._identified(held).model_copy(update={"parts": held.parts})
                actions.append(SendChunks(update, grant.parts))
                self.postpone(now)
        return actions

    def _identified(self, held: Held) -> Update:
        """The update as sent now: its `first` changes from one sending to the next."""
        return (held.form or held.update).model_copy(update={"outbox": self.outbox, "first": self.first})

    def _cut(self, held: Held) -> int:
        """Number of chunks of an update: as it was offered before, unless a chunk is twice what is right now."""
        size, wanted = held.size, self._situation.chunk
        if held.parts > 1 and chunks.part_size(size, held.parts) < 2 * wanted and self._fits(held):
            return held.parts
        return chunks.count(size, wanted)

    def _fits(self, held: Held) -> bool:
        """Whether a chunk is within the limits of the aggregator and the broker."""
        asked = self._situation.asked_chunk
        return chunks.part_size(held.size, held.parts) <= min(asked, self._situation.packet or asked)
