"""An ESP32 that measures, trains and sleeps: an example of `main.py`."""

import time

import machine
import network
from midge.mqtt import MQTTClient

from midge import Device, Rows

SLEEP = 600
"""Seconds between two times awake."""


def join(name, password):
    """Join the network."""
    station = network.WLAN(network.STA_IF)
    station.active(True)
    station.connect(name, password)
    for _ in range(100):
        if station.isconnected():
            return
        time.sleep_ms(100)
    machine.deepsleep(1000 * SLEEP)  # no network: another time


rows = Rows(inputs=2, capacity=64)
sensor, heater = machine.ADC(34), machine.ADC(35)
for _ in range(64):
    rows.add((sensor.read_u16() / 65535, time.localtime()[3]), heater.read_u16() / 65535)
    time.sleep_ms(50)
join("network", "password")
client = MQTTClient("", "192.168.1.10", user="pump-17", password="secret", keepalive=60)  # noqa: S106 - yours
Device(client, "pumps", "pump-17", rows).run_once(seconds=90, sleep=SLEEP)
machine.deepsleep(1000 * SLEEP)
