"""The types of the events that `on_event` gets.

A type checker knows the fields of an event by its name, from `event_types.pyi`; at run time an event is a dict:

    from midge.event_types import DeviceEvent

    def listen(event: DeviceEvent) -> None:
        if event["event"] == "receipt":
            print(event["seq"], event["verdict"])

    midge.Device(..., on_event=listen)

Fields other than `event`, `time` and the `device` of a device's own events may be missing if they are empty.
"""

from typing import Any

AggregatorEvent = dict[str, Any]
DeviceEvent = dict[str, Any]
