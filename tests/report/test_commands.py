import json
import os
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from midge.__main__ import main
from midge.sensor_fleet.demo import Demo
from midge.sensor_fleet.report.conclusion import conclude
from midge.sensor_fleet.setting import Setting
from tests.report import runs
from tests.report.pages import Page


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_report_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    directory = runs.complete(Path("runs/one"))
    assert main(["report", str(directory)]) == 0
    assert str(directory / "report.html") in capsys.readouterr().out
    assert "93.2%" in Page((directory / "report.html").read_text()).text


def test_report_of_the_last_run() -> None:
    for number, name in enumerate("ab"):
        os.utime(runs.complete(Path("runs") / name), (number, number))
    assert main(["report", "-o", "page.html"]) == 0
    assert "report of the run b" in Page(Path("page.html").read_text()).text


def test_a_run_that_was_refused_is_not_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: its empty folder was taken for the newest run."""
    runs.complete(Path("runs/one"))
    assert main(["fleet", "--live", "--devices", "1", "--broker", "mqtt://localhost:1"]) == 2
    assert main(["demo", "--data", "nothing.npz"]) == 2
    assert [path.name for path in Path("runs").iterdir()] == ["one"]
    Path("runs/empty").mkdir()  # of one that was killed
    assert main(["report"]) == 0
    assert "runs/one" in capsys.readouterr().out


def test_a_store_that_is_empty_or_no_database_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pumps").mkdir()
    Path("pumps/store.db").touch()
    assert main(["report", "pumps"]) == 2
    assert "The store pumps is empty" in capsys.readouterr().err
    Path("pumps/store.db").write_bytes(b"no database" * 1000)
    assert main(["report", "pumps"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["compare", "pumps", "pumps"]) == 2
    assert "the store of an aggregator: midge report shows it" in capsys.readouterr().err


def test_the_report_of_a_run_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    directory = runs.complete(Path("runs/one"))
    assert main(["report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(directory / "report.html")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "run midge demo first"),
        (["report", "nowhere"], "There is no directory nowhere"),
        (["report", "."], "holds no run"),
        (["compare", "one"], "1 run cannot be compared"),
        (["compare", "one", "nowhere"], "There is no directory nowhere"),
        (["compare", "one", "one", "-o", "nowhere/page.html"], "--output"),
        (["report", "one", "-o", "nowhere/page.html"], "--output"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    runs.complete(Path("one"))
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        runs.complete(Path(name))
    assert main(["compare", "one", "two"]) == 0
    assert "compare.html" in capsys.readouterr().out
    assert "one and two" in Page(Path("compare.html").read_text()).text


def test_the_end_of_a_demo_writes_baselines_and_report() -> None:
    directory = Path("runs/demo")
    directory.mkdir(parents=True)
    demo = Demo(Setting(devices=3), directory)
    demo.loaded = demo.setting.load()
    save_file(demo.loaded[1].initial, directory / "model.safetensors")
    result = conclude(demo, demo.outcome())
    assert result["central"] > 0.9
    assert result["alone"] < result["central"]
    assert json.loads((directory / "result.json").read_text()) == result
    assert json.loads((directory / "baselines.json").read_text())["own"]["of"] == 3
    assert Page((directory / "report.html").read_text()).headings


def test_a_demo_that_never_began_has_no_baselines() -> None:
    directory = Path("runs/demo")
    directory.mkdir(parents=True)
    demo = Demo(Setting(), directory)
    result = conclude(demo, demo.outcome())
    assert result["central"] is None
    assert result["alone"] is None
