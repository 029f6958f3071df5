"""With `--sync` nothing is published before the standby has it, and all of it in order."""

from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.standby.gate import PublicationGate


def test_messages_wait_for_the_transactions_before_them() -> None:
    sent: list[str] = []
    gate = PublicationGate(lambda post: sent.append(post.topic))
    gate.closed = True
    gate.put(Post("what was in the store", b""))
    assert sent == [], "no standby is known to have it"
    gate.committed = 5
    gate.put(Post("five", b""))
    gate.committed = 6
    gate.put(Post("six", b""))
    gate.confirmed = 5
    gate.look()
    assert sent == ["what was in the store", "five"]
    gate.confirmed = 6
    gate.put(Post("a repeated receipt", b""))
    assert sent[2:] == [], "it does not overtake"
    gate.look()
    assert sent[2:] == ["six", "a repeated receipt"]
    gate.put(Post("at once", b""))
    gate.committed, gate.closed = 7, False
    gate.put(Post("alone", b""))
    assert sent[4:] == ["at once", "alone"]
