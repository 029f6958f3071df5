"""How a delta becomes bytes: `float32`, `int8:B` and `uq:k|rice`, the same bytes as Midge's own encoder.

Values are read from the model's vector and written to a sink, some at a time. `one` is a float32 on which each result
is rounded, as float32 arithmetic does: on boards whose floats are 32 bits it changes nothing.
"""

from array import array

from midge import rice

FALLBACK = "int8:256"
"""What every aggregator takes."""
_SMALL = 256
"""Values of a small tensor, at most: it is int8 with a scale of its own."""
_LEAST, _HALVINGS = 0.02, 8
"""Share of a tensor's energy that its step must say, or it is halved, and how often at most."""


def parse(name):
    """Name and number of the codec that this device answers with: the one asked for, or `int8:256`."""
    if name == "float32":
        return name, 0
    try:
        if name.startswith("int8:") and 16 <= int(name[5:]) <= 65536:
            return name, int(name[5:])
        if name.startswith("uq:") and name.endswith("|rice") and 0 < float(name[3:-5]) < 100:
            return name, float(name[3:-5])
    except ValueError:
        pass
    return FALLBACK, 256


class Encoder:
    """A delta in one codec. What it holds beside the delta is a step for each tensor."""

    def __init__(self, model, codec):
        self.codec, self._number = parse(codec)
        self._values, self._one = model.values, array("f", (0,))
        self._filled = [(tensor.role, tensor.at, tensor.size) for tensor in model.shared if tensor.size]
        self._trained = [(at, size) for role, at, size in self._filled if role == "trained"]
        self._averaged = [(at, size) for role, at, size in self._filled if role == "averaged"]
        self._steps = {}
        self._coarse = self.codec.startswith("uq")
        if self._coarse:
            for at, size in self._trained:
                self._steps[at] = self._step(at, size) if size > _SMALL else self._scale(_places(((at, size),)))
            counted = rice.Sink(None)
            self._write_coded(counted)
            self._coarse = counted.size < 4 * sum(size for _, size in self._trained)

    def write(self, write):
        """Write the body with the function `write`."""
        sink = rice.Sink(write)
        if self.codec.startswith("int8"):
            self._write_int8(sink, list(self._trained), self._number)
        else:
            if self.codec != "float32":
                sink.byte(1 if self._coarse else 0)
            if self._coarse:
                self._write_coded(sink)
            else:
                self._write_floats(sink, self._trained)
        self._write_floats(sink, self._averaged)
        sink.flush()

    def left(self):
        """Of `uq`: what a reader will miss, value by value."""
        one, values = self._one, self._values
        for role, at, size in self._filled:
            step, top = self._steps.get(at), 32767 if size > _SMALL else 127
            for place in range(at, at + size):
                if role == "averaged" or not self._coarse:
                    yield 0.0
                    continue
                one[0] = self._integer(place, step, top) * step[0]
                one[0] = values[place] - one[0]
                yield one[0]

    # ------------------------------------------------------------- quantisation

    def _step_of(self, step):
        """A step and its inverse, both float32."""
        one = self._one
        one[0] = step
        step = one[0]
        one[0] = 1 / step if step > 1e-37 else 0
        return step, one[0]

    def _integer(self, place, step, top):
        self._one[0] = self._values[place] * step[1]
        number = round(self._one[0])
        return max(-top, min(top, number))

    def _scale(self, places):
        largest = 0.0
        for place in places:
            largest = max(largest, abs(self._values[place]))
        return self._step_of(largest / 127)

    def _step(self, at, size):
        values, one, energy = self._values, self._one, 0.0
        for place in range(at, at + size):
            energy += values[place] * values[place]
        step = self._step_of(min(self._number * (energy / size) ** 0.5, 3.4028234e38))
        for _ in range(_HALVINGS):
            missing = 0.0
            for place in range(at, at + size):
                one[0] = self._integer(place, step, 32767) * step[0]
                one[0] = values[place] - one[0]
                missing += one[0] * one[0]
            if missing <= (1 - _LEAST) * energy:
                break
            step = self._step_of(step[0] / 2)
        return step

    # -------------------------------------------------------------------- bytes

    def _write_floats(self, sink, places):
        for place in _places(places):
            sink.float(self._values[place])

    def _write_int8(self, sink, places, block):
        """Scales of blocks, then the integers; the last block may be shorter."""
        count = sum(size for _, size in places)
        scales = []
        trained = _places(places)
        for start in range(0, count, block):
            scales.append(self._scale(_some(trained, min(block, count - start))))
            sink.float(scales[-1][0])
        for index, place in enumerate(_places(places)):
            sink.byte(self._integer(place, scales[index // block], 127))

    def _write_coded(self, sink):
        small = [(at, size) for at, size in self._trained if size <= _SMALL]
        large = [(at, size) for at, size in self._trained if size > _SMALL]
        for at, _ in small:
            sink.float(self._steps[at][0])
        for at, size in small:
            for place in range(at, at + size):
                sink.byte(self._integer(place, self._steps[at], 127))
        if not large:
            return
        for at, _ in large:
            sink.float(self._steps[at][0])
        count = 0
        for _ in self._sent(large):
            count += 1
        sink.u32(count)
        rice.write(sink, lambda: (gap for gap, _ in self._sent(large)), count)
        byte = bit = 0
        for _, number in self._sent(large):
            if number < 0:
                byte |= 1 << bit
            bit += 1
            if bit == 8:
                sink.byte(byte)
                byte = bit = 0
        if bit:
            sink.byte(byte)
        rice.write(sink, lambda: (abs(number) - 1 for _, number in self._sent(large)), count)

    def _sent(self, places):
        """The integers that are not zero, each with how many zeros come before it."""
        gap = 0
        for at, size in places:
            step = self._steps[at]
            for place in range(at, at + size):
                number = self._integer(place, step, 32767)
                if number:
                    yield gap, number
                    gap = 0
                else:
                    gap += 1


def _places(parts):
    for at, size in parts:
        yield from range(at, at + size)


def _some(places, count):
    for _ in range(count):
        yield next(places)
