"""A device: a pump that learns how its power depends on speed, pressure and temperature."""

import numpy as np

import midge

rng = np.random.default_rng()
x = rng.normal(size=(200, 3)).astype(np.float32)  # this pump's own readings; they never leave it
y = x @ np.float32([2.0, -1.0, 0.5]) + rng.normal(scale=0.1, size=200).astype(np.float32)


def train(parameters, plan):
    w = parameters["w"].copy()
    for _ in range(10):
        w -= 0.1 * x.T @ (x @ w - y) / len(x)
    return midge.Fit({"w": w}, examples=len(x))


app = midge.Device("mqtt://localhost", federation="pumps", name="pump-1", train=train, outbox="pump-1.outbox")

if __name__ == "__main__":
    app.run()
