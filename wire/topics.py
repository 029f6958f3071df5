"""The only place where topics are spelled.

MQTT 3.1.1, section 4.7: levels are separated by `/`; `+` and `#` are wildcards and may not occur in a name. Our names
are restricted further, so that a name can stand in a topic, in a file name and in an ACL line without quoting.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from midge.wire.errors import WireError

DEFAULT_ROOT = "midge/1"
DISCOVERY = "homeassistant"
"""Home Assistant's default prefix of discovery topics."""
SLOTS = 64
"""Number of slots that the devices' updates are spread over, so that ingest can later be split by plain wildcards."""

Channel = Literal["train", "serve"]
Frames = Literal["train", "serve", "registered"]
"""Where the chunks of a frame are published: those of a registered version belong to no channel."""
Alias = Literal["champion", "candidate"]
ALIASES: tuple[Alias, Alias] = ("champion", "candidate")
"""Names of registered versions."""
FromDevice = Literal["update", "status", "report"]

_NAMED = 10
"""Most federations that a sentence names."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SLOT = re.compile(r"[0-9]{1,2}")
_ROOT_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it may stand in a topic.

    Raises:
        ValueError: it may not; the message says what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a {what}: use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or a digit."
        )
    return name


def is_name(name: str) -> bool:
    """Whether `name` may stand in a topic."""
    return _NAME.fullmatch(name) is not None


def explain_absence(topics: "Topics", announced: Iterable[str]) -> str:
    """Explain why a federation is not on a broker, and name those that are announced."""
    from difflib import get_close_matches  # noqa: PLC0415 - for those who made a mistake

    names = sorted(name for name in announced if _NAME.fullmatch(name))
    text = f"No aggregator has announced federation {topics.federation!r} under {topics.root!r} on this broker"
    if not names:
        return (
            f"{text}, nor any other that is visible from here: start it with `midge aggregate`, or check that this "
            "is its broker."
        )
    like = get_close_matches(topics.federation, names, 1)
    hint = f": did you mean {like[0]!r}?" if like else "."
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{text}; announced {'is' if len(names) == 1 else 'are'} {', '.join(names[:_NAMED])}{more}{hint}"


def device_name(name: str) -> str:
    """Return a device's name as it stands in topics: a colon, as in `AA:BB:CC:DD:EE:FF`, becomes a hyphen.

    A MAC address is the commonest name of a board. A colon would end the user in a password file, and is not allowed in
    file names on an SD card; other versions of Midge read names without it.

    Raises:
        ValueError: it is no valid name even so.
    """
    return check_name(name.replace(":", "-"), "device name")


def slot(device: str) -> int:
    """The slot of a device: crc32 of its name modulo 64."""
    return zlib.crc32(device.encode()) % SLOTS


@dataclass(frozen=True, slots=True)
class Origin:
    """The sender of a message to the aggregator, and the message's channel, from its topic."""

    sort: FromDevice
    device: str
    slot: int | None = None


