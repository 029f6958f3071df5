"""The device's own data: the newest rows, and what is told of them for the federation's normalisation."""

import struct
from array import array


class Rows:
    """The newest `capacity` rows of inputs and a label, in float32; a value that is missing is NaN."""

    def __init__(self, inputs, capacity=64, *, least=32, features=None):
        """`least`: rows below which nothing is told or trained; `features`: names of the inputs, in order."""
        self.inputs, self.capacity, self.least, self.features = inputs, capacity, least, features
        self.data = array("f", range(capacity * (inputs + 1)))
        self.count = self._next = 0

    def add(self, inputs, label):
        """Add a row, in the place of the oldest one if there is no room."""
        if len(inputs) != self.inputs:
            raise ValueError(f"a row has {self.inputs} inputs, not {len(inputs)}")
        at = self._next * (self.inputs + 1)
        for value in inputs:
            self.data[at] = value
            at += 1
        self.data[at] = label
        self._next = (self._next + 1) % self.capacity
        self.count = min(self.count + 1, self.capacity)

    def moments(self, name, channels):
        """Counts, means and sums of squared deviations of `input` or `target`, as statistics have them.

        Of `input` there is a channel for each, or one for all.
        """
        counts, means, squares = b"", b"", b""
        columns = range(self.inputs) if name == "input" else (self.inputs,)
        for some in (columns,) if channels == 1 else [(column,) for column in columns]:
            count, mean, square = 0, 0.0, 0.0
            for place in range(self.count * len(some)):
                row, column = divmod(place, len(some))
                value = self.data[row * (self.inputs + 1) + some[column]]
                if not -1e30 < value < 1e30:  # missing, or what some sensors say instead
                    continue
                count += 1
                deviation = value - mean
                mean += deviation / count
                square += deviation * (value - mean)
            counts += struct.pack("<q", count)
            means += struct.pack("<d", mean)
            squares += struct.pack("<d", square)
        return counts + means + squares
