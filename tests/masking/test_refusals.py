"""What needs one device's values is refused by name, where the federation is configured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import balanced, ca2fl, fedasync, secure
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.strategy import Strategy
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.config import DeviceConfig
from midge.iot_client.masking_requirement import RequireSecure
from midge.sensor_fleet.data import load
from midge.sensor_fleet.models import model_for
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire import signing
from midge.wire.messages import Plan

PLAN = secure().plan


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"norm_limit": 10.0}, "norm_limit"),
        ({"combine": "centred"}, "combine='centred'"),
        ({"combine": "trimmed", "trim": 0.1}, "combine='trimmed'"),
        ({"robust": True}, "balanced"),
        ({"even_steps": True}, "even_steps"),
        ({"weigh_examples": True}, "weigh_examples"),
        ({"fairness": 4.0}, "fairness"),
        ({"calibration": 1.0}, "calibration"),
        ({"steers_local_steps": True}, "steers_local_steps"),
        ({"plan": Plan(evaluate=60.0)}, "plan.evaluate"),
        ({"plan": Plan(seconds=5.0)}, "plan.seconds"),
        ({"buffer_size": 4, "k_min": 5}, "buffer_size=4"),
    ],
)
def test_a_strategy_that_reads_single_updates_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match="secure aggregation hides") as error:
        secure(**fields)
    assert named in str(error.value)


def test_a_bound_by_the_fleets_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="the norm of one delta"):
        replace(secure(), clip=3.0)


def test_noise_of_the_aggregator_is_refused() -> None:
    with pytest.raises(ValueError, match="privacy without honest"):
        replace(
            secure(),
            plan=secure().plan.model_copy(update={"feedback": False}),
            privacy=Privacy(clip=1.0, noise=4.0, epsilon=8.0),
        )


def test_masking_in_another_preset_is_refused() -> None:
    for make in (balanced, ca2fl, lambda plan: fedasync(form="mixing", plan=plan)):
        with pytest.raises(ValueError, match="secure aggregation hides"):
            make(plan=PLAN)


def config(tmp_path: Path, strategy: Strategy, **more: Any) -> AggregatorConfig:
    (tmp_path / "release.key").write_bytes(signing.new_key().pem())
    given = {
        "initial": {"w": np.zeros(3, np.float32)},
        "release_key": tmp_path / "release.key",
        "helper_key": signing.new_key().public_pem(),
        **more,
    }
    return AggregatorConfig(
        connector=Twin().connect, federation="f", store=tmp_path / "store", strategy=strategy, **given
    )


def test_an_aggregator_needs_the_keys_and_asks_for_no_statistics(tmp_path: Path) -> None:
    config(tmp_path, secure())
    for missing in ("helper_key", "release_key"):
        with pytest.raises(ValueError, match="helper_key"):
            config(tmp_path, secure(), **{missing: None})
    with pytest.raises(ValueError, match="moments"):
        config(
            tmp_path,
            secure(),
            initial={
                "w": np.zeros(3, np.float32),
                "x_mean": np.zeros(2, np.float32),
                "x_scale": np.ones(2, np.float32),
            },
            roles={"x_mean": "frozen", "x_scale": "frozen"},
            moments={"x": 2},
        )
    with pytest.raises(ValueError, match="GroupNorm"):
        config(tmp_path, secure(), roles={"w": "averaged"})


def test_a_device_needs_keys_to_mask(tmp_path: Path) -> None:
    required = RequireSecure(helper_key=signing.new_key().public_pem())
    with pytest.raises(ValueError, match="signing_key"):
        DeviceConfig(
            connector=Twin().connect,
            federation="f",
            name="pump",
            train=lambda *_: None,  # type: ignore[arg-type]
            outbox=tmp_path / "pump.outbox",
            secure=required,
        )
    with pytest.raises(ValueError, match="at least 2"):
        RequireSecure(helper_key=b"", k_min=1)


def test_a_simulation_says_that_it_has_no_mask_helper() -> None:
    """It ran to its end, and the model never moved."""
    data = load("digits", devices=10)
    with pytest.raises(ValueError, match="no mask helper"):
        simulate(model_for(data), data=data, strategy=secure(k_min=3, buffer_size=5), seconds=5.0)
