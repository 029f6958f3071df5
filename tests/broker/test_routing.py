import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from midge.broker.embedded.routing import Action, Close, Deliver, RoutedMessage, Router
from midge.broker.mqtt.topic_filters import FilterTree, check_filter, check_topic, matches

LEVELS = st.sampled_from(["a", "b", "", "$SYS"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(LEVELS | st.just("+"), min_size=1, max_size=4), st.sampled_from([[], ["#"]]))
    .map(lambda parts: "/".join([*parts[0], *parts[1]]))
    .filter(bool)
) | st.just("#")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False),
        ("$SYS/#", "$SYS/a", True),
        ("+/+", "/a", True),
        ("/+", "/a", True),
        ("+", "/a", False),
        ("a/$x/+", "a/$x/b", True),
    ],
)
def test_matching_as_in_section_4_7(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@given(filters=st.lists(FILTERS, max_size=6), topic=TOPICS)
def test_the_tree_finds_what_matching_says(filters: list[str], topic: str) -> None:
    tree = FilterTree()
    for number, each in enumerate(filters):
        tree.add(each, f"client{number}", number % 2)
    expected = {f"client{number}": number % 2 for number, each in enumerate(filters) if matches(each, topic)}
    assert tree.subscribers(topic) == expected


@given(filters=st.lists(FILTERS, max_size=6))
def test_a_tree_that_everybody_left_is_empty(filters: list[str]) -> None:
    tree = FilterTree()
    for each in filters:
        tree.add(each, "client", 1)
    for each in filters:
        tree.discard(each, "client")
    assert not tree._root.children


@given(text=st.text(st.sampled_from("a+#/\0"), max_size=6))
def test_a_topic_is_a_filter_without_wildcards(text: str) -> None:
    def passes(check: object) -> bool:
        try:
            assert callable(check)
            check(text)
        except ValueError:
            return False
        return True

    assert passes(check_topic) == (passes(check_filter) and not {"+", "#"} & set(text))


def message(topic: str = "t", payload: bytes = b"x", qos: int = 1, *, retain: bool = False) -> RoutedMessage:
    return RoutedMessage(topic, payload, qos, retain)


def test_payloads_are_shared() -> None:
    router = Router()
    for client in ("a", "b"):
        router.connect(client)
        router.subscribe(client, [("t", 1)])
    sent = message(payload=bytes(1000))
    actions = router.publish(sent)
    assert all(isinstance(each, Deliver) and each.message is sent for each in actions)
    assert len(actions) == 2


def test_a_client_gets_a_message_once_with_its_highest_qos() -> None:
    router = Router()
    router.connect("a")
    router.subscribe("a", [("t", 0), ("#", 1), ("+", 0)])
    (action,) = router.publish(message())
    assert isinstance(action, Deliver)
    assert action.qos == 1


def test_the_session_of_a_takeover_is_closed_and_its_will_published() -> None:
    router = Router()
    router.connect("watcher")
    router.subscribe("watcher", [("will", 0)])
    router.connect("a", will=message("will", b"gone", 0))
    close, will = router.connect("a")
    assert close == Close("a")
    assert isinstance(will, Deliver)
    assert will.client == "watcher"


def test_unacknowledged_messages_come_again_in_order_to_a_kept_session() -> None:
    router = Router(max_queued=4)
    router.connect("a", persistent=True, window=2)
    router.subscribe("a", [("t", 1)])
    first = [each for number in range(3) for each in router.publish(message(payload=b"%d" % number))]
    assert [each.packet_id for each in first if isinstance(each, Deliver)] == [1, 2]
    router.disconnect("a", goodbye=False)
    assert router.publish(message(payload=b"3")) == []
    assert router.publish(message(payload=b"lost at QoS 0", qos=0)) == []
    again = router.connect("a", clean=False, persistent=True, window=3)
    assert [(each.message.payload, each.duplicate, each.packet_id) for each in again if isinstance(each, Deliver)] == [
        (b"0", True, 1),
        (b"1", True, 2),
        (b"2", False, 3),
    ]
    (last,) = router.acknowledge("a", 1)
    assert isinstance(last, Deliver)
    assert last.message.payload == b"3"
    assert router.acknowledge("a", 1) == []


def test_a_full_queue_drops_and_counts() -> None:
    router = Router(max_queued=2, max_queued_bytes=5)
    router.connect("a", window=1)
    router.subscribe("a", [("t", 1)])
    for payload in (b"in flight", b"123", b"1234", b"45", b""):
        router.publish(message(payload=payload))
    assert router.dropped == 2
    assert [each.message.payload for each in router.acknowledge("a", 1) if isinstance(each, Deliver)] == [b"123"]
    router.publish(message(payload=b"678"))
    assert router.dropped == 2
    assert [each.message.payload for each in router.acknowledge("a", 2) if isinstance(each, Deliver)] == [b"45"]


def test_a_clean_start_forgets_the_session() -> None:
    router = Router()
    router.connect("a", persistent=True)
    router.subscribe("a", [("t", 1)])
    router.disconnect("a", goodbye=True)
    assert router.present("a")
    router.connect("a")
    assert router.publish(message()) == []


def test_an_expired_session_is_forgotten_unless_connected() -> None:
    router = Router()
    router.connect("a", persistent=True)
    router.expire("a")
    assert router.present("a")
    router.disconnect("a", goodbye=True)
    router.expire("a")
    assert not router.present("a")


CLIENTS = st.sampled_from(["a", "b", "c"])


class RoutingMachine(RuleBasedStateMachine):
    """Clients come, go, subscribe, publish and acknowledge; what each holds unacknowledged never exceeds its window."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(max_queued=5)
        self.window: dict[str, int] = {}
        self.held: dict[str, list[int]] = {}
        self.subscribed: dict[str, set[str]] = {}

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Deliver():
                    assert action.client in self.window, "a delivery to nobody"
                    assert (action.packet_id > 0) == (action.qos == 1)
                    if action.qos:
                        assert action.packet_id not in self.held[action.client], "a packet id in use"
                        self.held[action.client].append(action.packet_id)
                case Close():
                    del self.window[action.client]

    @rule(client=CLIENTS, window=st.integers(1, 3), clean=st.booleans(), persistent=st.booleans(), topic=TOPICS)
    def connect(self, client: str, window: int, clean: bool, persistent: bool, topic: str) -> None:
        actions = self.router.connect(
            client, clean=clean, persistent=persistent, window=window, will=RoutedMessage(topic, b"will", 1)
        )
        split = next((i for i, each in enumerate(actions) if isinstance(each, Deliver) and each.client == client), None)
        self.perform(actions if split is None else actions[:split])
        self.window[client], self.held[client] = window, []
        self.perform([] if split is None else actions[split:])
        # A session with more in flight than a smaller new window takes sends it all again; nothing more until then.
        self.window[client] = max(window, len(self.held[client]))

    @rule(client=CLIENTS, goodbye=st.booleans())
    def disconnect(self, client: str, goodbye: bool) -> None:
        self.window.pop(client, None)
        self.perform(self.router.disconnect(client, goodbye=goodbye))

    @rule(client=CLIENTS, topic_filter=FILTERS, qos=st.integers(0, 1))
    def subscribe(self, client: str, topic_filter: str, qos: int) -> None:
        if client in self.window:
            self.perform(self.router.subscribe(client, [(topic_filter, qos)]))

    @rule(client=CLIENTS, topic_filter=FILTERS)
    def unsubscribe(self, client: str, topic_filter: str) -> None:
        if client in self.window:
            self.router.unsubscribe(client, [topic_filter])

    @rule(topic=TOPICS, qos=st.integers(0, 1), retain=st.booleans(), payload=st.sampled_from([b"", b"x"]))
    def publish(self, topic: str, qos: int, retain: bool, payload: bytes) -> None:
        self.perform(self.router.publish(RoutedMessage(topic, payload, qos, retain)))

    @rule(client=CLIENTS, data=st.data())
    def acknowledge(self, client: str, data: st.DataObject) -> None:
        if client in self.window and self.held[client]:
            packet_id = data.draw(st.sampled_from(self.held[client]))
            self.held[client].remove(packet_id)
            self.perform(self.router.acknowledge(client, packet_id))

    @invariant()
    def the_window_is_kept(self) -> None:
        for client, window in self.window.items():
            assert len(self.held[client]) <= window


RoutingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRouting = RoutingMachine.TestCase
