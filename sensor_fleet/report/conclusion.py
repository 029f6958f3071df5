"""The end of a run: measure its baselines, and write its report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.numpy import load_file

from midge.iot_client.training.fit import Parameters
from midge.sensor_fleet.baselines import POOLED_SECONDS, Baselines
from midge.sensor_fleet.demo import Demo
from midge.sensor_fleet.report.page import report
from midge.sensor_fleet.report.reading import BASELINES_FILE, RESULT_FILE, read

REPORT_FILE: Final = "report.html"


def conclude(demo: Demo, outcome: Mapping[str, Any], pooled_seconds: float = POOLED_SECONDS) -> dict[str, Any]:
    """Measure the baselines and write all files; return the outcome with `central` and `alone`, None if not known.

    `pooled_seconds` bounds the time of pooled training; `central_converged` says whether it was enough.
    """
    found: dict[str, Any] = {}
    if demo.loaded is not None:
        data, model = demo.loaded
        setting = demo.setting
        baselines = Baselines(
            data,
            model,
            setting.plan(),
            engine="torch" if setting.engine == "torch" else "numpy",
            seed=setting.seed,
            trainings=demo.progress.updates["accepted"],
            pooled_seconds=pooled_seconds,
        )
        found = baselines.measure(_model(demo.directory / "model.safetensors"))
        _write(demo.directory / BASELINES_FILE, found)
    result = {
        **outcome,
        "central": found["central"]["value"] if found else None,
        "central_converged": found["central"]["converged"] if found else None,
        "alone": found["alone"]["mean"] if found else None,
    }
    _write(demo.directory / RESULT_FILE, result)
    write_report(demo.directory)
    return result


def write_report(directory: Path, to: Path | None = None) -> Path:
    """Read a run and write its page, by default into its directory; return the path.

    Raises:
        ValueError: the directory holds no run.
        OSError: the page cannot be written.
    """
    path = to or directory / REPORT_FILE
    path.write_text(report(read(directory)), encoding="utf-8")
    return path


def _model(path: Path) -> Parameters | None:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError):
        return None


def _write(path: Path, plain: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
