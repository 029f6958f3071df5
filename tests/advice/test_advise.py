import json
import sys
from pathlib import Path

import numpy as np
import pytest

import midge
from midge.__main__ import main
from midge.sensor_fleet.advice.decision import Decision, RowsHeld, decide
from midge.sensor_fleet.advice.kept_rows import mean_and_worst, split
from midge.sensor_fleet.advice.ways import Name, Reach, Score, WayRow
from midge.sensor_fleet.data import FleetData, Rows, load
from tests.report.pages import Page

WAYS = ["pooled", "data-parallel", "federated", "hybrid", "alone"]


@pytest.mark.torch
def test_advice_as_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "advise digits --devices 6 --days 2 --seeds 1 --json"
    assert main(asked.split()) == 0
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    rows = {row["way"]: row for row in said["rows"]}
    assert list(rows) == WAYS
    for row in rows.values():
        assert {"accuracy", "worst", "seconds", "bytes", "exposure"} <= set(row)
        assert row["worst"] <= row["own"]
    assert rows["pooled"]["accuracy"] > rows["alone"]["accuracy"] + 0.1
    assert rows["alone"]["bytes"] == 0 < rows["federated"]["bytes"]
    assert rows["pooled"]["bytes"] == rows["data-parallel"]["bytes"]
    assert rows["pooled"]["steps"] == rows["data-parallel"]["steps"] == rows["federated"]["steps"] > 0
    assert rows["pooled"]["inside_bytes"] == 0 < rows["data-parallel"]["inside_bytes"]
    assert abs(rows["pooled"]["accuracy"] - rows["data-parallel"]["accuracy"]) < 0.03, "its steps are the same"
    assert said["advice"]["text"].count(". ") == 1
    page = Page(Path("advice.html").read_text())
    assert "What leaves a device, and who sees it" in page.text


@pytest.mark.torch
def test_a_torch_module_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine_advised.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))\n"
        "def narrow():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    asked = "advise digits --devices 4 --days 1 --seeds 1 --json --model mine_advised:"
    try:
        assert main((asked + "net").split()) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["setting"]["parameters"] == 64 * 24 + 24 + 24 * 10 + 10 + 2  # and the normalisation
        assert [row["way"] for row in said["rows"]] == WAYS
        assert main((asked + "narrow").split()) == 2
        assert "returns an array of shape (2, 3)" in capsys.readouterr().err
    finally:
        sys.modules.pop("mine_advised", None)


def test_a_regression_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0, 3.0])).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=y, unit=np.arange(400) % 5)
    monkeypatch.setattr("midge.sensor_fleet.advice.trial.find_spec", lambda _: None)
    found = midge.advise(tmp_path / "rows.npz", model="linear", days=2, seeds=1)
    said = found.packed()
    assert "pip install" in said["missing"]["data-parallel"]
    rows = {row["way"]: row for row in said["rows"]}
    assert list(rows) == ["pooled", "federated", "hybrid", "alone"]
    assert rows["pooled"]["rmse"] < 1
    assert rows["pooled"]["worst"] >= rows["pooled"]["own"], "an error is worse if it is higher"
    assert "<iframe" in found._repr_html_()


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, why in (
        (["advise", "nothing.npz"], "there is no such file"),
        (["advise", "digits", "--profile", "nothing.toml"], "cannot be read"),
        (["advise", "digits", "--seeds", "0"], "at least 1 seed"),
        (["advise", "digits", "--devices", "1"], "at least 2 devices"),
        (["advise", "digits", "--model", "rnn"], "unknown model"),
        (["advise", "digits", "--model", "nowhere:net"], "no module 'nowhere'"),
    ):
        assert main(asked) == 2
        assert why in capsys.readouterr().err


# ------------------------------------------------------------------------------ the rows


def test_no_kept_row_is_trained_on() -> None:
    data = load("digits", devices=7)
    training, kept = split(data)
    for name, rows in data.devices.items():
        assert len(training.devices[name]) + len(kept[name]) == len(rows)
        both = np.concatenate([training.devices[name].x, kept[name].x]).reshape(len(rows), -1)
        assert sorted(map(bytes, both)) == sorted(map(bytes, rows.x.reshape(len(rows), -1)))


