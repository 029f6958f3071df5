"""A federation in MLflow, in its real SQLite store, also after MLflow was away or a process was killed."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.service import Aggregator
from midge.aggregator.store.registered import RegistryReading, registered_in
from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.evaluation import Scores
from midge.wire.lineage import decode_snapshot
from midge.wire.messages import Plan
from midge.wire.topics import Topics
from tests import needs
from tests.aggregator.test_registry import Life
from tests.federation.live import INITIAL, STRATEGY, Log, approach, serving
from tests.federation.test_registry_live import PLAIN, World

needs.module("mlflow", "mlflow-skinny sqlalchemy alembic")

from mlflow import MlflowClient, artifacts, set_tracking_uri  # noqa: E402

from midge.model_export.mlflow_bridge import MlflowBridge  # noqa: E402 - needs the module above
from midge.model_export.mlflow_mirror import FederationSample, MlflowMirror  # noqa: E402


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow, which takes seconds to make."""
    made = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowClient(made, made)
    return made


def mirror(uri: str, folder: Path) -> MlflowMirror:
    """A mirror with names of the test's own."""
    return MlflowMirror(uri, "f", experiment=str(folder), model=folder.name, artifacts=str(folder / "artifacts"))


def mirrored(uri: str, folder: Path) -> dict[str, Any]:
    """All that MLflow has of a test: versions of Midge by alias, and of each its tags and its run."""
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(str(folder))
    if experiment is None or not client.search_registered_models(f"name = '{folder.name}'"):
        return {"aliases": {}, "versions": {}, "runs": [], "log": None}
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions(f"name = '{folder.name}'")
    numbers = {str(each.version): int(each.tags["midge.version"]) for each in versions}
    assert len(set(numbers.values())) == len(numbers), "a version is registered twice"
    assert len({each.data.tags["midge.key"] for each in runs}) == len(runs), "a run is there twice"
    return {
        "aliases": {
            name: numbers[str(number)] for name, number in client.get_registered_model(folder.name).aliases.items()
        },
        "versions": {int(each.tags["midge.version"]): each for each in versions},
        "runs": runs,
        "log": next((each for each in runs if each.data.tags.get("midge.kind") == "federation"), None),
    }


def evaluate(parameters: Mapping[str, Any]) -> Scores:
    return Scores(5, {"loss": abs(float(np.asarray(parameters["b"])[0]) - 10.0)})


async def test_a_federation_that_learns_is_in_mlflow_with_its_versions_and_names(uri: str, tmp_path: Path) -> None:
    """Seen to fail on aliases that are only set, and on samples with what was logged before."""
    often = replace(PLAIN, plan=Plan(codec="float32", evaluate=0.2))
    world, said = World(tmp_path, strategy=often), list[Mapping[str, Any]]()
    server, board = world.aggregator(), world.device("a", evaluate=evaluate)
    bridge = MlflowBridge(
        world.twin.connect, Topics("f"), tmp_path / "store", mirror(uri, tmp_path), every=0.3, tell=said.append
    )
    async with serving(server, board):
        await world.learn(server)
        await world.order("register", attempt=True)
        async with serving(bridge):
            await world.log.until(lambda: mirrored(uri, tmp_path)["aliases"] == {"champion": 2})
            for _ in range(3):
                await world.learn(server)
            await world.order("register", attempt=True)
            await world.log.until(lambda: mirrored(uri, tmp_path)["aliases"] == {"champion": 2, "candidate": 5})
            found = mirrored(uri, tmp_path)
            await world.log.until(lambda: logged(uri, found, "federated.loss.median"))
            await world.order("promote")
            await world.log.until(lambda: mirrored(uri, tmp_path)["aliases"] == {"champion": 5})
    reading = registered_in(tmp_path / "store")
    tags = found["versions"][5].tags
    assert (tags["midge.parent"], tags["midge.generation"], tags["midge.updates"]) == ("2", "0", "4")
    assert tags["midge.lineage"] == reading.lineage.hex() and tags["midge.federation"] == "f"
    assert tags["midge.digest"] == reading.registry.versions[5].record.digest.hex()
    assert sum(each.value for each in logged(uri, found, "updates.accepted")) == 3, "those that it saw"
    assert logged(uri, found, "version")[-1].value == 5
    assert [each.value for each in logged(uri, found, "devices.online")] == [1], "what has not changed is not repeated"
    assert {each.value for each in logged(uri, found, "federated.loss.median")} <= {10.0, 9.0, 8.0, 7.0, 6.0}
    set_tracking_uri(uri)
    folder = Path(artifacts.download_artifacts(f"models:/{tmp_path.name}@champion", dst_path=str(tmp_path / "got")))
    data = reading.snapshots[5]
    assert data is not None
    for name, value in decode_snapshot(data).parameters().items():
        np.testing.assert_array_equal(load_file(folder / "model.safetensors")[name], value)
    assert said[-1]["ok"] and said[-1]["versions"] == 2 and said[-1].get("failures", 0) == 0


def logged(uri: str, found: dict[str, Any], name: str) -> list[Any]:
    """What is logged of a metric of the federation."""
    return list(MlflowClient(uri, uri).get_metric_history(found["log"].info.run_id, name))


