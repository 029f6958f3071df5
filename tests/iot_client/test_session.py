"""The session's promises: stored before sent, the same identity until it is settled, forgotten on a receipt only."""

from collections.abc import Callable, Sequence
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from midge.iot_client.session import events as ev
from midge.iot_client.session import session as s
from midge.iot_client.session import timers
from midge.iot_client.session.session import DeviceSession, Link, SessionSettings, Work
from midge.iot_client.shell import DeviceShell
from midge.wire.messages import (
    OUTBOX_LIMIT,
    AggregatorState,
    AggregatorStatus,
    Announcement,
    FrameInfo,
    Grant,
    Moment,
    Participation,
    Plan,
    Receipt,
    Settled,
    Update,
    Verdict,
)
from tests.announced import announced

LINEAGE, OTHER = b"l" * 16, b"o" * 16
OUTBOX = 7


def announcement(version: int, *, lineage: bytes = LINEAGE, generation: int = 0, chunk: int = 1000) -> Announcement:
    frames = [FrameInfo(version=version, span=0, size=1000, parts=1)]
    frames += [FrameInfo(version=v, span=1, size=10, parts=1) for v in range(max(2, version - 3), version + 1)]
    return announced(version, lineage=lineage, generation=generation, frames=tuple(frames), chunk=chunk)


def status(state: AggregatorState = AggregatorState.READY, boot: int = 1) -> AggregatorStatus:
    return AggregatorStatus(state=state, boot=boot, lineage=LINEAGE)


def made(size: int = 10, *, outbox: int = 0, seq: int = 1) -> Update:
    return Update(
        outbox=outbox,
        first=1,
        seq=seq,
        lineage=LINEAGE,
        generation=0,
        base=1,
        schema_hash=bytes(16),
        codec="float32",
        size=size,
        sha256=bytes(32),
    )


def receipt(hi: int, *settled: Settled, outbox: int = OUTBOX, grants: Sequence[Grant] = ()) -> ev.Receipted:
    return ev.Receipted(Receipt(outbox=outbox, hi=hi, settled=settled, grants=tuple(grants)))


def accepted(seq: int) -> Settled:
    return Settled(seq=seq, verdict=Verdict.ACCEPTED)


def busy(seq: int, seconds: float = 30) -> Settled:
    return Settled(seq=seq, verdict=Verdict.BUSY, retry_after=seconds)


class Driver:
    """A session with a clock, and all that it ever asked for."""

    def __init__(
        self, held: Sequence[Update] = (), next_seq: int = 1, *, outbox: int = OUTBOX, sent: int | None = None
    ) -> None:
        self.jitter: Callable[[], float] = lambda: 0.5
        """May be replaced at any time."""
        self.session = DeviceSession("d", outbox, held, next_seq, self._jitter, sent=sent)
        self.now = 0.0
        self.keys = count()

    def _jitter(self) -> float:
        return self.jitter()

    def __call__(self, *events: ev.Event) -> list[ev.Action]:
        actions: list[ev.Action] = []
        for event in events:
            actions += self.session.handle(event, self.now)
        return actions

    def up(self, version: int = 1) -> list[ev.Action]:
        """Connected, greeted and answered."""
        hi = self.session.first - 1
        return self(ev.Connected(), ev.Announced(announcement(version)), ev.AggregatorSeen(status()), receipt(hi))

    def wait(self, seconds: float) -> list[ev.Action]:
        """Let time pass, from one deadline to the next."""
        until, actions = self.now + seconds, []
        while (deadline := self.session.deadline) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            actions += self.session.tick(self.now)
        self.now = until
        return actions

    def train(self, size: int = 10) -> list[ev.Action]:
        """Fetch what is announced, train from it, and end the training."""
        assert self.session.work is Work.FETCHING
        assert self.session._cycle.target is not None
        (train,) = self(ev.Fetched(ev.Base.of(self.session._cycle.target)))
        assert isinstance(train, ev.Train)
        return self(ev.Trained(made(size), next(self.keys)))


def sent(actions: Sequence[ev.Action]) -> list[int]:
    return [action.update.seq for action in actions if isinstance(action, ev.Send)]


def kinds(actions: Sequence[ev.Action]) -> list[type[ev.Action]]:
    return [type(action) for action in actions]


