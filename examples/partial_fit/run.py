"""A model of scikit-learn that learns by `partial_fit`, on this machine: python examples/partial_fit/run.py."""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

import midge

URL = "mqtt://localhost"  # `midge.local` puts its own broker in the place of it
CLASSES = np.arange(10)
SHAPES = {"coef": (10, 64), "intercept": (10,)}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=10)
parser.add_argument("--seconds", type=float, default=20)
parser.add_argument("--enough", type=float, default=2.0, help="an accuracy at which to stop")
args = parser.parse_args()

x, y = load_digits(return_X_y=True)
x = x / 16
order = np.random.default_rng(0).permutation(len(x))
unseen, *parts = np.array_split(order, args.devices + 1)


def loaded(parameters) -> SGDClassifier:
    """A classifier with these weights."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.02)
    model.classes_, model.n_features_in_ = CLASSES, 64
    model.coef_, model.intercept_ = parameters["coef"].astype(float), parameters["intercept"].astype(float)
    return model


def device(number: int) -> midge.Device:
    mine = parts[number]

    def train(parameters, plan) -> midge.Fit:
        model = loaded(parameters)
        for _ in range(plan.epochs or 1):
            model.partial_fit(x[mine], y[mine], classes=CLASSES)
        return midge.Fit({"coef": model.coef_, "intercept": model.intercept_}, examples=len(mine))

    return midge.Device(URL, federation="digits", name=f"device-{number}", train=train)


server = midge.Aggregator(
    URL,
    federation="digits",
    initial={name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
    evaluate=lambda parameters: {"accuracy": loaded(parameters).score(x[unseen], y[unseen])},
    store="digits",
)
midge.local(
    server,
    [device(number) for number in range(args.devices)],
    seconds=args.seconds,
    until=lambda found: found["accuracy"] >= args.enough,
)