async def test_a_server_of_mlflow_that_is_away_costs_a_counted_retry_and_nothing_is_lost(
    uri: str, tmp_path: Path
) -> None:
    """Seen to fail on a bridge that drops what it could not write."""
    world, said = World(tmp_path), list[Mapping[str, Any]]()
    server, board = world.aggregator(), world.device("a")
    away = mirror("http://127.0.0.1:1", tmp_path)
    bridge = MlflowBridge(world.twin.connect, Topics("f"), tmp_path / "store", away, every=0.2, tell=said.append)
    async with serving(server, board):
        await world.learn(server)
        await world.order("register", attempt=True)
        async with serving(bridge):
            await world.log.until(lambda: len(said) >= 2)
            assert [each["ok"] for each in said[:2]] == [False, False] and said[1]["failures"] == 2
            assert said[1]["waiting"] > 1 and said[1]["why"].startswith("MlflowException")
            await world.learn(server)
            away._uri = uri  # it is back
            await world.log.until(lambda: said[-1]["ok"])
        assert server.core.version == 3
    found = mirrored(uri, tmp_path)
    assert found["aliases"] == {"champion": 2} and said[-1].get("given_up", 0) == 0 and said[-1]["waiting"] == 0
    assert sum(each.value for each in logged(uri, found, "updates.accepted")) == 1


class Failing:
    """A client of MLflow that fails after its n-th call: it was done, and the answer is lost."""

    def __init__(self, client: Any, calls: int) -> None:
        self._client, self.left = client, calls

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            found = call(*arguments, **named)
            if self.left == 0:
                raise ConnectionError("it was killed")
            return found

        return counted


def test_whatever_call_fails_each_version_is_there_once(uri: str, tmp_path: Path) -> None:
    """Seen to fail on runs, and on model versions, that are not looked up before they are made."""
    reading = _two_versions(tmp_path)
    sample = FederationSample(reading.lineage.hex(), 1_800_000_000.0, 3, {"updates.accepted": 2.0})

    def write(target: MlflowMirror) -> None:
        target.log(sample)
        target.register(reading)

    calls, failed = 0, 0
    while failed == calls:
        calls += 1
        folder = tmp_path / f"after-{calls}"
        broken = mirror(uri, folder)
        broken._made = Failing(broken._client, calls)
        try:
            write(broken)
        except ConnectionError:
            failed += 1
        if calls % 2:  # the same process goes on, or another one
            broken.forget()
        else:
            broken = mirror(uri, folder)
        write(broken)
        write(broken)
        found = mirrored(uri, folder)
        assert found["aliases"] == {"champion": 2, "candidate": 3} and len(found["runs"]) == 3, calls
        assert {each.info.status for each in found["runs"] if each.data.tags["midge.kind"] == "version"} == {"FINISHED"}
        (run,) = (each for each in found["runs"] if each.data.tags.get("midge.version") == "3")
        assert run.data.metrics == {"server.rmse": 0.25} and run.data.params["midge.parent"] == "2"
        client = MlflowClient(uri, uri)
        assert len(client.get_metric_history(run.info.run_id, "server.rmse")) == 1
        assert len(client.get_metric_history(found["log"].info.run_id, "updates.accepted")) == 1
    assert failed > 15


def _two_versions(folder: Path) -> RegistryReading:
    life = Life(folder / "store")
    life.learn(1.0)
    life.order("register", attempt=True)
    life.learn(1.0)
    life.order("register", attempt=True)
    life.keeper.evaluated(3, {"rmse": 0.25})
    life.look()
    life.rig.close()
    return registered_in(folder / "store")


async def test_the_command_runs_beside_an_aggregator_and_ends_by_a_signal(uri: str, tmp_path: Path) -> None:
    log = Log()
    (tmp_path / "broker").mkdir()
    async with local_broker("embedded", directory=tmp_path / "broker") as broker:
        place: dict[str, Any] = {"connector": connector(broker.endpoint), "federation": "f", "on_event": log}
        server = Aggregator(AggregatorConfig(store=tmp_path / "store", strategy=STRATEGY, initial=INITIAL, **place))
        boards = [Device(DeviceConfig(name=name, train=approach, outbox=None, **place)) for name in "ab"]
        async with serving(server, *boards):
            await log.until(lambda: log.of("release"))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "midge", "mlflow", str(broker.endpoint), "--federation", "f"),
                *("--store", str(tmp_path / "store"), "--tracking-uri", uri, "--every", "0.5", "--json"),
                *("--experiment", str(tmp_path), "--model", tmp_path.name, "--artifacts", str(tmp_path / "files")),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            said = json.loads(await process.stdout.readline())
            assert said["ok"] and said["samples"] >= 1
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
            assert process.returncode == 0, errors
    assert mirrored(uri, tmp_path)["versions"] == {}


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["mlflow", "mqtt://127.0.0.1:1", "--federation", "f", "--tracking-uri", "sqlite:///x.db"]
    assert main([*asked, "--every", "0"]) == 2
    assert "--every is 0" in capsys.readouterr().err
    assert main([*asked, "--store", str(tmp_path)]) == 2
    assert "no store of an aggregator" in capsys.readouterr().err
