"""Midge for MicroPython: a device of a federation over MQTT, on a microcontroller."""

from midge.device import Device
from midge.link import Stopped
from midge.rows import Rows

__all__ = ("Device", "Rows", "Stopped")
__version__ = "0.1.0"
