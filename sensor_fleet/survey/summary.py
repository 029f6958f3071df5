"""Summaries of the devices of a data set, as each would give them itself."""

from midge.iot_client.data.row_summary import summarise as of_rows
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.features import by_channel, raw
from midge.wire.row_statistics import RowStatistics


def summarise(device: str, rows: Rows, data: FleetData) -> RowStatistics:
    """The summary of a device's rows, in the order in which they were recorded."""
    channels = by_channel(raw(rows.x, data.kind), data.kind)
    return of_rows(device, channels.reshape(len(rows), -1, channels.shape[1]), rows.y, data.classes or 0)
