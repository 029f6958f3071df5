"""Midge for MicroPython: a device of a federation over MQTT, on a microcontroller."""

import gc

gc.collect()
gc.threshold(4096)  # bytes: what lives long then lies close together, and leaves room for large arrays

from midge.device import Device  # noqa: E402 - what is imported lives long, too
from midge.link import Stopped  # noqa: E402
from midge.rows import Rows  # noqa: E402

__all__ = ("Device", "Rows", "Stopped")
__version__ = "0.1.0"
