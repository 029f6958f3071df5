"""A device: a shop app that learns which item follows which, from what was opened on this device. NumPy only.

The model is two tables with a row for each item: `embedding.before` of the item that is open, `embedding.after` of the
one that comes next. A device knows a few hundred of the items, so its training changes only their rows.
"""

import numpy as np

import midge

ITEMS, GENRES, WIDTH = 2_000, 20, 16
NEGATIVES, STRANGERS = 8, 100
"""Items that did not follow, drawn for each pair from those that the device knows and some that are new each time:
without strangers, items of other genres would score higher than all that the device knows and did not open next."""
RATE, STEPS, BATCH = 1.0, 100, 32
ROWS = ("embedding*",)


def initial() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "embedding.before": rng.normal(0, 0.1, (ITEMS, WIDTH)).astype(np.float32),
        "embedding.after": rng.normal(0, 0.1, (ITEMS, WIDTH)).astype(np.float32),
    }


def visits(seed: int, device: int, count: int) -> np.ndarray:
    """What was opened on a device, pairs (count, 2) of items: its owner likes two genres, each a ring of items.

    Two of three times the next item is one of the three that follow in the ring, otherwise any of the genre; items at
    the beginning of a ring are opened more often.
    """
    rng = np.random.default_rng((seed, device))
    size = ITEMS // GENRES
    liked = rng.choice(GENRES, 2, replace=False)
    genre = rng.choice(liked, count)
    first = np.minimum(rng.geometric(3 / size, count), size) - 1
    near = (first + rng.integers(1, 4, count)) % size
    then = np.where(rng.random(count) < 2 / 3, near, rng.integers(0, size, count))
    return np.stack([genre * size + first, genre * size + then], axis=1)


def train(parameters, plan: midge.Plan, pairs: np.ndarray) -> midge.Fit:
    """Skip-gram with negative sampling (Mikolov et al., 2013), by SGD on the rows of the items that occur here."""
    rng = np.random.default_rng(plan.seed)
    before, after = (np.array(parameters[name]) for name in ("embedding.before", "embedding.after"))
    known = np.concatenate([np.unique(pairs[:, 1]), rng.choice(ITEMS, STRANGERS, replace=False)])
    for _ in range(plan.local_steps or STEPS):
        batch = pairs[rng.integers(0, len(pairs), BATCH)]
        wrong = rng.choice(known, (BATCH, NEGATIVES))
        item, others = batch[:, 0], np.concatenate([batch[:, 1:], wrong], axis=1)
        own, theirs = before[item], after[others]
        error = 1 / (1 + np.exp(-np.einsum("bw,bnw->bn", own, theirs)))
        error[:, 0] -= 1
        np.subtract.at(before, item, RATE / (1 + NEGATIVES) * np.einsum("bn,bnw->bw", error, theirs))
        np.subtract.at(after, others, RATE / (1 + NEGATIVES) * error[:, :, None] * own[:, None])
    return midge.Fit({"embedding.before": before, "embedding.after": after}, len(pairs), STEPS)


def hits(parameters, pairs: np.ndarray, most: int = 10) -> float:
    """The share of pairs of which the item that came next is among the ten that the model suggests of all."""
    scores = parameters["embedding.before"][pairs[:, 0]] @ parameters["embedding.after"].T
    own = scores[np.arange(len(pairs)), pairs[:, 1]]
    return float(np.mean(np.isfinite(own) & ((scores > own[:, None]).sum(axis=1) < most)))


def device(name: str, url: str, pairs: np.ndarray, outbox: str | None = None, **more) -> midge.Device:
    """One device, with what was opened on it."""
    return midge.Device(
        url,
        federation="next-item",
        name=name,
        train=lambda parameters, plan: train(parameters, plan, pairs),
        outbox=outbox,
        **more,
    )
