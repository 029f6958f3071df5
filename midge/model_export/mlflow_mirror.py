"""A federation in MLflow: a run with what it measures, and its registered versions in MLflow's model registry.

All of it may be repeated: what MLflow has is looked up by tags and not written again. So whatever ends the process, or
MLflow's server, between two calls, the next attempt completes what is missing.
"""

import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.aggregator.core.registry import Registered
from midge.aggregator.store.registered import RegistryReading, facts
from midge.model_export.files import write_hub_folder
from midge.wire.lineage import decode_snapshot
from midge.wire.topics import ALIASES

# Before MLflow is imported: it reports its use to its maker, and asks a server that is away for minutes.
for _name, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
):
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - see above; an extra
from mlflow.entities import Metric, Param  # noqa: E402

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_AT_ONCE = 1000
"""Metrics in a request: MLflow's limit."""
_KEY = "midge.key"
"""The tag that says which version of which lineage a run or a model version is."""


@dataclass(frozen=True, slots=True)
class FederationSample:
    """What a federation measured, at one time."""

    lineage: str
    """In hexadecimal."""
    at: float
    """Seconds since 1970."""
    version: int
    values: Mapping[str, float]
    """By name."""


class MlflowMirror:
    """Writes one federation into MLflow. Blocks, and raises whatever MLflow raises.

    Args:
        uri: of MLflow's tracking server or store, such as `http://localhost:5000` or `sqlite:///mlflow.db`.
        federation: its name.
        experiment: the name of MLflow's experiment.
        model: the name in MLflow's model registry.
        artifacts: where a new experiment keeps its files; empty leaves it to MLflow.
    """

    def __init__(self, uri: str, federation: str, *, experiment: str, model: str, artifacts: str = "") -> None:
        self._uri, self._federation, self._experiment, self._model = uri, federation, experiment, model
        self._artifacts = artifacts or None
        self._made: MlflowClient | None = None
        self._known: str | None = None
        """The experiment's id."""
        self._runs: dict[str, str] = {}
        """Ids of runs by key: of a lineage, or of a version."""
        self._versions: dict[str, int] = {}
        """MLflow's numbers of the registered versions by key, as far as they are complete."""
        self._measured: dict[str, dict[str, float]] = {}
        """What is logged of each version."""

    @property
    def _client(self) -> MlflowClient:
        if self._made is None:
            self._made = MlflowClient(self._uri, self._uri)
        return self._made

    @property
    def _id(self) -> str:
        """The experiment, made if it is not there."""
        if self._known is None:
            found = self._client.get_experiment_by_name(self._experiment)
            made = found.experiment_id if found else self._client.create_experiment(self._experiment, self._artifacts)
            self._known = str(made)
        return self._known

    def forget(self) -> None:
        """Look everything up again: MLflow's data may have been put back, or deleted."""
        self._made = self._known = None
        self._runs.clear()
        self._versions.clear()
        self._measured.clear()

    # ------------------------------------------------------------------ measurements

    def log(self, sample: FederationSample) -> None:
        """Log what was measured, in the run of the lineage."""
        run = self._run(sample.lineage, f"{self._federation} {sample.lineage[:8]}", {"midge.kind": "federation"})
        self._log(run, sample.values, sample.at, sample.version)

    def _log(self, run: str, values: Mapping[str, float], at: float, step: int) -> None:
        found = [Metric(_spelled(name), value, round(1000 * at), step) for name, value in values.items()]
        for first in range(0, len(found), _AT_ONCE):
            self._client.log_batch(run, metrics=found[first : first + _AT_ONCE])

    def _run(self, key: str, name: str, tags: Mapping[str, str]) -> str:
        """The id of the run with a key, made if it is not there."""
        if key not in self._runs:
            found = self._client.search_runs([self._id], f"tags.`{_KEY}` = '{key}'", max_results=1)
            run: Run = found[0] if found else self._client.create_run(self._id, run_name=name, tags={**tags, _KEY: key})
            self._runs[key] = run.info.run_id
            self._measured[key] = dict(run.data.metrics)
        return self._runs[key]

    # ---------------------------------------------------------------------- versions

    def complete(self, lineage: str, version: int) -> bool:
        """Whether a version is in MLflow's registry, so that its values are not needed."""
        return f"{lineage}/{version}" in self._versions

    def register(self, reading: RegistryReading) -> int:
        """Register the versions that MLflow does not have, and have its aliases stand for the same; how many are new.

        A version that Midge pruned stays in MLflow, and so does one whose values are damaged stay out of it.
        """
        client, lineage = self._client, reading.lineage.hex()
        if not self._versions:
            self._look_up(client)
        new = 0
        for version, each in reading.registry.versions.items():
            data = reading.snapshots.get(version)
            key = f"{lineage}/{version}"
            if key not in self._versions and data is not None:
                self._versions[key] = self._add(key, each, data, reading)
                new += 1
            if key in self._versions:
                self._measure(key, each)
        named = client.get_registered_model(self._model).aliases if self._versions else {}
        for alias in ALIASES:
            number = self._versions.get(f"{lineage}/{reading.registry.named.get(alias)}")
            if number is not None and str(named.get(alias)) != str(number):
                client.set_registered_model_alias(self._model, alias, str(number))
            elif number is None and alias in named:
                client.delete_registered_model_alias(self._model, alias)
        return new

    def _look_up(self, client: MlflowClient) -> None:
        """Which versions MLflow has."""
        found: Sequence[ModelVersion] = client.search_registered_models(f"name = '{self._model}'", max_results=1)
        if not found:
            text = f"Federated learning with Midge: federation {self._federation}"
            client.create_registered_model(self._model, {"midge.federation": self._federation}, text)
        for each in self._listed(client):
            if _KEY in each.tags:
                self._versions[each.tags[_KEY]] = int(each.version)

    def _listed(self, client: MlflowClient) -> Iterator["ModelVersion"]:
        token: str | None = None
        while True:
            page = client.search_model_versions(f"name = '{self._model}'", page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _add(self, key: str, each: Registered, data: bytes, reading: RegistryReading) -> int:
        """Register a version, with its values and where it comes from; MLflow's number of it."""
        client, told = self._client, facts(each, reading.registry)
        about = {"federation": reading.federation, **told}
        lineage = {"midge.federation": reading.federation, "midge.lineage": reading.lineage.hex()}
        tags = {**lineage, "midge.kind": "version", "midge.version": str(each.version)}
        run = self._run(key, f"{self._federation} version {each.version}", tags)
        named = ("generation", "version", "step", "digest", "parent", "strategy", "devices", "updates", "by", "at")
        client.log_batch(run, params=[Param(f"midge.{name}", str(told[name])) for name in named])
        with tempfile.TemporaryDirectory() as folder:
            values = decode_snapshot(data).parameters()
            write_hub_folder(Path(folder), values, about, shape=None, task=None, license_="other")
            client.log_artifacts(run, folder, "model")
        described = {**tags, _KEY: key, **{f"midge.{name}": str(told[name]) for name in named}}
        source = f"{client.get_run(run).info.artifact_uri}/model"
        client.set_terminated(run)
        made = client.create_model_version(self._model, source, run, tags=described, await_creation_for=0)
        return int(made.version)

    def _measure(self, key: str, each: Registered) -> None:
        """Log what a version was measured to do, as far as that is new."""
        run = self._run(key, "", {})
        found = {f"server.{name}": value for name, value in each.server.items()}
        for name, spread in each.federated.items():
            found |= {f"federated.{name}.{part}": value for part, value in spread.items() if _number(value)}
        if each.devices:
            found["federated.devices"] = each.devices
        new = {name: value for name, value in found.items() if self._measured[key].get(_spelled(name)) != value}
        if new:
            self._log(run, new, time.time(), each.version)
            self._measured[key] |= {_spelled(name): value for name, value in new.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _spelled(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w. /:-]", "_", name, flags=re.ASCII)[:250]
