"""A device of a ledger over other ways than plain TCP by `midge.mqtt`: `linked.py PORT UPDATES FOLDER WAY [CA]`.

WAY is `tls`, or `umqtt` for a client that has but what `umqtt.simple`'s has, or `plain`.
"""

import json
import ssl
import sys

from midge.mqtt import MQTTClient

from midge import Device, Stopped

port, updates, folder, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Umqtt:
    """The methods and attributes of `umqtt.simple.MQTTClient`, and no others."""

    def __init__(self, client):
        self._client = client
        self.keepalive = client.keepalive

    def __setattr__(self, name, value):
        if name == "client_id":
            self._client.client_id = value
        super().__setattr__(name, value)

    @property
    def sock(self):
        return self._client.sock

    def set_callback(self, f):
        self._client.set_callback(lambda topic, msg: f(topic.encode(), bytes(msg)))

    def set_last_will(self, topic, msg, retain=False, qos=0):
        self._client.set_last_will(topic, msg, retain, qos)

    def connect(self, clean_session=True, timeout=None):
        return self._client.connect(clean_session, timeout)

    def disconnect(self):
        self._client.disconnect()

    def ping(self):
        self._client.ping()

    def publish(self, topic, msg, retain=False, qos=0):
        self._client.publish(topic, msg, retain, qos)

    def subscribe(self, topic, qos=0):
        self._client.subscribe(topic, qos)

    def wait_msg(self):
        return self._client.wait_msg()

    def check_msg(self):
        return self._client.check_msg()


def hear(event, about):
    counts[event] = counts.get(event, 0) + 1
    if event in ("trouble", "too_large", "damaged", "unreachable", "disconnected", "renewed"):
        print(json.dumps({"event": event, "why": str(about)}))


def train(model, plan, tick):
    if device.outbox.next > updates:
        return None
    model.values[device.outbox.next - 1] += 1
    tick()
    return {"examples": 1}


counts, context = {}, None
if way == "tls":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    with open(sys.argv[5], "rb") as file:
        context.load_verify_locations(cadata=file.read())
client = MQTTClient("", "127.0.0.1", port, keepalive=30, ssl=context, largest=1100)
device = Device(Umqtt(client) if way == "umqtt" else client, "ledger", "device-0", None, train, folder, hear)
try:
    device.run(lambda: device.outbox.next > updates and not device.outbox.update)
except Stopped as stopped:
    print(json.dumps({"event": "stopped", "why": str(stopped)}))
print(json.dumps({"event": "done", "counts": counts}))
