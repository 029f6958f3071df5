"""The broker's regular load: small messages at QoS 1 from many publishers to one subscriber, and their latency.

A separate process on bare sockets, so that the broker is measured rather than a client library. Each message carries
its send time; at the end both times of each, in seconds of the machine's monotonic clock, are written to a file.

    python -m benchmarks.neighbour_telemetry PORT FILE.npz [--publishers 50] [--rate 300]
"""

import argparse
import selectors
import socket
import struct
import sys
import time

import numpy as np

_TOPIC = "plant/line/{}/air"
_TEXT = b'{"t":21.4,"rh":48.2,"p":1013.2,"state":"ok","unit":"C","site":"hall 3","machine":"press 17"}'
_HEAD = struct.Struct("<Qd")
PATIENCE = 5.0
"""Seconds at the end in which messages in transit may arrive."""


def _packet(first: int, body: bytes) -> bytes:
    length, out = len(body), bytearray([first])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + body


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


class Client:
    """A minimal MQTT 3.1.1 connection (OASIS Standard, sections 2 and 3)."""

    def __init__(self, port: int, name: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kept = b""
        self.packet_id = 0
        self.socket.sendall(_packet(0x10, _string("MQTT") + b"\x04\x02" + struct.pack(">H", 0) + _string(name)))
        self.socket.recv(4, socket.MSG_WAITALL)

    def subscribe(self, topic: str) -> None:
        self.socket.sendall(_packet(0x82, b"\x00\x01" + _string(topic) + b"\x01"))
        self.socket.recv(5, socket.MSG_WAITALL)

    def publish(self, topic: str, payload: bytes) -> None:
        self.packet_id = self.packet_id % 0xFFFF + 1
        self.socket.sendall(_packet(0x32, _string(topic) + struct.pack(">H", self.packet_id) + payload))

    def arrived(self) -> list[bytes]:
        """Received payloads, which are acknowledged."""
        data, payloads, answers = self.kept + self.socket.recv(65_536), [], b""
        while len(data) >= 2:
            length, shift, start = 0, 0, 1
            while start < len(data):
                byte = data[start]
                length, shift, start = length | (byte & 0x7F) << shift, shift + 7, start + 1
                if byte < 0x80:
                    break
            else:
                break
            if len(data) < start + length:
                break
            body = data[start : start + length]
            if data[0] >> 4 == 3:
                end = 2 + int.from_bytes(body[:2], "big")
                payloads.append(body[end + 2 :])
                answers += b"\x40\x02" + body[end : end + 2]
            data = data[start + length :]
        self.kept = data
        if answers:
            self.socket.sendall(answers)
        return payloads


def run(port: int, publishers: int, rate: float) -> tuple[list[float], list[float]]:
    """Times at which each message was sent and arrived, NaN if it did not, until standard input ends."""
    subscriber = Client(port, "telemetry-subscriber")
    subscriber.subscribe(_TOPIC.format("+"))
    clients = [Client(port, f"telemetry-{number}") for number in range(publishers)]
    looking = selectors.DefaultSelector()
    looking.register(subscriber.socket, selectors.EVENT_READ, subscriber)
    looking.register(sys.stdin, selectors.EVENT_READ, None)
    for client in clients:
        looking.register(client.socket, selectors.EVENT_READ, client)
    sent: list[float] = []
    came: list[float] = []
    arrived = 0
    following, ends = time.monotonic(), float("inf")
    print("running", flush=True)
    while arrived < len(sent) or time.monotonic() < ends:
        now = time.monotonic()
        if now >= ends + PATIENCE:
            break
        while now >= following and now < ends:
            number = len(sent)
            sent.append(time.monotonic())
            came.append(float("nan"))
            head = _HEAD.pack(number, sent[-1])
            clients[number % publishers].publish(_TOPIC.format(number % publishers), head + _TEXT)
            following = max(following + 1 / rate, now - 0.1)
        for key, _ in looking.select(max(0.0, min(following, ends + 0.1) - time.monotonic())):
            if key.fileobj is sys.stdin:
                looking.unregister(sys.stdin)
                ends = time.monotonic()
            elif key.data is subscriber:
                payloads = subscriber.arrived()
                now = time.monotonic()
                for payload in payloads:
                    number, _ = _HEAD.unpack_from(payload)
                    arrived += int(np.isnan(came[number]))
                    came[number] = now
            else:
                key.data.arrived()
    return sent, came


def main() -> None:
    """Publish until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("file")
    parser.add_argument("--publishers", type=int, default=50)
    parser.add_argument("--rate", type=float, default=300.0)
    arguments = parser.parse_args()
    sent, came = run(arguments.port, arguments.publishers, arguments.rate)
    np.savez(arguments.file, sent=np.array(sent), came=np.array(came))


if __name__ == "__main__":
    main()
