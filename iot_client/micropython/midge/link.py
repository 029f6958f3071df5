"""The link to a broker: topics, signs of life, waiting with a limit, and whether another device has our name."""

import select
import struct
from binascii import crc32, hexlify
from time import ticks_add, ticks_diff, ticks_ms

from midge import frames
from midge.outbox import new_number

_SLOTS = 64
_ANSWER = 3000
"""Milliseconds that a live device of our name has for its answer."""
_JOINING = 10000
"""Milliseconds until our own question must have come back."""


class Stopped(Exception):
    """The device cannot go on: another one has its name, or it was withdrawn."""


class Link:
    """A client of MQTT as a device of a federation uses it.

    `client` has the interface of `umqtt.simple.MQTTClient`. `hear(sort, header, body)` is called with each message;
    `sort` is its topic without what all have in common.
    """

    def __init__(self, client, federation, name, root, hear):
        self.client, self.federation, self.name, self._hear = client, federation, name, hear
        self._prefix = f"{root}/{federation}/"
        self.update = f"update/{crc32(name.encode()) % _SLOTS}/{name}"
        self.status, self.receipt = "status/" + name, "receipt/" + name
        self._poller = None
        self._said = ticks_ms()
        """When anything was last published."""
        self._number = 0
        """Of our question whether another device has our name; 0 once it is answered."""
        client.set_callback(self._on_message)

    def open(self, identity, will, joining):
        """Connect, and see that no other device has our name.

        Raises:
            OSError: there is no connection.
            Stopped: another live device has our name.
        """
        client = self.client
        client.client_id = "{}-{}".format(self.name, str(hexlify(struct.pack(">Q", identity)), "ascii")[-8:])
        client.set_last_will((self._prefix + self.status).encode(), bytes(will), retain=True, qos=1)
        client.connect()
        self._poller = select.poll()
        self._poller.register(client.sock, select.POLLIN)
        self._identity, self._suspect = identity, False
        self._number = new_number()
        self.subscribe(self.status, 1)
        self.publish(self.status, joining(self._number))
        end = ticks_add(ticks_ms(), _JOINING)
        while self._number and ticks_diff(end, ticks_ms()) > 0:
            self.wait(100)
        if self._suspect:
            end = ticks_add(ticks_ms(), _ANSWER)
            while ticks_diff(end, ticks_ms()) > 0:
                self.wait(100)
        self._number = 0

    def close(self):
        """Leave."""
        if self._poller:
            self._poller = None
            try:
                self.client.disconnect()
            except OSError:
                pass

    def publish(self, topic, payload, retain=False):
        """Publish to a topic of the federation, at QoS 0: receipts say what arrived."""
        self._said = ticks_ms()
        self.client.publish((self._prefix + topic).encode(), payload, retain)

    def subscribe(self, topic, qos):
        """Subscribe to a topic of the federation."""
        self.client.subscribe((self._prefix + topic).encode(), qos)

    def unsubscribe(self, topic):
        """Take that back, if the client can."""
        if hasattr(self.client, "unsubscribe"):
            self.client.unsubscribe((self._prefix + topic).encode())

    def wait(self, milliseconds):
        """Read what has come, waiting for the first of it so long at most; give signs of life."""
        if self.client.keepalive and ticks_diff(ticks_ms(), self._said) > 500 * self.client.keepalive:
            self._said = ticks_ms()
            self.client.ping()
        if self._poller.poll(max(0, milliseconds)):
            # A TLS record may hold several packets, of which the socket tells nothing.
            while self.client.check_msg() is not None:
                pass

    # ------------------------------------------------------------------- messages

    def _on_message(self, topic, payload):
        if not isinstance(topic, str):
            topic = str(topic, "utf-8")
        if not len(payload) or not topic.startswith(self._prefix):
            return  # what was retained is cleared by an empty message
        try:
            header, body = frames.decode(payload)
            sort = topic[len(self._prefix) :]
            if sort == self.status:
                self._on_status(header)
            else:
                self._hear(sort, header, body)
        except (ValueError, KeyError, TypeError, IndexError):
            self._hear("damaged", {"why": topic}, b"")

    def _on_status(self, header):
        state, ours = header.get("state"), header.get("outbox") == self._identity
        live = state in ("ready", "training")
        if state == "joining":
            if header.get("number") == self._number:
                if not self._suspect:
                    self._number = 0
            elif not self._number or self._number < header.get("number", 0):
                self._hear("asked", header, b"")
        elif self._number and live and header.get("to") == self._number:
            raise Stopped(f"Another live device is named {self.name}: give each device its own name.")
        elif self._number and live and not ours:
            self._suspect = True
        elif state == "lost" and ours and not self._number:
            self._hear("missed", header, b"")  # said of an earlier connection, and retained in place of our status
