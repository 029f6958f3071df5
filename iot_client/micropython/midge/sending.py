"""Sending the update that waits until a receipt settles it."""

from random import getrandbits
from time import ticks_add, ticks_diff, ticks_ms

from midge import frames
from midge.link import Stopped
from midge.offers import part_size

_OPEN = ("busy", "paused", "quarantined", "bad_signature")
"""Verdicts that settle nothing."""
_PATIENCE, _LONGEST = 10, 300
"""Seconds until what was not answered is sent again: at first, and at most."""
_CHUNK = 262144
"""Bytes of a chunk's body if the announcement says nothing."""


class Again(Exception):
    """The connection is to be made again, under the outbox's new identity."""


class Timer:
    """When something is due; each time it begins again, later."""

    def __init__(self):
        self.due, self._seconds = None, _PATIENCE

    def start(self, seconds=None):
        """Begin: for `seconds`, or for twice as long as the last time; a quarter more or less, at random."""
        if seconds is None:
            seconds, self._seconds = self._seconds, min(_LONGEST, 2 * self._seconds)
        self.due = ticks_add(ticks_ms(), int(seconds * (750 + getrandbits(9))))

    def stop(self):
        """Begin no more, and forget how long the last time was."""
        self.due, self._seconds = None, _PATIENCE

    @property
    def over(self):
        """Whether it is due, or was never begun."""
        return self.due is None or ticks_diff(self.due, ticks_ms()) <= 0


class Sending:
    """What the outbox holds, on its way."""

    def __init__(self, link, outbox, largest, tell):
        self._link, self._outbox, self._largest, self._tell = link, outbox, largest, tell
        self._buffer = bytearray(0)
        self._chunk = min(_CHUNK, largest)
        self.resend = Timer()
        self.fence = 0
        """The highest token of an aggregator that this connection has brought: one with a lower one was replaced."""

    def cut(self, announcement):
        """Cut updates as an announcement says, and to what this device takes."""
        self._chunk = min(announcement.get("chunk", _CHUNK), self._largest)

    def receipt(self, header):
        """Take the aggregator's word; False if it does not count.

        Raises:
            Again: the outbox has a new identity.
            Stopped: the device was withdrawn.
        """
        token, outbox = header.get("token", 0), self._outbox
        if header["outbox"] != outbox.identity or 0 < token < self.fence:
            return False
        self.fence = max(self.fence, token)
        update, settled, wait = outbox.update, header.get("settled", ()), None
        for each in settled:
            if update and each["seq"] == update["seq"]:
                wait = self._verdict(each, update)
        if header["hi"] >= outbox.next:
            self._renew(keep=False)
        if update and header["hi"] >= update["seq"]:
            self._tell("forgot", update["seq"])
            outbox.settle()
            self.resend.stop()
        elif wait is not None:
            self.resend.start(max(1, wait) * 4 / 3)  # a quarter less is not before the time that was given
        elif update:
            for grant in header.get("grants", ()):
                if grant["seq"] == update["seq"]:
                    self._send_parts(grant["parts"])
                    return True
            if not settled and self.resend.due is not None:  # what was sent did not arrive
                self.resend.start(0.5)
        return True

    def _verdict(self, settled, update):
        """Seconds to wait before the update is sent again; None if the verdict is final."""
        body = settled.get("body", b"")
        if body and body != update["sha256"][: len(body)]:
            self._renew(keep=True)
        if settled["verdict"] in _OPEN:
            self._tell("refused", settled)
            return settled.get("retry_after", 0)
        self._tell("settled", settled)
        if settled["verdict"] == "forgotten":
            self._outbox.settle()
            raise Stopped("The operator has withdrawn this device: " + settled.get("why", ""))
        return None

    def _renew(self, keep):
        """Begin a new identity: the flash was put back from a copy, and its numbers were used for other updates."""
        self._outbox.renew(keep)
        self._tell("renewed", self._outbox.identity)
        raise Again

    def send(self):
        """Send the update, or offer it if it is larger than a chunk."""
        self.resend.start()
        header, parts = self._header(self._outbox.update), self._parts()
        if parts > 1:
            header.update({"kind": "offer", "parts": parts})
            self._link.publish(self._link.update, frames.encode(header))
        else:
            header["kind"] = "update"
            self._publish(header, 0, header["size"])

    def _parts(self):
        return -(-self._outbox.update["size"] // self._chunk)

    def _header(self, about):
        header = dict(about)
        header.update({"outbox": self._outbox.identity, "first": self._outbox.first})
        return header

    def _send_parts(self, wanted):
        self.resend.start(_PATIENCE)
        update = self._outbox.update
        each = part_size(update["size"], self._parts())
        for part in wanted:
            header = self._header({"kind": "chunk", "seq": update["seq"], "part": part})
            self._publish(header, part * each, min(each, update["size"] - part * each))

    def _publish(self, header, at, size):
        """Publish a header with a piece of the update behind it, by way of one buffer."""
        head = frames.encode(header)
        if len(self._buffer) < len(head) + size:
            self._buffer = None
            self._buffer = bytearray(len(head) + size)
        view = memoryview(self._buffer)[: len(head) + size]
        view[: len(head)] = head
        self._outbox.read(at, view[len(head) :])
        self._link.publish(self._link.update, view)
