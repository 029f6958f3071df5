"""Publishers that replay prepared updates for `benchmarks.ingest`: plain sockets and one epoll loop in one process.

They must be cheap, since they share the machine with what is measured: hand-written MQTT 3.1.1, bodies encoded once and
sent without a copy, and no checks except of the verdicts. Devices follow the protocol: updates larger than a chunk are
offered and sent in granted chunks, seqs are consecutive, and the base is the version announced last. Closed loop: each
device has a number of updates under way; open loop: updates are due at a rate, with latencies from when each was due.

The task is JSON on the command line; `begin` and `end` of the measurement and finally the result are printed.
"""

import json
import mmap
import os
import secrets
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from midge.wire import chunks, codecs, frames, messages
from midge.wire.messages import Announcement, DeviceState, Hello
from midge.wire.schema import Schema, Tensor
from midge.wire.topics import Topics

BODIES = 8
"""Maximum number of distinct bodies; fewer if they are large."""
_RECEIVE = 256 * 1024


def schema_of(params: int) -> Schema:
    return Schema([Tensor("w", (params,), "float32", "trained")])


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!H", len(encoded)) + encoded


def packet(first: int, *pieces: bytes | memoryview) -> list[bytes | memoryview]:
    """A packet's pieces, with its fixed header joined to the first one."""
    left, length = sum(map(len, pieces)), bytearray()
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return [b"".join((bytes((first,)), length, pieces[0])), *pieces[1:]]


class Link:
    """One connection to the broker."""

    def __init__(self, port: int, name: str, poll: "select.epoll") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = poll
        self._kept = b""
        self._out: deque[bytes | memoryview] = deque()
        self._id = 0
        self.socket.sendall(packet(0x10, text("MQTT") + b"\x04\x02\0\0" + text(name))[0])
        self._expect(0x20)
        self.waiting_for_room = False

    def _expect(self, kind: int) -> None:
        while True:
            head = self._exactly(2)
            rest = self._exactly(head[1])
            if head[0] == kind:
                assert rest[-1] < 0x80, f"the broker refused: {rest!r}"
                return

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.socket.recv(size - len(data)) or sys.exit("the broker hung up")
        return data

    def subscribe(self, topics: list[str], qos: int) -> None:
        for start in range(0, len(topics), 100):
            body = b"".join(text(topic) + bytes((qos,)) for topic in topics[start : start + 100])
            self.socket.sendall(packet(0x82, struct.pack("!H", 1) + body)[0])
            self._expect(0x90)

    def start(self) -> None:
        self.socket.setblocking(False)
        self._poll.register(self.socket, select.EPOLLIN)

    def publish(self, topic: bytes, *pieces: bytes | memoryview, retain: bool = False) -> None:
        self._id = self._id % 0xFFFF + 1
        self._out.extend(packet(0x32 | retain, topic + struct.pack("!H", self._id) + pieces[0], *pieces[1:]))

    def flush(self) -> None:
        while self._out:
            try:
                sent = self.socket.sendmsg([self._out[place] for place in range(min(len(self._out), 64))])
            except BlockingIOError:
                break
            while sent:
                piece = self._out[0]
                if sent < len(piece):
                    self._out[0] = memoryview(piece)[sent:]
                    break
                sent -= len(piece)
                self._out.popleft()
        if bool(self._out) != self.waiting_for_room:
            self.waiting_for_room = bool(self._out)
            self._poll.modify(self.socket, select.EPOLLIN | (select.EPOLLOUT if self._out else 0))

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Received topics and payloads, which are acknowledged."""
        data = self.socket.recv(_RECEIVE)
        if not data:
            sys.exit("the broker hung up on a publisher")
        data, at, end = self._kept + data, 0, len(self._kept) + len(data)
        while end - at >= 2:
            size, shift, head = 0, 0, at + 1
            while head < end:
                size |= (data[head] & 0x7F) << shift
                shift, head = shift + 7, head + 1
                if data[head - 1] < 0x80:
                    break
            else:
                break
            if head + size > end:
                break
            if data[at] & 0xF0 == 0x30:
                length = data[head] << 8 | data[head + 1]
                topic, body = data[head + 2 : head + 2 + length], head + 2 + length
                if data[at] & 0x06:
                    self._out.append(b"\x40\x02" + data[body : body + 2])
                    body += 2
                yield topic, data[body : head + size]
            at = head + size
        self._kept = data[at:]


class Device:
    """One device's outbox."""

    def __init__(self, name: str, topics: Topics, link: Link, body: bytes, digest: bytes) -> None:
        self.name, self.link, self.body, self.digest = name, link, memoryview(body), digest
        self.topic = text(topics.update(name))
        self.outbox = secrets.randbits(62)
        self.seq = 0
        self.hi = 0
        self.since: dict[int, float] = {}
        """When each update under way was sent, or was due."""