class Topics:
    """The topics of one federation under one root."""

    def __init__(self, federation: str, root: str = DEFAULT_ROOT) -> None:
        """Check both names.

        Raises:
            ValueError: the federation's name or the root cannot stand in a topic.
        """
        self.federation = check_name(federation, "federation")
        levels = root.strip("/").split("/")
        if not all(_ROOT_LEVEL.fullmatch(level) for level in levels):
            raise ValueError(
                f"{root!r} cannot be a topic root: use levels of letters, digits, '.', '_' or '-', separated by '/'."
            )
        self.root = "/".join(levels)
        self.prefix = f"{self.root}/{self.federation}"
        self.aggregator = f"{self.prefix}/aggregator"
        self.ask = f"{self.aggregator}/ask"
        """Operators request an overview of the federation here …"""
        self.overview = f"{self.aggregator}/overview"
        """… and receive it here."""
        self.survey = f"{self.prefix}/model/survey"
        """An operator's request for statistics of the devices' rows, retained while it is open: below what every device
        may read. Devices answer on their `report` topics."""
        self.site_values = f"{self.prefix}/model/site"
        """The values of a site's tensors, retained by its gateway, at its own broker."""
        self.claim = f"{self.prefix}/claim"
        self.authorities = f"{self.prefix}/authorities"
        """The authorities that devices shall trust, retained."""
        self.renewals = f"{self.prefix}/renew/+"
        self.helper = f"{self.prefix}/helper"
        """The mask helper's keys, retained."""
        self.deposit = f"{self.helper}/deposit"
        """The aggregator's messages to the mask helper …"""
        self.dealt = f"{self.helper}/dealt"
        """… and its answers."""
        self.copy = f"{self.prefix}/standby/copy"
        """The aggregator's changes of its store, for its standby …"""
        self.follow = f"{self.prefix}/standby/follow"
        """… and what the standby says."""
        self.everything = f"{self.prefix}/#"
        self.of_all_aggregators = f"{self.root}/+/aggregator"
        """The aggregator's topic of every federation under the root."""

    def announcement(self, channel: Channel = "train") -> str:
        return f"{self.prefix}/model/{channel}"

    def alias(self, name: Alias) -> str:
        """Which registered version this name stands for, retained."""
        return f"{self.prefix}/model/alias/{name}"

    def part(self, version: int, span: int, index: int, channel: Frames = "train") -> str:
        """The topic of one chunk of a frame: a step over `span` versions up to `version`, or a snapshot if it is 0."""
        return f"{self.prefix}/model/{channel}/{version}/{span}-{index}"

    def update(self, device: str) -> str:
        return f"{self.prefix}/update/{slot(device)}/{device}"

    def updates_in(self, number: int) -> str:
        """The filter of all devices' updates in one slot."""
        return f"{self.prefix}/update/{number}/+"

    def receipt(self, device: str) -> str:
        return f"{self.prefix}/receipt/{device}"

    def status(self, device: str) -> str:
        return f"{self.prefix}/status/{device}"

    def report(self, device: str) -> str:
        return f"{self.prefix}/report/{device}"

    def renew(self, device: str) -> str:
        """Where a device requests new credentials."""
        return f"{self.prefix}/renew/{device}"

    def renewed(self, device: str) -> str:
        """Where the answer is published."""
        return f"{self.prefix}/renewed/{device}"

    @property
    def from_devices(self) -> tuple[str, str, str]:
        """The filters that the aggregator subscribes to: updates, statuses, reports."""
        return f"{self.prefix}/update/+/+", f"{self.prefix}/status/+", f"{self.prefix}/report/+"

    def origin(self, topic: str) -> Origin:
        """Read a topic that matches `from_devices`.

        Raises:
            WireError: it is none of them, the device's name is invalid, or the slot does not exist.
        """
        if not topic.startswith(self.prefix + "/"):
            raise WireError(f"{topic!r} is not under {self.prefix!r}")
        match topic[len(self.prefix) + 1 :].split("/"):
            case ["update", number, device] if _NAME.fullmatch(device):
                # Any slot is accepted, as long as one aggregator reads all: the last level names the device.
                if not _SLOT.fullmatch(number) or int(number) >= SLOTS:
                    raise WireError(
                        f"slot {number!r} is none of 0 to {SLOTS - 1}; that of {device!r} is {slot(device)}"
                    )
                return Origin("update", device, int(number))
            case [("status" | "report") as sort, device] if _NAME.fullmatch(device):
                return Origin("status" if sort == "status" else "report", device)
        raise WireError(f"{topic!r} is no topic of a device")

    def sender_of_update(self, topic: str) -> str | None:
        """The last level of an update topic; None if it is another topic."""
        return topic.rpartition("/")[2] if topic.startswith(f"{self.prefix}/update/") else None

    def named(self, topic: str) -> str:
        """The device that a topic names, in whatever slot; empty if it names none."""
        match topic.removeprefix(self.prefix + "/").split("/"):
            case ["update", _, device] | ["status" | "report", device] if _NAME.fullmatch(device):
                return device
        return ""


class HomeTopics:
    """The topics of one federation's view for Home Assistant, whose templates read text and no frames.

    They are beside the federation's own, `midge/ha/NODE/…`, and Home Assistant's discovery topics,
    `PREFIX/device/midge-NODE/…/config`. NODE is the federation's name, with the root if that is not the default.

    Raises:
        ValueError: the discovery prefix cannot stand in a topic.
    """

    def __init__(self, topics: Topics, discovery: str = DISCOVERY) -> None:
        if not all(_ROOT_LEVEL.fullmatch(level) for level in discovery.split("/")):
            raise ValueError(
                f"{discovery!r} cannot be Home Assistant's discovery prefix; by default it is {DISCOVERY!r}."
            )
        name = topics.federation if topics.root == DEFAULT_ROOT else f"{topics.root}/{topics.federation}"
        self.node = _object_id(name)
        self.discovery = discovery
        self.prefix = f"midge/ha/{self.node}"
        self.everything = f"{self.prefix}/#"
        self.configs = f"{discovery}/device/midge-{self.node}/+/config"
        """The discovery messages of all devices."""
        self.aggregator = topics.aggregator
        """The aggregator's own status, and its Last Will."""
        self.state = f"{self.prefix}/state"
        self.pause = f"{self.prefix}/paused/set"
        """Where Home Assistant asks for a pause or its end."""
        self.found = f"{self.prefix}/discovery"
        """The discovery prefix that is in use, for `midge clean`."""

    def device(self, name: str) -> str:
        """The topic of a device's state."""
        return f"{self.prefix}/device/{name}"

    def config(self, name: str | None = None) -> str:
        """The discovery topic of a device, or of the aggregator."""
        return f"{self.discovery}/device/midge-{self.node}/{self.object_id(name)}/config"

    @staticmethod
    def removal_order(topic: str) -> bool:
        """Sorting key: discovery messages go first, as an entity that is still there warns of an empty state."""
        return not topic.endswith("/config")

    def object_id(self, name: str | None = None) -> str:
        """Identifier of a device, or of the aggregator, in a discovery topic."""
        return "aggregator" if name is None else f"device-{_object_id(name)}"


def _object_id(name: str) -> str:
    """A name in Home Assistant's characters; one that has others gets a checksum, so that no two become one."""
    slug = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return slug if slug == name else f"{slug}-{zlib.crc32(name.encode()):08x}"
