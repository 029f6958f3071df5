"""The files of deploy/: against the linters and schemas of those who read them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.broker.provisioning.bundles import read_bundle
from tests import needs

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "docker" / "compose.yaml"
MANIFESTS = DEPLOY / "kubernetes" / "aggregator.yaml"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILES = sorted((DEPLOY / "docker").glob("*Dockerfile"))
YAML = sorted(DEPLOY.rglob("*.yaml"))
INSTRUCTIONS = {"FROM", "COPY", "RUN", "USER", "ENV", "VOLUME", "WORKDIR", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def documents(path: Path) -> list[dict[str, Any]]:
    yaml = needs.module("yaml", "yamllint")
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `midge broker init` makes, with the options of the compose file."""
    made = tmp_path_factory.mktemp("fleet") / "made"
    (compose,) = documents(COMPOSE)
    words = compose["services"]["init"]["command"][0].split(";")[0].replace("/fleet/made", str(made)).split()
    assert words[0] == "midge" and str(made) in words
    assert main(words[1:]) == 0
    return made


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    binary = needs.program("systemd-analyze", needs.SYSTEMD)
    return subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_sandboxed(unit: Path) -> None:
    done = analyze("security", "--offline=yes", "--threshold=20", "--no-pager", str(unit))
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    """Every word of it: of an unknown one systemd only warns, and a protection would not be there."""
    copy = tmp_path / unit.name.replace("@", "@pump-17")
    copy.write_text(unit.read_text().replace("/opt/midge/bin/midge", sys.executable))
    done = analyze("verify", "--man=no", str(copy))
    assert done.returncode == 0, done.stderr
    assert copy.name not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("unit", "bundle"),
    [("midge-device@.service", "devices/dev0001"), ("midge-aggregator.service", "aggregator")],
)
def test_a_unit_hands_over_a_whole_bundle(unit: str, bundle: str, fleet: Path, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / unit).read_text()
    for name, source in re.findall(r"^LoadCredential=([^:]+):(.+)$", text, re.MULTILINE):
        assert Path(source).name == name
        shutil.copy(fleet / bundle / name, tmp_path)
    (config,) = re.findall(r"--config %d/(\S+)", text)
    assert read_bundle(tmp_path / config).topics.federation == "pumps"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_units_command_is_one_of_midges(unit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It gets as far as the program, which is not there."""
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^ExecStart=/opt/midge/bin/midge (.+)$", unit.read_text(), re.MULTILINE)
    line = line.replace("${APP}", "there_is_none:app")
    done = subprocess.run(
        [sys.executable, "-m", "midge", *line.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "There is no module 'there_is_none'" in done.stderr


SETTINGS = {
    "midge-aggregator.service": (
        "midge.toml",
        '[model]\nkind = "linear"\ntask = "regression"\ninputs = 3\n[store]\npath = "store"\n',
    ),
    "midge-device@.service": ("device-pump-17.toml", '[device]\napp = "there_is_none:app"\n'),
}
"""The settings file that each unit's settings.conf names, and what may stand in it."""


@pytest.mark.parametrize(
    ("unit", "file"),
    [*((unit, "settings.conf") for unit in UNITS), (UNITS[0], "standby.conf")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_unit_serves_a_settings_file_with_its_bundle(unit: Path, file: str, fleet: Path, tmp_path: Path) -> None:
    """The settings are right with the bundle that systemd hands over, and systemd understands the changed unit."""
    name, text = SETTINGS[unit.name]
    (tmp_path / name).write_text(text)
    change = (unit.with_name(f"{unit.name}.d") / file).read_text()
    (line,) = re.findall(r"^ExecStart=/opt/midge/bin/midge \w+ --config (.+)$", change, re.MULTILINE)
    bundle = fleet / ("aggregator" if "aggregator" in unit.name else "devices/dev0001")
    for old, new in (("/etc/midge", str(tmp_path)), ("%i", "pump-17"), ("%d", str(bundle))):
        line = line.replace(old, new)
    command = [sys.executable, "-m", "midge", "config", "check", *line.split(" --metrics")[0].split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    copy = tmp_path / unit.name.replace("@", "@pump-17")
    (tmp_path / f"{copy.name}.d").mkdir()
    for path, said in ((copy, unit.read_text()), (tmp_path / f"{copy.name}.d" / file, change)):
        path.write_text(said.replace("/opt/midge/bin/midge", sys.executable))
    done = analyze("verify", "--man=no", str(copy))
    assert done.returncode == 0 and copy.name not in done.stderr, done.stderr


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_is_clean(path: Path) -> None:
    linter = needs.module("yamllint.linter", "yamllint")
    config = needs.module("yamllint.config", "yamllint").YamlLintConfig(
        "{extends: default, rules: {line-length: {max: 120}, document-start: disable, comments: disable}}"
    )
    assert [str(problem) for problem in linter.run(path.read_text(), config)] == []


def test_the_compose_file_fits_its_schema() -> None:
    needs.module("check_jsonschema", "check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_compose_file_mounts_what_there_is(fleet: Path) -> None:
    (compose,) = documents(COMPOSE)
    for service in compose["services"].values():
        if "build" in service:
            assert (DEPLOY / "docker" / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./fleet/made/"):
                assert (fleet / source.removeprefix("./fleet/made/")).is_dir()
            elif source.startswith(".."):
                assert (DEPLOY / "docker" / source).is_dir()
            else:
                assert source in compose["volumes"] or source == "./fleet"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_is_well_formed(path: Path) -> None:
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    words = [word for word, _ in lines]
    assert set(words) <= INSTRUCTIONS and words[0] == "FROM"
    assert words.index("USER") < words.index("ENTRYPOINT"), "it runs as root"
    extras = re.findall(r"\.whl\)\[(\w+)\]", text)
    project = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{extra} = [" in project for extra in extras)


def test_kubernetes_knows_the_manifests() -> None:
    validate = needs.module("kubernetes_validate", "kubernetes-validate")
    kinds = []
    for document in documents(MANIFESTS):
        validate.validate(document, validate.latest_version(), strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"]


def test_the_stateful_set_is_one_and_asks_what_is_answered() -> None:
    (found,) = [each for each in documents(MANIFESTS) if each["kind"] == "StatefulSet"]
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert found["spec"]["replicas"] == 1
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/alive"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]} | {"store"}
