"""Rights on a federation's topics, as lines of Mosquitto's ACL file."""

from collections.abc import Iterable

from midge.wire.topics import DISCOVERY, HomeTopics, Topics


def of_aggregator(topics: Topics, user: str) -> list[str]:
    """The aggregator's rights: everything in its federation, and its own topics for Home Assistant."""
    home = HomeTopics(topics)
    return [
        f"user {user}",
        f"topic readwrite {topics.everything}",
        f"topic readwrite {home.everything}",
        f"topic readwrite {home.configs}",
    ]


def of_devices(topics: Topics, names: Iterable[str]) -> list[str]:
    """Devices' rights, by the names that the broker knows them by: write as oneself, read one's own and public topics.

    A pattern cannot express the slot of an update, and with a wildcard for it a device could use any number of topics,
    each of which may retain a message. So each device has a line for its one topic.
    """
    prefix = topics.prefix
    own = [line for name in names for line in (f"user {name}", f"topic write {topics.update(name)}")]
    return [
        *own,
        f"pattern write {prefix}/report/%u",
        f"pattern readwrite {prefix}/status/%u",
        f"pattern read {prefix}/receipt/%u",
        f"pattern write {prefix}/renew/%u",
        f"pattern read {prefix}/renewed/%u",
        f"pattern read {topics.authorities}",
        f"pattern read {topics.aggregator}",
        f"pattern read {prefix}/model/#",
    ]


def of_issuer(topics: Topics, user: str) -> list[str]:
    """The issuer's rights: read requests for new credentials, answer them, and publish the trusted authorities."""
    return [
        f"user {user}",
        f"topic readwrite {topics.renewals}",
        f"topic readwrite {topics.prefix}/renewed/+",
        f"topic readwrite {topics.authorities}",
    ]


def of_helper(topics: Topics, user: str) -> list[str]:
    """The mask helper's rights: read deposits, publish its keys and its answers, and nothing of a device."""
    return [
        f"user {user}",
        f"topic read {topics.deposit}",
        f"topic write {topics.helper}",
        f"topic write {topics.dealt}",
    ]


def of_operator(topics: Topics, user: str, victim: str) -> list[str]:
    """Read rights for `midge status` and `midge broker check`, which write to a topic that no other client uses.

    `midge survey` writes its request, which devices take only if the release key signed it.
    """
    return [
        f"user {user}",
        f"topic read {topics.everything}",
        "topic read $SYS/broker/version",
        f"topic readwrite {topics.prefix}/check/#",
        f"topic readwrite {topics.aggregator}/+",
        f"topic write {topics.survey}",
        f"topic write {topics.receipt(victim)}",
    ]


def of_home_assistant(topics: Topics, user: str) -> list[str]:
    """Home Assistant's rights: read its own view and the aggregator's status, pause, and report its own state."""
    home = HomeTopics(topics)
    return [
        f"user {user}",
        f"topic read {home.everything}",
        f"topic read {home.configs}",
        f"topic read {topics.aggregator}",
        f"topic write {home.pause}",
        f"topic readwrite {DISCOVERY}/status",
    ]


def denied(users: Iterable[str]) -> list[str]:
    """No rights at all, also for connected users, because a certificate is checked only at connect."""
    return [line for user in users for line in (f"user {user}", "topic deny #")]
