"""Fetching the model: the cheapest frames, each of parts that come in any order, twice or not at all."""

from hashlib import sha256
from time import ticks_diff, ticks_ms

from midge import frames, offers

_AT_ONCE = 8
"""Parts that are subscribed to at a time."""
_PATIENCE, _ASKS = 5000, 3
"""Milliseconds without a part after which it is asked for, and how often that is done."""


class Parts:
    """The parts of one frame."""

    def __init__(self, announcement, frame, buffer):
        """`buffer` is as large as the frame, at least."""
        self.lineage = announcement["lineage"]
        self.version, self.span, self.size, self.parts = frame
        self._view = memoryview(buffer)[: self.size]
        self._each = offers.part_size(self.size, self.parts)
        self._come = bytearray(self.parts)
        self._sha = None

    @property
    def missing(self):
        """The next parts that have not come."""
        found = []
        for part in range(self.parts):
            if not self._come[part] and len(found) < _AT_ONCE:
                found.append(part)
        return found

    def take(self, header, body):
        """Take a part; whether it is one that was missing."""
        part = header["part"]
        if (header["version"], header["span"], header["parts"]) != (self.version, self.span, self.parts):
            return False
        if header["lineage"] != self.lineage or not 0 <= part < self.parts or self._come[part]:
            return False
        begin = part * self._each
        if len(body) != min(self._each, self.size - begin):
            return False
        if self._sha is not None and self._sha != header["sha256"]:
            self._come = bytearray(self.parts)  # of another frame: begin again
        self._sha = header["sha256"]
        self._view[begin : begin + len(body)] = body
        self._come[part] = 1
        return True

    def frame(self):
        """The frame, if it is whole.

        Raises:
            ValueError: it is not what its parts say.
        """
        if sha256(self._view).digest()[: len(self._sha)] != self._sha:
            raise ValueError("the parts make no frame")
        return self._view


class Fetcher:
    """Brings the model to announced versions."""

    def __init__(self, link, model, largest, tell):
        self._link, self._model, self._largest, self._tell = link, model, largest, tell
        self._parts = self._buffer = None

    def take(self, header, body):
        """Take a part, if it is one that is fetched now."""
        if self._parts and self._parts.take(header, body):
            self._came = ticks_ms()

    def reach(self, known):
        """Bring the model to the announced version; False if that did not go. What is announced meanwhile waits."""
        model = self._model
        same = model.lineage == known["lineage"] and model.generation == known.get("generation", 0)
        if same and model.version == known["version"]:
            if model.digest == known["digest"]:
                return True
            same = False
        there = offers.unpack(known.get("frames", b""))
        way = offers.route(there, model.version if same else None, known["version"], self._largest)
        if way is None:
            self._tell(
                "unreachable", "version {} by parts of {} bytes: {}".format(known["version"], self._largest, there)
            )
            return False
        try:
            for frame in way:
                if not self._fetch(known, frame):
                    return False
                model.take(self._parts.frame(), frame[1])
            if not model.arrived(known):
                raise ValueError("the digest is another one")  # noqa: TRY301 - as what else may be wrong
        except (ValueError, KeyError, IndexError, TypeError) as error:
            model.lineage = None  # begin again with a snapshot
            self._tell("damaged", repr(error))
            return False
        finally:
            self._parts = self._buffer = None
        self._tell("version", model)
        return True

    def _fetch(self, known, frame):
        """Fetch a frame; whether it is whole."""
        version, span, size, _ = frame
        self._parts = None
        if not self._buffer or len(self._buffer) < size:
            self._buffer = None
            self._buffer = bytearray(size)
        parts = self._parts = Parts(known, frame, self._buffer)
        topic, asked, subscribed = f"model/train/{version}/{span}-", 0, ()
        self._came = ticks_ms()
        while True:
            missing = parts.missing
            if missing and not any(part in subscribed for part in missing):
                self._leave(topic, subscribed)
                subscribed = missing
                for part in subscribed:
                    self._link.subscribe(topic + str(part), 1)
            if not missing or asked == _ASKS:
                self._leave(topic, subscribed)
                return not missing
            self._link.wait(200)
            if ticks_diff(ticks_ms(), self._came) > _PATIENCE:
                header = {"kind": "fetch", "lineage": parts.lineage, "version": version, "span": span, "parts": missing}
                self._link.publish(self._link.update, frames.encode(header))
                self._came = ticks_ms()
                asked += 1

    def _leave(self, topic, parts):
        for part in parts:
            self._link.unsubscribe(topic + str(part))