# ------------------------------------------------------------------------ the tables


def test_every_state_can_be_left_and_reached() -> None:
    for table, start in ((s.LINKS, Link.DOWN), (s.WORKS, Work.RESTING)):
        sources = {source for source, _ in table}
        assert sources == set(type(start)), "a state without a way out"
        reached, grown = {start}, True
        while grown:
            new = {target for (source, _), target in table.items() if source in reached} - reached
            reached, grown = reached | new, bool(new)
        assert reached == set(type(start))


def test_a_life() -> None:
    driver = Driver()
    assert kinds(driver(ev.Connected())) == []
    assert kinds(driver(ev.AggregatorSeen(status()))) == [ev.Greet]
    assert kinds(driver(receipt(0))) == []
    assert driver.session.link is Link.UP
    (fetch,) = driver(ev.Announced(announcement(5)))
    assert isinstance(fetch, ev.FetchModel)
    assert [frame.span for frame in fetch.frames] == [0]
    (train,) = driver(ev.Fetched(ev.Base(LINEAGE, 0, 5)))
    assert isinstance(train, ev.Train)
    store, send = driver(ev.Trained(made(), 3))
    assert store == ev.StoreUpdate(made(outbox=OUTBOX, seq=1), 3)
    assert send == ev.Send(made(outbox=OUTBOX, seq=1))
    assert kinds(driver(ev.Announced(announcement(5)))) == [], "a device trains once from each version"
    told, forget = driver(receipt(1, accepted(1)))
    assert (told, forget) == (ev.Tell(accepted(1)), ev.Forget(1))
    (fetch,) = driver(ev.Announced(announcement(7)))
    assert isinstance(fetch, ev.FetchModel)
    assert [(frame.version, frame.span) for frame in fetch.frames] == [(6, 1), (7, 1)], "the cheapest way"
    assert driver.session.deadline is not None


# ------------------------------------------------------------------- never forgotten


