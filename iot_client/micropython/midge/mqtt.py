"""MQTT 3.1.1 with the interface of `umqtt.simple`, and with a bound on what a packet takes of the memory.

A packet that is larger than the buffer is read and dropped, piece by piece. Acknowledgements are not waited for: the
federation's receipts say what arrived.
"""

import socket
import struct

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
_UNSUBSCRIBE, _PING, _DISCONNECT = 0xA2, b"\xc0\0", b"\xe0\0"
_TOPIC = 192
"""Bytes of a topic, at most: a federation's have 170."""
_HEADER = 320
"""Bytes of a payload beside its body: an announcement's signatures, a receipt's verdicts."""
_PATIENCE = 15
"""Seconds after which a packet that has begun, or a connection that is asked for, is taken for lost."""


class MQTTException(Exception):
    """What the broker refuses, with its code; or what is wrong with its certificate."""


class MQTTClient:
    """A connection, begun clean."""

    def __init__(
        self, client_id, server, port=0, user=None, password=None, keepalive=0, ssl=None, *, largest=2048
    ):  # as umqtt's, and `largest`: bytes of a body
        self.client_id, self._user, self._password, self._ssl = client_id, user, password, ssl
        self._server, self._port = server, port or (8883 if ssl else 1883)
        self.keepalive, self._pid, self._will = keepalive, 0, None
        self.largest = largest
        self._view = memoryview(bytearray(largest + _HEADER))
        self._hear = None
        self.sock = None
        self.skipped = None
        """Topic and bytes of the last packet that was too large."""

    def set_callback(self, f):
        """Call `f(topic, payload)` with each message; the payload is a view that holds until `f` returns."""
        self._hear = f

    def set_last_will(self, topic, msg, retain=False, qos=0):
        """What the broker is to publish if the connection ends without a word."""
        self._will = topic, msg, retain, qos

    def connect(self, clean_session=True, timeout=None):
        """Connect.

        Raises:
            OSError: the broker is not there.
            MQTTException: it refuses.
        """
        address = socket.getaddrinfo(self._server, self._port, 0, socket.SOCK_STREAM)[0][-1]
        self.sock = self._plain = socket.socket()  # a socket of TLS has no timeouts of its own
        try:
            self.sock.settimeout(timeout or _PATIENCE)
            self.sock.connect(address)
            _at_once(self.sock)
            if self._ssl:
                self.sock = self._wrapped()
            self._greet(clean_session)
        except Exception:
            self.sock.close()
            raise

    def _wrapped(self):
        try:
            return self._ssl.wrap_socket(self._plain, server_hostname=self._server)
        except ValueError as error:  # of a certificate: its authority, its name, or the board's clock
            raise MQTTException(str(error).strip())  # noqa: B904 - MicroPython has no chains

    def _greet(self, clean):
        flags = 2 if clean else 0
        fields = bytearray(b"\0\4MQTT\4\0\0\0")
        _add(fields, self.client_id)
        if self._will:
            topic, msg, retain, qos = self._will
            flags |= 4 | qos << 3 | (32 if retain else 0)
            _add(fields, topic)
            _add(fields, msg)
        if self._user is not None:
            flags |= 128
            _add(fields, self._user)
            if self._password is not None:
                flags |= 64
                _add(fields, self._password)
        fields[7] = flags
        struct.pack_into(">H", fields, 8, self.keepalive)
        self._send(_CONNECT, fields)
        answer = self._read(4)
        if answer[0] != _CONNACK or answer[3]:
            raise MQTTException(answer[3])

    def disconnect(self):
        """Leave: the broker forgets the Last Will."""
        try:
            self.sock.write(_DISCONNECT)
            # A socket closed with unread data resets the connection: the Last Will would be published all the same.
            self._plain.settimeout(1)
            while self.sock.read(64):
                pass
        except OSError:
            pass
        self.sock.close()

    def ping(self):
        """A sign of life."""
        self.sock.write(_PING)

    def publish(self, topic, msg, retain=False, qos=0):
        """Publish a message."""
        head = bytearray(2)
        struct.pack_into(">H", head, 0, len(topic))
        head.extend(topic if isinstance(topic, (bytes, bytearray)) else topic.encode())
        if qos:
            head.extend(self._next())
        self._send(_PUBLISH | qos << 1 | (1 if retain else 0), head, msg)

    def subscribe(self, topic, qos=0):
        """Subscribe; a refusal is raised when it comes."""
        fields = bytearray(self._next())
        _add(fields, topic)
        fields.append(qos)
        self._send(_SUBSCRIBE, fields)

    def unsubscribe(self, topic):
        """Take a subscription back."""
        fields = bytearray(self._next())
        _add(fields, topic)
        self._send(_UNSUBSCRIBE, fields)

    def wait_msg(self):
        """Read one packet; its type, or None if none has begun.

        Raises:
            OSError: the connection is lost.
            MQTTException: a subscription was refused.
        """
        first = self.sock.read(1)
        if first is None:
            return None
        if not first:
            raise OSError(-1)
        self._plain.settimeout(_PATIENCE)
        op, size = first[0], self._size()
        if op & 0xF0 == _PUBLISH:
            self._publish(op, size)
        elif size > 4:
            self._skip(size)
        elif size:
            answer = self._read(size)
            if op == _SUBACK and answer[size - 1] == 0x80:
                raise MQTTException(0x80)
        return op

    def check_msg(self):
        """Read one packet if one has come."""
        self._plain.setblocking(False)
        try:
            return self.wait_msg()
        finally:
            self._plain.settimeout(_PATIENCE)

    # ------------------------------------------------------------------- bytes

    def _publish(self, op, size):
        length = struct.unpack(">H", self._read(2))[0]
        if length > _TOPIC:
            self._skip(size - 2)
            return
        topic = str(self._read(length), "utf-8")
        pid = bytes(self._read(2)) if op & 6 else b""
        size -= 2 + length + len(pid)
        if size > len(self._view):
            self._skip(size)
            self.skipped = topic, size
        elif self._hear:
            self._hear(topic, self._read(size))
        else:
            self._skip(size)
        if pid:
            self._send(_PUBACK, pid)

    def _next(self):
        self._pid = self._pid % 0xFFFF + 1
        return struct.pack(">H", self._pid)

    def _send(self, op, head, body=b""):
        size = len(head) + len(body)
        packet = bytearray((op,))
        while size > 127:
            packet.append(size & 127 | 128)
            size >>= 7
        packet.append(size)
        packet.extend(head)
        self._write(packet)
        if len(body):
            self._write(body)

    def _write(self, data):
        view, at = memoryview(data), 0
        while at < len(view):
            at += self.sock.write(view[at:]) or 0

    def _size(self):
        size = shift = 0
        while shift < 28:
            byte = self._read(1)[0]
            size |= (byte & 127) << shift
            if byte < 128:
                return size
            shift += 7
        raise OSError(-1)

    def _read(self, size):
        """A view of the next bytes, until more is read."""
        view, at = self._view[:size], 0
        while at < size:
            got = self.sock.readinto(view[at:])
            if not got:
                raise OSError(-1)
            at += got
        return view

    def _skip(self, size):
        while size:
            size -= len(self._read(min(size, len(self._view))))


def _at_once(sock):
    """Send small packets without waiting for the acknowledgement of those before, if the board can."""
    try:
        sock.setsockopt(getattr(socket, "IPPROTO_TCP", 6), getattr(socket, "TCP_NODELAY", 1), 1)
    except OSError:
        pass


def _add(fields, text):
    data = text.encode() if isinstance(text, str) else text
    fields.extend(struct.pack(">H", len(data)))
    fields.extend(data)
