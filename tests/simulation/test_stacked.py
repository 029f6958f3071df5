"""A stack of devices is trained to what each would come to by itself."""

import numpy as np
import pytest

from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.numpy_cnn import CNN
from midge.iot_client.training.numpy_models import MLP, Network
from midge.sensor_fleet.simulation import stacked
from midge.sensor_fleet.simulation.stacked import Job, Stack, TrainingRows
from midge.wire.messages import Plan
from midge.wire.schema import Role, Schema


@pytest.mark.parametrize(
    ("net", "outputs"),
    [
        (MLP(20, (24, 12), 10), 10),
        (MLP(20, (), 3), 3),
        (MLP(20, (16,), 1, "regression"), 1),
        (MLP(20, (5,), 1, "binary"), 1),
        (MLP(20, (8, 8), 20, "reconstruction"), 20),
        (CNN((6, 7), 4, width=4), 4),
        (CNN((8, 8), 1, "binary", 4), 1),
    ],
)
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_stack_trains_as_each_device_does(
    net: Network, outputs: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unequal rows, batches, steps, epochs, rates and proximal terms, none of which may leak to a neighbour.

    Seen to fail where rows that fill up a batch counted, where a device took one step more than its own, and where all
    devices had the proximal term of the first.
    """
    monkeypatch.setattr(stacked, "AT_ONCE", at_once)
    rng, task = np.random.default_rng(0), net.task
    assert isinstance(net, MLP | CNN)
    parameters = net.initial(1)
    parameters["input_scale"] += np.float32(1)
    if task == "regression":
        parameters["target_mean"] += np.float32(2)
    roles: dict[str, Role] = {name: "frozen" for name in parameters if name.startswith(("input", "target"))}
    schema = Schema.of(parameters, roles)
    devices = []
    for number in range(12):
        count = int(rng.integers(3, 40))
        x = rng.normal(size=(count, *net.shape)).astype(np.float32)
        targets: dict[str, np.ndarray] = {
            "classification": rng.integers(0, outputs, count),
            "regression": rng.normal(size=count).astype(np.float32),
            "binary": rng.integers(0, 2, count),
            "reconstruction": x,
        }
        devices.append(TrainingRows(x, targets[task], number))
    recipe = Recipe(local_steps=6)
    plans = [
        Plan(
            seed=7 * number,
            learning_rate=None if number % 4 else 0.05,
            local_steps=None if number % 3 else 2 + number,
            epochs=2 if number % 2 else None,
            batch_size=(16, 5)[number % 2],
            proximal=0.1 * (number % 4),
        )
        for number in range(len(devices))
    ]
    jobs = [Job(number, schema.flatten(parameters), plan) for number, plan in enumerate(plans)]
    together = Stack(net, schema, parameters, recipe, devices).train(jobs)
    for job, values in zip(jobs, together, strict=True):
        rows = devices[job.device]
        fit = net.trainer(rows.x, rows.y, seed=job.device, recipe=recipe)(parameters, job.plan)
        np.testing.assert_allclose(values, schema.flatten(fit.parameters), atol=2e-6)
        assert Stack(net, schema, parameters, recipe, devices).steps(job) == fit.steps


def test_diverging_device_takes_no_other_with_it() -> None:
    net = MLP(4, (3,), 2)
    parameters = net.initial(0)
    schema = Schema.of(parameters, {"input_mean": "frozen", "input_scale": "frozen"})
    rng = np.random.default_rng(0)
    devices = [TrainingRows(rng.normal(size=(9, 4)).astype(np.float32), rng.integers(0, 2, 9), n) for n in range(2)]
    stack = Stack(net, schema, parameters, Recipe(), devices)
    start = schema.flatten(parameters)
    wild, calm = stack.train([Job(0, start, Plan(learning_rate=1e30)), Job(1, start, Plan())])
    assert not np.isfinite(wild).all()
    np.testing.assert_array_equal(calm, stack.train([Job(1, start, Plan())])[0])


@pytest.mark.parametrize(("image", "at_once"), [((8, 8), 16), ((28, 28), 1), ((16, 16, 3), 3)])
def test_a_stack_of_convolutional_models_has_the_bits_of_each(image: tuple[int, ...], at_once: int) -> None:
    """In stacks that are as large as its images allow. Seen to fail where a gradient was the mean over devices too."""
    net = CNN(image, 4, width=8)
    assert net.at_once == at_once
    parameters = net.initial(0)
    schema = Schema.of(parameters, {"input_mean": "frozen", "input_scale": "frozen"})
    rng = np.random.default_rng(0)
    devices = [
        TrainingRows(rng.normal(size=(20, *image)).astype(np.float32), rng.integers(0, 4, 20), number)
        for number in range(5)
    ]
    start = schema.flatten(parameters)
    jobs = [Job(number, start, Plan(seed=number, local_steps=3)) for number in range(5)]
    together = Stack(net, schema, parameters, Recipe(), devices).train(jobs)
    for job, values in zip(jobs, together, strict=True):
        rows = devices[job.device]
        fit = net.trainer(rows.x, rows.y, seed=job.device)(parameters, job.plan)
        np.testing.assert_array_equal(values, schema.flatten(fit.parameters))