def test_rows_are_kept_in_runs() -> None:
    """Seen to fail: of engines that wear, a device alone knew the cycle before and after each kept one."""
    rows = Rows(np.arange(200.0)[:, None], np.zeros(200, np.int64))
    data = FleetData({"a": rows, "b": rows}, rows, "classification", 2, ("0", "1"), "table", (1,), 0)
    for kept in split(data)[1].values():
        assert len(kept) == 40
        assert np.count_nonzero(np.diff(kept.x[:, 0]) != 1) <= 1, "two runs of twenty"


def test_the_worst_tenth() -> None:
    values = [0.5, 0.7, *[0.9] * 18]
    assert mean_and_worst(values, 1)[1] == pytest.approx(0.6)
    assert mean_and_worst(values, -1)[1] == pytest.approx(0.9)


# ---------------------------------------------------------------------------- the advice


def row(way: Name, score: float, own: float, moved: float, seconds: float = 10.0) -> WayRow:
    here, mine = (Score(value, value, value) for value in (score, own))
    return WayRow(way, here, mine, mine, seconds, moved, 0.0, 1.0, moved, 1.0, 100.0)


def advised(values: dict[str, tuple[float, float, float]], reach: Reach | None = None) -> Decision:
    rows = [row(name, *value) for name, value in values.items()]  # type: ignore[arg-type]
    return decide(rows, "accuracy", reach, RowsHeld(64, 100))


def test_equal_scores_choose_the_way_that_exposes_least() -> None:
    scores = {"pooled": (0.97, 0.97, 1e5), "federated": (0.965, 0.965, 1e6), "alone": (0.5, 0.8, 0.0)}
    found = advised(scores)
    assert found.way == "federated"
    assert any("10 times fewer bytes" in sentence and "1,000 rows" in sentence for sentence in found.changes)
    assert advised(scores, "anywhere").way == "pooled", "bytes decide once rows may go anywhere"


def test_better_rows_win_unless_they_may_not_move() -> None:
    scores = {
        "pooled": (0.97, 0.97, 1e5),
        "federated": (0.9, 0.9, 1e6),
        "hybrid": (0.95, 0.95, 1e5),
        "alone": (0.5, 0.8, 0.0),
    }
    assert advised(scores).way == "pooled"
    assert advised(scores, "site").way == "hybrid"
    assert advised(scores, "nowhere").way == "federated"
    scores["alone"] = (0.9, 0.9, 0.0)
    assert advised(scores, "nowhere").way == "alone"


def test_a_cluster_is_advised_only_if_one_machine_takes_long() -> None:
    """Seen to fail: one seed of the data-parallel training was a point better than three of the pooled, and won."""
    scores = {"pooled": (0.95, 0.95, 1e5), "data-parallel": (0.98, 0.98, 1e5), "federated": (0.5, 0.5, 1e6)}
    assert advised(scores).way == "pooled"
    rows = [row("pooled", 0.95, 0.95, 1e5, 7200), row("data-parallel", 0.95, 0.95, 1e5, 3700)]
    rows.append(row("federated", 0.5, 0.5, 1e6))
    assert decide(rows, "accuracy", None, RowsHeld(64, 100)).way == "data-parallel"


def test_the_bytes_of_pooling_are_compared_with_what_is_advised() -> None:
    """Seen to fail: a page that advised the hybrid compared with the federation, which moved eight times more."""
    scores = {
        "pooled": (0.98, 0.98, 1e5),
        "federated": (0.90, 0.90, 8e6),
        "hybrid": (0.975, 0.975, 2e5),
        "alone": (0.5, 0.8, 0.0),
    }
    found = advised(scores)
    assert found.way == "hybrid"
    (sentence,) = [each for each in found.changes if "fewer bytes" in each]
    assert "moves 2.0 times fewer bytes" in sentence and "fewer than about 200 rows (it has 100)" in sentence
    fewer = {**scores, "hybrid": (0.975, 0.975, 5e4)}
    assert not any("fewer bytes" in each for each in advised(fewer).changes)