class Publishers:
    """All devices and the messages that they received."""

    def __init__(self, what: dict[str, Any]) -> None:
        self.what = what
        self.topics = Topics(what["federation"])
        self.poll = select.epoll()
        self.announced: Announcement | None = None
        self.verdicts: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.sent = self.settled = 0
        self.parts = 1
        self.latencies: list[float] = []
        self.measuring = False
        self._due: deque[tuple[float, Device]] = deque()
        port, params, codec = what["port"], what["params"], what["codec"]
        self.control = Link(port, "publishers", self.poll)
        if not what["bare"]:
            self.control.subscribe([self.topics.announcement()], 0)
        schema = schema_of(params)
        self.schema_hash = schema.hash
        bodies = []
        for seed in range(max(1, min(BODIES, 10**7 // params, what["devices"]))):
            rng = np.random.default_rng(seed)
            delta = (rng.laplace(size=params) * np.abs(rng.normal(size=params)) * 1e-3).astype(np.float32)
            body = codecs.encode_delta(delta, schema, codec, seed=seed)
            bodies.append((body, sha256(body).digest()))
        self.size = max(len(body) for body, _ in bodies)
        count = min(what["connections"], what["devices"])
        self.links = [Link(port, f"publisher-{number}", self.poll) for number in range(count)]
        self.devices = [
            Device(f"d{number}", self.topics, self.links[number % count], *bodies[number % len(bodies)])
            for number in range(what["devices"])
        ]
        self.by_topic = {self.topics.receipt(device.name).encode(): device for device in self.devices}
        if not what["bare"]:
            for number, link in enumerate(self.links):
                link.subscribe([self.topics.receipt(each.name) for each in self.devices[number::count]], 1)
        self.files = {link.socket.fileno(): link for link in (*self.links, self.control)}
        for link in self.files.values():
            link.start()
        self.seen = mmap.mmap(os.open(what["counter"], os.O_RDWR), 8) if what["bare"] else None

    # ------------------------------------------------------------------ sending

    def greet(self) -> None:
        """Publish statuses, so that the federation knows the number of devices."""
        for device in self.devices:
            # Shards start after the announcement: their answers to greetings show that they are there.
            state = DeviceState.READY if self.what.get("shards") else DeviceState.TRAINING
            hello = Hello(state=state, outbox=device.outbox)
            device.link.publish(text(self.topics.status(device.name)), frames.encode(hello), retain=True)
        self.flush()

    def flush(self) -> None:
        for link in self.links:
            link.flush()

    def update(self, device: Device, now: float) -> None:
        """The next update of a device: whole, or its offer."""
        device.seq += 1
        size, announced = len(device.body), self.announced
        chunk = messages.Announcement.model_fields["chunk"].default if announced is None else announced.chunk
        header: dict[str, Any] = {
            "kind": "update",
            "outbox": device.outbox,
            "first": device.hi + 1,
            "seq": device.seq,
            "lineage": bytes(16) if announced is None else announced.lineage,
            "generation": 0 if announced is None else announced.generation,
            "base": 1 if announced is None else announced.version,
            "schema_hash": self.schema_hash,
            "codec": self.what["codec"],
            "size": size,
            "sha256": device.digest,
            "examples": 100,
            "steps": 10,
            "seconds": 1.0,
            "metrics": {"loss": 0.5},
        }
        device.since[device.seq] = now
        self.sent += 1
        parts = chunks.count(size, chunk)
        if parts > 1:
            header |= {"kind": "offer", "parts": parts}
            device.link.publish(device.topic, frames.encode(header))
        else:
            device.link.publish(device.topic, frames.encode(header), device.body)
        self.parts = parts
        if self.what["bare"] and parts > 1:
            self.send_chunks(device, device.seq, range(parts))

    def send_chunks(self, device: Device, seq: int, parts: Any) -> None:
        step = chunks.part_size(len(device.body), self.parts)
        for part in parts:
            header = {"kind": "chunk", "outbox": device.outbox, "first": device.hi + 1, "seq": seq, "part": part}
            device.link.publish(device.topic, frames.encode(header), device.body[part * step : (part + 1) * step])

    # ---------------------------------------------------------------- listening

    def heard(self, topic: bytes, payload: bytes, now: float) -> Device | None:
        if (device := self.by_topic.get(topic)) is None:
            if topic.endswith(b"/model/train"):
                self.announced = messages.decode_announcement(payload)
            return None
        receipt, _ = frames.decode(payload)
        if receipt["outbox"] != device.outbox:
            return None
        self.answered.add(device.name)
        device.hi = max(device.hi, receipt["hi"])
        for item in receipt.get("settled", ()):
            since = device.since.pop(item["seq"], None)
            if since is not None:
                self.verdicts[item["verdict"]] += 1
                self.settled += 1
                if self.measuring:
                    self.latencies.append(now - since)
        for grant in receipt.get("grants", ()):
            self.send_chunks(device, grant["seq"], grant["parts"])
        return device

    def look(self, timeout: float) -> list[Device]:
        """Read what has arrived, and for which devices."""
        moved = []
        for file, events in self.poll.poll(timeout):
            link = self.files[file]
            if events & select.EPOLLIN:
                now = time.perf_counter()
                moved += [device for device in (self.heard(*each, now) for each in link.read()) if device is not None]
            link.flush()
        return moved

    # ------------------------------------------------------------------ running

    def run(self) -> dict[str, Any]:
        if not self.what["bare"]:
            deadline = time.monotonic() + 120
            while self.announced is None or self.announced.version == 0:
                if time.monotonic() > deadline:
                    sys.exit("no version is announced")
                self.look(0.1)
            self.greet()
            while self.what.get("shards") and len(self.answered) < len(self.devices):
                if time.monotonic() > deadline:
                    sys.exit("not all greetings are answered")
                self.look(0.1)
        began = time.perf_counter() + self.what["warm"]
        ended, done = began + self.what["seconds"], 0
        marks = [0.0, 0.0]
        for device in self.devices:
            if self.seen is None and not self.what["rate"]:
                self.top_up(device)
        self.flush()
        while True:
            now = time.perf_counter()
            if not self.measuring and not marks[0] and now >= began:
                done, marks[0], self.measuring = self.progress(), now, True
                print('"begin"', flush=True)
            enough = self.what["updates"] and self.sent >= self.what["updates"]
            if self.measuring and (now >= ended or enough) and self.progress() > done:
                done, marks[1], self.measuring = self.progress() - done, now, False
                print('"end"', flush=True)
            stopping = bool(marks[1])
            if stopping and self.progress() >= self.sent:
                break
            if stopping and now > marks[1] + 120:
                sys.exit(f"{self.sent - self.progress()} of {self.sent} updates were not settled: {self.verdicts}")
            if self.seen is not None:
                self.bare_round(stopping=stopping)
            elif self.what["rate"]:
                self.paced_round(now, began - self.what["warm"], stopping=stopping)
            else:
                for device in self.look(0.1):
                    if not stopping and not (self.parts > 1 and device.since):
                        self.top_up(device)
                        device.link.flush()
        return self.result(done, marks[1] - marks[0])

    def progress(self) -> int:
        if self.seen is None:
            return self.settled
        (received,) = struct.unpack("<Q", self.seen[:8])
        return int(received) // (1 if self.parts == 1 else self.parts + 1)

    def top_up(self, device: Device) -> None:
        now = time.perf_counter()
        while len(device.since) < self.what["window"]:
            self.update(device, now)
            if self.parts > 1:  # the aggregator reassembles one update of a device at a time
                break

    def bare_round(self, *, stopping: bool) -> None:
        room = self.what["devices"] * self.what["window"] - (self.sent - self.progress())
        for _ in range(0 if stopping else min(room, 64)):
            device = self.devices[self.sent % len(self.devices)]
            self.update(device, 0.0)
            device.link.flush()
        self.look(0.0 if room > 0 else 0.0005)

    def paced_round(self, now: float, start: float, *, stopping: bool) -> None:
        due = start + self.sent / self.what["rate"]
        behind = self.sent - self.settled > max(100.0, self.what["rate"])
        if stopping or due > now or behind:  # a second behind: more would only queue at the broker
            self.look(0.001 if stopping else min(due - now, 0.001))
            return
        device = self.devices[self.sent % len(self.devices)]
        self.update(device, due)
        device.link.flush()

    def result(self, done: int, seconds: float) -> dict[str, Any]:
        p50, p99 = np.percentile(self.latencies or [0.0], (50, 99))
        return {
            "updates_per_s": done / seconds,
            "bytes": self.size,
            "sent": self.sent,
            "verdicts": dict(self.verdicts),
            "seconds": seconds,
            "p50_ms": 1000 * float(p50),
            "p99_ms": 1000 * float(p99),
            "cpu_s": time.process_time(),
        }


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    Path(task["counter"]).touch()
    print(json.dumps(Publishers(task).run()), flush=True)