class NeverForgotten(RuleBasedStateMachine):
    """Any events in any order, as far as a shell can send them."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()
        self.outbox: dict[int, Update] = {}
        self.identity = OUTBOX
        self.keys: set[int] = set()
        self.sent: dict[tuple[int, int], Update] = {}
        self.hi = 0
        self.key = count()
        self.fetching: ev.Base | None = None
        self.training = False
        self.boot = 1

    # ------------------------------------------------------------ hooks, each with what must hold

    def store(self, update: Update, key: int) -> bool:
        self.keys.remove(key)
        assert update.seq == max(self.outbox, default=update.seq - 1) + 1
        self.outbox[update.seq] = update
        return True

    def send(self, update: Update) -> None:
        assert self.driver.session.link is Link.UP
        assert update.seq in self.outbox, "sent before it was stored"
        assert update.first == min(self.outbox)
        bare = update.model_copy(update={"first": 1, "kind": "update", "parts": 1})
        assert self.sent.setdefault((update.outbox, update.seq), bare) == bare, "sent with another face"

    offer = send

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        assert parts and update.seq in self.outbox

    def forget(self, through: int) -> None:
        assert through <= self.hi, "forgotten without a receipt"
        self.outbox = {seq: update for seq, update in self.outbox.items() if seq > through}

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        assert frames
        self.fetching = ev.Base.of(announcement)

    def train(self, announcement: Announcement, plan: Plan) -> None:
        assert plan.codec == announcement.plan.codec and not self.training
        self.training = True

    def renew(self, keep: tuple[int, ...]) -> ev.Renewed:
        raise AssertionError(f"this outbox was never put back, and {keep} were to move")

    def greet(self) -> None:
        assert self.driver.session.link is not Link.DOWN

    def read_announcement(self) -> None: ...

    def ignore_versions(self) -> None: ...

    def follow_versions(self) -> None: ...

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None: ...

    def note_site(self, site: str) -> None: ...

    def tell_settled(self, settled: Settled) -> None: ...

    def tell_unsuited(self, why: str) -> None: ...

    def tell(self, event: ev.Event) -> None:
        DeviceShell(self.driver.session, self).handle(event, self.driver.now)

    def pass_time(self, seconds: float) -> None:
        """From one deadline to the next."""
        driver, until = self.driver, self.driver.now + seconds
        while (deadline := driver.session.deadline) is not None and deadline <= until:
            driver.now = max(driver.now, deadline)
            DeviceShell(driver.session, self).tick(driver.now)
        driver.now = until

    @precondition(lambda self: self.driver.session.link is Link.DOWN)
    @rule(chunk=st.sampled_from([None, 5, 100]))
    def connect(self, chunk: int | None) -> None:
        self.tell(ev.Connected(chunk))

    @rule()
    def disconnect(self) -> None:
        self.tell(ev.Disconnected())

    @rule(version=st.integers(1, 6), generation=st.integers(0, 1), lineage=st.sampled_from([LINEAGE, LINEAGE, OTHER]))
    def announce(self, version: int, generation: int, lineage: bytes) -> None:
        self.tell(ev.Announced(announcement(version, lineage=lineage, generation=generation, chunk=500)))

    @rule(state=st.sampled_from(AggregatorState), boot=st.integers(1, 2))
    def see(self, state: AggregatorState, boot: int) -> None:
        self.tell(ev.AggregatorSeen(status(state, boot)))

    @rule(data=st.data(), old=st.booleans())
    def receipt(self, data: st.DataObject, old: bool) -> None:
        known = max((seq for _, seq in self.sent), default=0)
        hi = data.draw(st.integers(0, self.hi) if old else st.integers(self.hi, max(self.hi, known)))
        self.hi = max(self.hi, hi)
        settled = [accepted(hi)] if hi and data.draw(st.booleans()) else []
        if data.draw(st.integers(0, 4)) == 0:
            settled.append(busy(hi + 1, data.draw(st.floats(0, 100))))
        parts = data.draw(st.lists(st.integers(0, 30), max_size=3))
        grants = [Grant(seq=hi + 1, parts=tuple(parts))] if data.draw(st.booleans()) else []
        self.tell(receipt(hi, *settled, grants=grants, outbox=data.draw(st.sampled_from([OUTBOX, OUTBOX, 9]))))

    @precondition(lambda self: self.fetching)
    @rule(fails=st.booleans(), start_over=st.booleans())
    def fetched(self, fails: bool, start_over: bool) -> None:
        base, self.fetching = self.fetching, None
        assert base is not None
        self.tell(ev.FetchFailed("why", start_over) if fails else ev.Fetched(base))

    @precondition(lambda self: self.training)
    @rule(size=st.sampled_from([3, 10, 300, 2000]))
    def trained(self, size: int) -> None:
        self.training = False
        key = next(self.key)
        self.keys.add(key)
        self.tell(ev.Trained(made(size), key))
        assert not self.keys, "trained and not stored"

    @precondition(lambda self: self.training)
    @rule()
    def unfit(self) -> None:
        self.training = False
        self.tell(ev.NothingToSend("why"))

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule()
    def restart(self) -> None:
        held, seq = sorted(self.outbox.values(), key=lambda update: update.seq), self.driver.session.next
        now = self.driver.now
        self.driver = Driver(held, seq)
        self.driver.now = now
        self.fetching, self.training = None, False

    @invariant()
    def holds_what_the_outbox_holds(self) -> None:
        assert self.driver.session.holding == len(self.outbox) <= OUTBOX_LIMIT
        assert self.driver.session.first == min(self.outbox, default=self.driver.session.next)

    def teardown(self) -> None:
        """With a working link, everything that is held is sent within the longest patience."""
        self.tell(ev.Disconnected())
        self.tell(ev.Connected())
        self.tell(ev.AggregatorSeen(status(boot=3)))
        self.tell(receipt(self.hi))
        while self.outbox:
            before = self.sent
            self.sent = {}
            self.pass_time(2 * timers.LONGEST)
            assert (OUTBOX, min(self.outbox)) in self.sent, "held, and never sent again"
            self.sent = before | self.sent
            self.hi = max(self.hi, min(self.outbox))
            self.tell(receipt(self.hi, accepted(self.hi)))


TestNeverForgotten = NeverForgotten.TestCase
TestNeverForgotten.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# -------------------------------------------------------------------------- the link


def test_a_silent_broker_is_greeted_after_a_while_and_again_ever_less_often() -> None:
    driver = Driver()
    driver(ev.Connected())
    greetings = [action for action in driver.wait(2000) if isinstance(action, ev.Greet)]
    assert 5 < len(greetings) < 15


def test_whoever_answers_is_there_though_its_status_did_not_come() -> None:
    driver = Driver([made(outbox=OUTBOX)], 2)
    driver(ev.Connected())
    assert ev.Greet() in driver.wait(3)
    assert sent(driver(receipt(0))) == [1]


@pytest.mark.parametrize("then", [status(boot=2), status()], ids=["another boot", "the same, back again"])
def test_an_aggregator_that_is_back_is_greeted_and_sent_everything(then: AggregatorStatus) -> None:
    driver = Driver([made(outbox=OUTBOX)], 2)
    assert sent(driver.up()) == [1]
    driver(ev.AggregatorSeen(status(AggregatorState.LOST)))
    assert kinds(driver(ev.AggregatorSeen(then))) == [ev.Greet]
    assert sent(driver(receipt(0))) == [1]


def test_nothing_is_sent_to_one_who_paused() -> None:
    driver = Driver([made(outbox=OUTBOX)], 2)
    driver(ev.Connected(), ev.AggregatorSeen(status(AggregatorState.PAUSED)), receipt(0))
    assert sent(driver.wait(1000)) == []
    assert sent(driver(ev.AggregatorSeen(status()))) == [1]


def test_what_was_answered_with_a_pause_is_sent_again_when_it_ends() -> None:
    """Seen to fail: it was sent again after the half minute that the answer named, however soon the pause was over."""
    driver = Driver([made(outbox=OUTBOX)], 2)
    assert sent(driver.up()) == [1]
    driver(
        ev.AggregatorSeen(status(AggregatorState.PAUSED)),
        receipt(0, Settled(seq=1, verdict=Verdict.PAUSED, retry_after=30)),
    )
    assert sent(driver(ev.AggregatorSeen(status()))) == [1]


def test_a_training_may_end_without_a_link() -> None:
    driver = Driver()
    driver.up()
    driver(ev.Fetched(ev.Base(LINEAGE, 0, 1)), ev.Disconnected())
    assert kinds(driver(ev.Trained(made(), 1))) == [ev.StoreUpdate]
    assert sent(driver.up()) == [1]


def test_receipts_of_another_outbox_or_an_old_link_are_ignored() -> None:
    driver = Driver([made(outbox=OUTBOX)], 2)
    assert driver(receipt(1)) == []
    driver.up()
    assert driver(receipt(1, outbox=8)) == []
    assert driver.session.holding == 1


# ------------------------------------------------------------------------- resending


def holding(number: int, size: int = 10) -> Driver:
    return Driver([made(size, outbox=OUTBOX, seq=seq) for seq in range(1, number + 1)], number + 1)


def test_only_so_many_are_under_way() -> None:
    driver = holding(12)
    assert sent(driver.up()) == list(range(1, 9))
    assert sent(driver(receipt(2, accepted(1), accepted(2)))) == [9, 10]


def test_what_is_behind_a_receipt_is_still_sent_again() -> None:
    driver = holding(2)
    driver.up()
    driver(receipt(1, accepted(1)))
    assert sent(driver.wait(20)) == [2]


def test_a_gap_is_closed_soon() -> None:
    driver = holding(3)
    driver.up()
    driver(receipt(0))
    assert sent(driver.wait(2)) == [1, 2, 3]


def test_what_is_not_answered_is_sent_less_and_less_often() -> None:
    driver = holding(1)
    driver.up()
    assert 5 <= len(sent(driver.wait(3000))) <= 16


def test_a_busy_aggregator_is_left_alone_for_as_long_as_it_says() -> None:
    driver = holding(2)
    driver.up()
    driver(receipt(0, busy(1, 60)))
    assert sent(driver(ev.AggregatorSeen(status()), ev.Announced(announcement(2)), receipt(0))) == []
    assert sent(driver.train()) == []
    assert sent(driver.wait(40)) == []
    assert sent(driver.wait(25)) == [1, 2, 3]


def test_nothing_is_trained_before_a_busy_aggregator_has_taken_what_waits() -> None:
    """Otherwise each update that it takes is older than the last: the outbox fills faster than it is emptied."""
    driver = holding(1)
    driver.up()
    driver.train()
    driver(receipt(0, busy(1, 60)))
    assert ev.FetchModel not in kinds(driver(ev.Announced(announcement(2))))
    actions = driver.wait(65)
    assert sent(actions) == [1, 2]
    assert ev.FetchModel not in kinds(actions)
    assert ev.FetchModel not in kinds(driver(receipt(1, accepted(1))))
    assert ev.FetchModel in kinds(driver(receipt(2, accepted(2))))
    driver.train()
    assert ev.FetchModel in kinds(driver(ev.Announced(announcement(3)))), "the outbox was empty since"


def resting(version: int, rest: float) -> ev.Announced:
    asked = Participation(rest=rest)
    return ev.Announced(announcement(version).model_copy(update={"participation": asked}))


def test_a_device_rests_while_the_model_does_not_move_and_no_longer() -> None:
    driver = holding(0)
    driver.up()
    driver.train()
    driver(receipt(1, accepted(1)))
    assert ev.FetchModel not in kinds(driver(resting(2, 600)))
    assert ev.FetchModel not in kinds(driver.wait(590))
    assert ev.FetchModel in kinds(driver.wait(20))
    driver.train()
    driver(receipt(2, accepted(2)))
    assert ev.FetchModel not in kinds(driver(resting(3, 1200)))
    assert ev.FetchModel in kinds(driver(resting(4, 0))), "the model moves again"


def test_a_device_that_trains_on_new_rows_only_does_not_rest() -> None:
    driver = holding(0)
    driver.session = DeviceSession("d", OUTBOX, (), 1, lambda: 0.5, settings=SessionSettings(rests=False))
    driver.up()
    driver.train()
    driver(receipt(1, accepted(1)))
    assert ev.FetchModel in kinds(driver(resting(2, 600)))


def test_a_full_outbox_trains_no_more_until_there_is_room() -> None:
    driver = holding(OUTBOX_LIMIT)
    assert not any(isinstance(action, ev.FetchModel) for action in driver.up())
    assert ev.FetchModel in kinds(driver(receipt(1, accepted(1))))


def test_verdicts_are_told_once() -> None:
    driver = holding(2)
    driver.up()
    refused = Settled(seq=1, verdict=Verdict.STALE, why="old")
    assert ev.Tell(refused) in driver(receipt(1, refused))
    assert kinds(driver(receipt(1, refused))) == []


# ---------------------------------------------------------------------------- chunks


def test_a_large_update_is_offered_alone_and_sent_as_it_is_granted() -> None:
    driver = holding(2, size=2500)
    (offer,) = [action for action in driver.up() if isinstance(action, ev.Offer)]
    assert (offer.update.kind, offer.update.seq, offer.update.parts) == ("offer", 1, 3)
    (chunks,) = driver(receipt(0, grants=[Grant(seq=1, parts=(0, 2))]))
    assert isinstance(chunks, ev.SendChunks)
    assert (chunks.update.seq, chunks.update.parts, chunks.parts) == (1, 3, (0, 2))
    assert driver(receipt(0, grants=[Grant(seq=9, parts=(0,))])) == []
    (again,) = [action for action in driver.wait(15) if isinstance(action, ev.Offer)]
    assert again.update.seq == 1
    actions = driver(receipt(1, accepted(1)))
    assert [action.update.seq for action in actions if isinstance(action, ev.Offer)] == [2]


def test_a_small_update_waits_for_a_large_one_before_it() -> None:
    driver = Driver([made(2500, outbox=OUTBOX), made(10, outbox=OUTBOX, seq=2)], 3)
    assert sent(driver.up()) == []
    assert sent(driver(receipt(1, accepted(1)))) == [2]


def test_chunks_fit_the_link_and_the_aggregator() -> None:
    driver = holding(1, size=900)
    driver(ev.Connected(300), ev.AggregatorSeen(status()), ev.Announced(announcement(1, chunk=1000)))
    (offer,) = [action for action in driver(receipt(0)) if isinstance(action, ev.Offer)]
    assert offer.update.parts == 3
    driver(ev.Disconnected(), ev.Connected(10_000), ev.AggregatorSeen(status()))
    assert sent(driver(receipt(0))) == [1], "another link, other limits"
    driver(ev.Disconnected(), ev.Connected(None), ev.Announced(announcement(2, chunk=450)), ev.AggregatorSeen(status()))
    (offer,) = [action for action in driver(receipt(0)) if isinstance(action, ev.Offer)]
    assert offer.update.parts == 2


def test_a_narrow_link_cuts_smaller_but_what_has_begun_stays_as_it_was_cut() -> None:
    """Cut otherwise, the aggregator would start it over; cut far too large, no chunk of it would ever come through."""
    driver = holding(1, size=10_000)
    driver(ev.LinkMeasured(500))
    (offer,) = [action for action in driver.up() if isinstance(action, ev.Offer)]
    assert offer.update.parts == 20
    for narrow, parts in ((900, 20), (None, 20), (300, 20), (249, 41)):
        driver(ev.LinkMeasured(narrow))
        driver(ev.Disconnected(), ev.Connected(), ev.AggregatorSeen(status()))
        (offer,) = [action for action in driver(receipt(0)) if isinstance(action, ev.Offer)]
        assert offer.update.parts == parts
        (chunks,) = driver(receipt(0, grants=[Grant(seq=1, parts=(1,))]))
        assert isinstance(chunks, ev.SendChunks)
        assert chunks.update.parts == parts


def test_an_update_whose_chunks_come_through_is_not_offered_again() -> None:
    driver = holding(1, size=10_000)
    driver.up()
    driver(receipt(0, grants=[Grant(seq=1, parts=(0, 1, 2))]))
    for _ in range(10):
        assert not [action for action in driver.wait(4) if isinstance(action, ev.Offer)]
        driver(ev.ChunkDelivered())
    assert [action for action in driver.wait(30) if isinstance(action, ev.Offer)]


# ------------------------------------------------------------------- a copy of itself


def test_an_outbox_that_was_put_back_begins_anew_and_keeps_what_was_never_sent() -> None:
    driver = holding(2)
    driver(ev.Connected(), ev.Announced(announcement(1)))
    driver.session._situation.link = Link.UP
    driver(ev.AggregatorSeen(status(AggregatorState.PAUSED)), receipt(0))
    driver.session._cycle.work = Work.FETCHING
    driver.session._cycle.target = announcement(1)
    driver.train()
    renew = driver(receipt(3))[-1]
    assert renew == ev.Renew((3,)), "3 cannot have been settled: we never sent it"
    assert driver(ev.Renewed(99, (made(outbox=99),), 2)) == [ev.Greet()]
    assert driver(receipt(3)) == [], "the old name is not ours any more"
    driver(ev.AggregatorSeen(status()))
    actions = driver(receipt(0, outbox=99))
    assert sent(actions) == [1]
    driver(receipt(1, accepted(1), outbox=99))
    assert ev.Greet() not in driver.wait(1000), "it has been answered"


def test_an_outbox_that_is_behind_begins_anew() -> None:
    driver = Driver([made(outbox=OUTBOX, seq=4)], 5)
    driver(ev.Connected(), ev.AggregatorSeen(status()))
    assert driver(receipt(9)) == [ev.Renew(())]


def test_a_verdict_on_another_body_settles_nothing_and_that_update_moves_over() -> None:
    """As after a card was put back from an image that was made between two trainings."""
    driver = Driver([made(outbox=OUTBOX, seq=4), made(outbox=OUTBOX, seq=5)], 6)
    driver(ev.Connected(), ev.AggregatorSeen(status()))
    driver(receipt(3))
    ours, other = made().digest, b"another!"
    known = [
        Settled(seq=seq, verdict=Verdict.ACCEPTED, repeat=True, body=body) for seq, body in ((4, ours), (5, other))
    ]
    told, renew = driver(receipt(5, *known))
    assert isinstance(told, ev.Tell) and told.settled.seq == 4, "what was said of another update is not ours"
    assert renew == ev.Renew((5,))
    assert driver.session.unsure == 0


def test_what_is_known_to_be_unsent_is_not_settled_after_a_restart() -> None:
    driver = Driver([made(outbox=OUTBOX, seq=seq) for seq in (3, 4, 5)], 6, sent=3)
    driver(ev.Connected(), ev.AggregatorSeen(status()))
    assert driver(receipt(5)) == [ev.Renew((4, 5))]
    assert driver.session.unsure == 1, "3 was sent: it may have been settled"


def test_a_crash_between_store_and_send_is_no_copy() -> None:
    driver = Driver([made(outbox=OUTBOX, seq=4)], 5)
    driver(ev.Connected(), ev.AggregatorSeen(status()))
    assert sent(driver(receipt(3))) == [4]
    assert kinds(driver(receipt(4, accepted(4)))) == [ev.Tell, ev.Forget]


# ------------------------------------------------------------------------------ work


def test_a_model_of_a_broken_link_is_held_and_not_trained_from() -> None:
    driver = Driver()
    driver.up(1)
    driver(ev.Disconnected())
    assert driver(ev.Fetched(ev.Base(LINEAGE, 0, 1))) == []
    (fetch,) = [action for action in driver.up(3) if isinstance(action, ev.FetchModel)]
    assert [frame.version for frame in fetch.frames] == [2, 3], "what came after all is of use"
    assert driver(ev.Fetched(ev.Base(LINEAGE, 0, 2))) == []
    assert driver.session.work is Work.FETCHING
    assert kinds(driver(ev.Fetched(ev.Base(LINEAGE, 0, 3)))) == [ev.Train]


def test_a_failed_fetch_is_tried_again_from_a_snapshot_where_it_must() -> None:
    driver = Driver()
    driver.up(2)
    driver.train()
    driver(ev.Announced(announcement(3)))
    assert driver(ev.FetchFailed("digest", start_over=True)) == []
    (read, fetch) = driver.wait(3)
    assert read == ev.ReadAnnouncement()
    assert isinstance(fetch, ev.FetchModel)
    assert [frame.span for frame in fetch.frames] == [0]


def test_no_way_means_to_look_again() -> None:
    driver = Driver()
    nowhere = announcement(3).model_copy(update={"frames": ()})
    driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0), ev.Announced(nowhere))
    assert driver.session.work is Work.RESTING
    assert ev.ReadAnnouncement() in driver.wait(3)


@pytest.mark.parametrize(("hours", "reads"), [(0, 240), (8, 4)])
def test_who_pauses_for_hours_does_not_read_the_announcement_each_minute(hours: float, reads: int) -> None:
    """Read each minute it would be most of what such a device receives; a lost one is found within an hour even so."""
    driver = Driver()
    pausing = announcement(1).model_copy(update={"participation": Participation(interval=3600 * hours)})
    driver(ev.Connected(), ev.Announced(pausing), ev.AggregatorSeen(status()), receipt(0))
    driver.train()
    driver(receipt(1))
    assert driver.wait(4 * 3600).count(ev.ReadAnnouncement()) == reads


def test_an_old_announcement_is_ignored_and_a_new_generation_is_not() -> None:
    driver = Driver()
    driver.up(5)
    driver.train()
    assert driver(ev.Announced(announcement(4))) == []
    (fetch,) = driver(ev.Announced(announcement(6, generation=1)))
    assert isinstance(fetch, ev.FetchModel)
    assert [frame.span for frame in fetch.frames] == [0], "steps do not lead across generations"
    driver.train()
    (fetch,) = driver(ev.Announced(announcement(1, lineage=OTHER)))
    assert isinstance(fetch, ev.FetchModel)
    assert [frame.span for frame in fetch.frames] == [0]


def test_statistics_are_sent_until_the_training_begins() -> None:
    driver = Driver()
    asked = Moment(name="input", channels=2)
    gathering = announcement(1).model_copy(update={"phase": "statistics", "moments": (asked,)})
    driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0))
    assert driver(ev.Announced(gathering)) == [ev.SendStatistics(LINEAGE, (asked,))]
    assert driver(ev.Announced(gathering)) == []
    assert ev.SendStatistics(LINEAGE, (asked,)) in driver.wait(30)
    assert ev.FetchModel in kinds(driver(ev.Announced(announcement(1))))
    assert not any(isinstance(action, ev.SendStatistics) for action in driver.wait(1000))


def test_statistics_are_sent_as_soon_as_there_is_enough_to_make_them_of() -> None:
    driver = Driver()
    gathering = announcement(1).model_copy(update={"phase": "statistics", "moments": (Moment(name="i", channels=2),)})
    driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0), ev.Hindered(None, unready="too few rows"))
    assert driver(ev.Announced(gathering)) == []
    assert not any(isinstance(action, ev.SendStatistics) for action in driver.wait(1000))
    assert kinds(driver(ev.Hindered("fewer than 32 rows are new"))) == [ev.SendStatistics]


def test_a_device_whose_inputs_are_not_the_models_says_so_once_and_does_nothing() -> None:
    driver = Driver()
    driver.session = DeviceSession(
        "d", OUTBOX, (), 1, lambda: 0.5, settings=SessionSettings(features=("heat", "speed"))
    )
    named = announcement(1).model_copy(update={"features": ("speed", "heat")})
    actions = driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0), ev.Announced(named))
    (told,) = [action for action in actions if isinstance(action, ev.Unsuited)]
    assert "inputs are speed, heat; this device gives them in another order, heat, speed" in told.why
    assert "--features speed,heat" in told.why
    newer = announcement(2).model_copy(update={"features": ("speed", "heat")})
    assert driver(ev.Announced(newer)) == [] and not {ev.Train, ev.FetchModel} & set(kinds(driver.wait(1000)))
    gathering = newer.model_copy(
        update={"generation": 1, "phase": "statistics", "moments": (Moment(name="input", channels=2),)}
    )
    assert driver(ev.Announced(gathering)) == []
    mended = announcement(3, generation=1).model_copy(update={"features": ("heat", "speed")})
    assert ev.FetchModel in kinds(driver(ev.Announced(mended))) and driver.session.suited


@pytest.mark.parametrize("ours", [(), ("a",)])
def test_a_device_or_a_model_without_names_goes_on_as_before(ours: tuple[str, ...]) -> None:
    driver = Driver()
    driver.session = DeviceSession("d", OUTBOX, (), 1, lambda: 0.5, settings=SessionSettings(features=ours))
    names = ("a", "b") if not ours else ()
    named = announcement(1).model_copy(update={"features": names})
    assert ev.FetchModel in kinds(driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0), ev.Announced(named)))


def test_a_model_of_another_width_is_told_in_numbers() -> None:
    driver = Driver()
    driver.session = DeviceSession(
        "d",
        OUTBOX,
        (),
        1,
        lambda: 0.5,
        settings=SessionSettings(features=("time", "speed", "heat"), statistics_by_feature=True),
    )
    asked = (Moment(name="input", channels=2),)
    gathering = announcement(1).model_copy(update={"phase": "statistics", "moments": asked})
    actions = driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0), ev.Announced(gathering))
    (told,) = [action for action in actions if isinstance(action, ev.Unsuited)]
    assert told.why.startswith("the model has 2 inputs, this device gives 3: time, speed, heat. ")
    assert ev.SendStatistics not in kinds(actions)


def test_each_training_has_a_seed_of_its_own() -> None:
    seeds = set()
    for name in ("d", "e"):
        for version in (1, 2):
            session = DeviceSession(name, OUTBOX, (), 1, lambda: 0.5)
            for event in (ev.Connected(), ev.AggregatorSeen(status()), receipt(0), ev.Announced(announcement(version))):
                session.handle(event, 0)
            (train,) = session.handle(ev.Fetched(ev.Base(LINEAGE, 0, version)), 0)
            assert isinstance(train, ev.Train)
            seeds.add(train.plan.seed)
    assert len(seeds) == 4


def test_a_refused_version_is_trained_from_again_after_a_while() -> None:
    """Where too few others are left for a release, nobody would ever train again."""
    driver = Driver()
    driver.up()
    driver.train()
    refused = Settled(seq=1, verdict=Verdict.NORM_TOO_LARGE)
    assert ev.Train not in kinds(driver(receipt(1, refused)))
    assert ev.Train not in kinds(driver.wait(20))
    assert ev.Train in kinds(driver.wait(15))


def test_a_newer_version_is_trained_from_at_once_though_the_last_update_was_refused() -> None:
    driver = Driver()
    driver.up()
    driver.train()
    driver(receipt(1, Settled(seq=1, verdict=Verdict.STALE)))
    assert ev.FetchModel in kinds(driver(ev.Announced(announcement(2))))
