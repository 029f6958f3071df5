"""`midge init`: the project that it makes is tested by its own tests, and it federates."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.broker.local.local_broker import local_broker
from tests import needs
from tests.waiting import until

MIDGE = (sys.executable, "-m", "midge")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "water-works"
    assert main(["init", str(folder)]) == 0
    return folder


def test_its_tests_pass(project: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


def test_it_names_the_federation_by_its_folder_and_keeps_what_is_there(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 'name = "water-works"' in (project / "midge.toml").read_text()
    texts = [path for path in project.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert not [path for path in texts if "@federation@" in path.read_text()]
    (tmp_path / "device.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "device.py is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["device.py"]
    assert main(["init", str(tmp_path / "other"), "--federation", "a/b"]) == 2
    assert not (tmp_path / "other").exists()


def test_the_schemas_of_its_settings_lie_beside_them(project: Path) -> None:
    for name in ("midge.toml", "device.toml"):
        first = (project / name).read_text().splitlines()[0]
        assert json.loads((project / first.removeprefix("#:schema ")).read_text())["additionalProperties"] is False


@pytest.mark.parametrize("kind", ["aggregator", "device@"])
def test_systemd_understands_its_units(kind: str, project: Path, tmp_path: Path) -> None:
    analyze = needs.program("systemd-analyze", needs.SYSTEMD)
    unit = project / "systemd" / f"water-works-{kind}.service"
    copy = tmp_path / unit.name.replace("@", "@pump-1")
    copy.write_text(unit.read_text().replace("/opt/water-works/.venv/bin/midge", sys.executable))
    done = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and copy.name not in done.stderr, done.stderr
    scored = [analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", str(unit)]
    done = subprocess.run(scored, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@contextmanager
def started(project: Path, log: str, *words: str, **environment: str) -> Iterator[None]:
    """A command of the project's README, until the block ends."""
    import os

    with (project / log).open("wb") as out:
        process = subprocess.Popen(
            [*MIDGE, *words], cwd=project, stdout=out, stderr=out, env={**os.environ, **environment}
        )
        try:
            yield
            assert process.poll() is None, (project / log).read_text()
        finally:
            process.terminate()
            assert process.wait(60) == 0, (project / log).read_text()


def test_its_aggregator_and_two_devices_release_a_version(project: Path, tmp_path: Path) -> None:
    """One device by its settings alone, one with the trainer of device.py."""
    for name in ("pump-1", "pump-2"):
        subprocess.run([sys.executable, "sensor.py", f"{name}.csv", "--rows", "200"], cwd=project, check=True)
    managed = local_broker("auto", directory=tmp_path)
    with asyncio.Runner() as runner, ExitStack() as running:
        url = str(runner.run(managed.__aenter__()).endpoint)
        running.callback(lambda: runner.run(managed.__aexit__(None, None, None)))
        for log, words, environment in (
            ("a.log", ("aggregate", "--config", "midge.toml", "--set", f"broker.url={url}", "--json"), {}),
            ("1.log", ("device", "--config", "device.toml", "--set", f"broker.url={url}", "--wait"), {}),
            (
                "2.log",
                ("device", "device:app", "--name", "pump-2", "--broker", url, "--wait"),
                {"READINGS": "pump-2.csv"},
            ),
        ):
            running.enter_context(started(project, log, *words, **environment))

        def released() -> bool:
            lines = [line for line in (project / "a.log").read_text().splitlines(keepends=True) if line.endswith("}\n")]
            events = [json.loads(line) for line in lines if line.startswith("{")]
            return any(event["event"] == "release" and event["devices"] == 2 for event in events)

        until("a version with the work of both", released)
        looking = [*MIDGE, "status", url, "--config", "device.toml", "--json"]
        done = subprocess.run(looking, cwd=project, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {*json.loads(done.stdout)["devices"]} == {"pump-1", "pump-2"}
    assert (project / "store" / "store.db").exists() and (project / "pump-1.outbox").exists()
