"""Training in plain MicroPython: linear and logistic models, and perceptrons with ReLU between their layers.

Names, order and losses of the tensors are those of `midge.Linear`, `midge.Logistic` and `midge.MLP`.
"""

import gc
from array import array
from math import exp, isfinite, log
from random import randrange

_RESERVE = 12288
"""Bytes of heap that slopes leave to all else."""


class Perceptron:
    """A model's layers, as its tensors say them."""

    def __init__(self, model):
        """Find the layers.

        Raises:
            ValueError: the model has others than weights and biases.
        """
        layers = []
        tensors = {tensor.name: tensor for tensor in model.shared}
        for place in range(len(tensors)):
            weight = tensors.get(f"layers.{2 * place}.weight")
            bias = tensors.get(f"layers.{2 * place}.bias")
            if weight and bias:
                layers.append((weight.at, bias.at, weight.sides[1], weight.sides[0]))
        if not layers or 2 * len(layers) != len(tensors):
            raise ValueError("this device trains linear models and perceptrons, and not this one")
        self.values, self._size, self._layers = model.values, model.size, layers
        self.inputs, self.outputs = layers[0][2], layers[-1][3]
        self._mean, self._scale = model.constant("input_mean"), model.constant("input_scale")
        self._target = model.constant("target_mean"), model.constant("target_scale")
        self._binary = self.outputs == 1 and not self._target[0]
        self._z = [array("f", range(size)) for size in [self.inputs] + [layer[3] for layer in layers]]
        self._back = array("f", range(max(layer[2] for layer in layers)))
        gc.collect()
        room = gc.mem_free() > 4 * model.size + _RESERVE
        self._slopes = array("f", range(model.size)) if room else None
        """Of a mini-batch. Without, its steps are taken row by row: to the first order the same."""

    def train(self, rows, plan, tick=None):
        """Mini-batch SGD on the model's values, as the plan asks. Returns the header's fields about it.

        `tick` is called after each row: a training may take longer than the broker's patience.
        """
        size = min(plan.get("batch_size") or 16, rows.count)
        steps = plan.get("local_steps") or -(-(plan.get("epochs") or 0) * rows.count // size) or 10
        rate = (plan.get("learning_rate") or 0.1) / size
        pull = plan.get("proximal") or 0
        values, total, seen = self.values, 0.0, 0
        start = array("f", values) if pull else None
        slopes = self._slopes if size > 1 else None
        order = array("H", range(rows.count))
        for _ in range(steps):
            if slopes:
                for place in range(self._size):
                    slopes[place] = 0
            for _ in range(size):
                total += self._learn(rows, _drawn(order, seen), slopes, rate)
                seen += 1
                if tick:
                    tick()
            for place in range(self._size) if slopes or pull else ():
                if pull:
                    values[place] -= rate * size * pull * (values[place] - start[place])
                if slopes:
                    values[place] -= rate * slopes[place]
        loss = total / seen
        metrics = {"loss": loss} if -1e30 < loss < 1e30 else {}
        return {"examples": rows.count, "steps": steps, "metrics": metrics}

    def predict(self, inputs):
        """What the model gives for one row: outputs, of regression in the label's units."""
        outputs = list(self._forward(inputs, 0))
        if self._target[0]:
            return [outputs[0] * self._target[1][0] + self._target[0][0]]
        return outputs

    def _forward(self, data, at):
        """The outputs for the row that begins at `at`; inputs of each layer stay in `_z`."""
        z, mean, scale, values = self._z[0], self._mean, self._scale, self.values
        for place in range(self.inputs):
            value = data[at + place]
            if mean:
                channel = place if len(mean) > 1 else 0
                value = (value - mean[channel]) / scale[channel]
            z[place] = value if isfinite(value) else 0  # a missing value is as the mean
        for index, (weight, bias, count, outputs) in enumerate(self._layers):
            z, after = self._z[index], self._z[index + 1]
            hidden = index + 1 < len(self._layers)
            for unit in range(outputs):
                total, begin = values[bias + unit], weight + unit * count
                for place in range(count):
                    total += values[begin + place] * z[place]
                after[unit] = 0 if hidden and total < 0 else total
        return after

    def _learn(self, rows, row, slopes, rate):
        """The loss of a row, whose gradient is added to `slopes`; without them a step is taken at once."""
        at = row * (rows.inputs + 1)
        output = self._forward(rows.data, at)
        loss = self._slope(output, rows.data[at + rows.inputs])
        for index in range(len(self._layers) - 1, -1, -1):
            weight, bias, count, outputs = self._layers[index]
            z, slope = self._z[index], self._z[index + 1]
            back = self._back
            for place in range(count) if index else ():
                total = 0.0
                for unit in range(outputs):
                    total += self.values[weight + unit * count + place] * slope[unit]
                back[place] = total if z[place] > 0 else 0
            target, factor = (slopes, 1) if slopes else (self.values, -rate)
            for unit in range(outputs):
                change = factor * slope[unit]
                target[bias + unit] += change
                for place in range(count) if change else ():
                    target[weight + unit * count + place] += change * z[place]
            for place in range(count) if index else ():
                z[place] = back[place]
        return loss

    def _slope(self, output, label):
        """The loss; the outputs become its gradient by them."""
        mean, scale = self._target
        if mean:
            output[0] -= (label - mean[0]) / scale[0]
            loss = output[0] * output[0]
            output[0] *= 2
            return loss
        if self._binary:
            logit = output[0]
            small = exp(-abs(logit))
            output[0] = (1 / (1 + small) if logit >= 0 else small / (1 + small)) - label
            return max(logit, 0) - logit * label + log(1 + small)
        largest, told = max(output), output[int(label)]
        total = 0.0
        for place in range(self.outputs):
            output[place] = exp(output[place] - largest)
            total += output[place]
        for place in range(self.outputs):
            output[place] /= total
        output[int(label)] -= 1
        return log(total) + largest - told


def _drawn(order, seen):
    """The next row, drawn without replacement pass by pass."""
    place = seen % len(order)
    other = randrange(place, len(order))
    order[place], order[other] = order[other], order[place]
    return order[place]
