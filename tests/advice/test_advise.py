import json
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import midge
from midge.__main__ import main
from midge.sensor_fleet.advice.decision import Clause, Decision, RowsHeld, decide
from midge.sensor_fleet.advice.kept_rows import mean_and_worst, split
from midge.sensor_fleet.advice.ways import Name, Reach, Score, WayRow
from midge.sensor_fleet.data import FleetData, Rows, load
from midge.sensor_fleet.report.quantities import duration, score, size
from tests.report.pages import Page


def _few_rows() -> FleetData:
    rng = np.random.default_rng(0)
    each = [Rows(rng.normal(size=(20, 4)), np.arange(20) % 2) for _ in range(3)]
    return FleetData(
        {f"d{n}": rows for n, rows in enumerate(each)}, each[0], "classification", 2, ("a", "b"), "table", (4,), 0
    )


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
    data = load(tmp_path / "rows.npz")
    errors = data.test.y - np.mean(data.pooled().y, dtype=np.float64)
    assert said["setting"]["guess"] == pytest.approx(float(np.sqrt(np.mean(errors**2))))
    assert said["setting"]["guess"] > 3 * rows["pooled"]["rmse"]
    assert "Nothing was learnt" not in str(found)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Wrong", "the model's own code fails: AttributeError: 'Tensor' object has no attribute 'nope' ("),
        ("Boom", "the model's own code fails: KeyError: 'secret' ("),
        ("fails", "the model's own code fails: ValueError: mine ("),
        ("Idle", "the module has no parameter to train"),
        ("Narrow", "the module does not take rows of shape (4,)"),
        ("number", "the model is of type int"),
    ],
)
def test_what_is_wrong_with_a_model_is_said_with_its_line(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: a traceback into Midge; of a module without parameters, the optimiser's message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("theirs.py").write_text(
        "from torch import nn\n"
        "class Wrong(nn.Linear):\n"
        "    def __init__(self): super().__init__(4, 2)\n"
        "    def forward(self, x): return super().forward(x).nope()  # line 4\n"
        "class Boom(nn.Module):\n"
        "    def __init__(self): raise KeyError('secret')  # line 6\n"
        "def fails(data): raise ValueError('mine')  # line 7\n"
        "class Idle(nn.Module):\n"
        "    def forward(self, x): return x[:, :2]\n"
        "def Narrow(): return nn.Linear(9, 2)\n"
        "number = 7\n"
    )
    np.savez("rows.npz", x=np.ones((40, 4)), y=np.arange(40) % 2, unit=np.arange(40) // 10)
    try:
        assert main(["advise", "rows.npz", "--model", f"theirs:{name}"]) == 2
        said = capsys.readouterr().err
        line = {"Wrong": 4, "Boom": 6, "fails": 7}.get(name)
        assert why in said and (line is None or f"theirs.py, line {line})" in said)
        assert "Traceback" not in said and not Path("advice.html").exists()
    finally:
        sys.modules.pop("theirs", None)


_UNGUARDED = """
import numpy as np
from torch import nn
from midge.iot_client.training.data_parallel import ParallelJob, data_parallel
from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.standardised_module import StandardisedModule

module = StandardisedModule(nn.Linear(4, 2), 4, "classification")
x, y = np.zeros((10_000, 4), np.float32), np.zeros(10_000, np.int64)
start = {name: value.numpy() for name, value in module.state_dict().items()}
try:
    data_parallel(ParallelJob(module, x, y, [(start, 0)], Recipe(), 20), 2)
except RuntimeError as error:
    print(error, flush=True)
    raise
"""


@pytest.mark.torch
def test_a_script_without_a_guard_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: it waited forever, writing 200 kB to a process that had died."""
    script = tmp_path / "script.py"
    script.write_text(_UNGUARDED)
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, script],
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert "would run in each of them" in ended.stdout.splitlines()[-1]

    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="below `if __name__ == '__main__':`"):
        midge.advise("digits")


@pytest.mark.torch
def test_a_module_that_cannot_be_sent_is_no_traceback() -> None:
    """Seen to fail: the error of a pickle ended all ways."""
    from torch import nn

    class Local(nn.Linear):
        """Defined in a function."""

    found = midge.advise(_few_rows(), model=lambda: Local(4, 2), days=0.2, seeds=1)
    assert "the module cannot be sent to another process" in found.missing["pooled"]
    assert "federated" in {row.way for row in found.rows}
    assert "pooled was not measured: the module cannot be sent" in str(found)


def test_the_object_is_printed_though_the_page_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: nothing was printed after all ways had been trained."""
    page = tmp_path / "page.html"
    held = midge.advise(_few_rows(), model="linear", days=0.2, seeds=1)

    def advise(*_: object, **__: object) -> object:
        assert not page.exists(), "the place was tried, and left as it was"
        page.mkdir()
        return held

    monkeypatch.setattr("midge.sensor_fleet.advice.advice.advise", advise)
    assert main(["advise", "digits", "--json", "-o", str(page)]) == 2
    found = capsys.readouterr()
    assert json.loads(found.out)["advice"] == held.packed()["advice"] and "The page cannot be written" in found.err


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, why in (
        (["advise", "nothing.npz"], "there is no such file"),
        (["advise", "digits", "--profile", "nothing.toml"], "cannot be read"),
        (["advise", "digits", "--seeds", "0"], "--seeds is 0: it must be at least 1"),
        (["advise", "digits", "--days", "inf"], "--days is inf: it must be above 0"),
        (["advise", "digits", "--sites", "0"], "sites is 0: give at least 2"),
        (["advise", "digits", "--processes", "100000"], "a batch of 16 rows is split over at most as many"),
        (["advise", "digits", "-o", "/nonexistent/page.html"], "The page cannot be written"),
        (["survey", "--data", "digits", "-o", "/nonexistent/page.html"], "The page cannot be written"),
        (["advise", "digits", "--devices", "1"], "at least 2 devices"),
        (["advise", "digits", "--data-days", "nan"], "--data-days is nan: it must be above 0"),
        (["advise", "digits", "--price-per-gb", "nan"], "--price-per-gb is nan: it must be a finite number"),
        (["advise", "digits", "--model", "rnn"], "unknown model"),
        (["advise", "digits", "--model", "nowhere:net"], "no module 'nowhere'"),
    ):
        assert main(asked) == 2
        assert why in capsys.readouterr().err


def test_where_rows_may_go_is_checked_before_anything_is_trained() -> None:
    """Seen to fail: KeyError: 'moon', after everything was trained."""
    told: list[str] = []
    with pytest.raises(ValueError, match="rows_may_go is 'moon': give nowhere, site, anywhere, or None"):
        midge.advise("digits", model="linear", days=0.1, seeds=1, rows_may_go="moon", tell=told.append)  # type: ignore[arg-type]
    assert not told


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
    return decide(rows, "accuracy", reach, RowsHeld(64, 100, 0))


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
    assert decide(rows, "accuracy", None, RowsHeld(64, 100, 0)).way == "data-parallel"


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
    assert "2.0 times fewer bytes" in sentence and "fewer than about 200 rows of 64 bytes (it has 100)" in sentence
    fewer = {**scores, "hybrid": (0.975, 0.975, 5e4)}
    assert not any("fewer bytes" in each for each in advised(fewer).changes)


def test_the_model_that_devices_receive_does_not_grow_with_their_rows() -> None:
    """Seen to fail: 186 rows, of digits on 20 devices; with 186 rows, pooling takes 0.7 MB and federating 1.6 MB."""
    rows = [row("pooled", 0.98, 0.98, 600_380), row("federated", 0.9, 0.9, 1_551_000)]
    (sentence,) = [
        each
        for each in decide(rows, "accuracy", None, RowsHeld(64, 72, 525_760)).changes
        if each.startswith("If a device had")
    ]
    assert "about 989 rows of 64 bytes (it has 72)" in sentence


def test_it_is_said_if_no_way_is_better_than_a_guess() -> None:
    """Seen to fail: "it reaches 32.1% where pooled rows reach 33.3%" of three classes, of rows without a value."""
    rows = [row("pooled", 1 / 3, 0.33, 1e3), row("federated", 0.3, 0.3, 1e4), row("alone", 0.321, 0.33, 0.0)]
    held = RowsHeld(64, 100, 0)
    said = decide(rows, "accuracy", None, held, 1 / 3).sentences[0]
    assert said.startswith("Nothing was learnt: on new rows no way is better than always the most frequent class, ")
    assert "33.3% accuracy. Train each device alone" in said
    assert "Nothing" not in decide(rows, "accuracy", None, held, 0.3).sentences[0]
    assert "the mean target, which has an RMSE of 0.290." in decide(rows, "rmse", None, held, 0.29).sentences[0]
    assert "Nothing" not in decide(rows, "rmse", None, held, 0.325).sentences[0]


def test_where_rows_may_not_go_the_rule_is_asked_again() -> None:
    """Seen to fail: "then federated", where the rule chose lone devices."""
    scores = {"pooled": (0.9, 0.9, 1e3), "federated": (0.5, 0.5, 1e3), "alone": (0.8, 0.8, 0.0)}
    found = advised(scores)
    (sentence,) = [each for each in found.changes if "may not leave" in each]
    assert (found.way, advised(scores, "nowhere").way) == ("pooled", "alone") and "train each device alone" in sentence
    worse = {"pooled": (0.8, 0.8, 1e2), "federated": (0.95, 0.95, 1e3), "alone": (0.3, 0.3, 0.0)}
    assert not any("anywhere" in each for each in advised(worse).changes), "seen to fail: pooling was called as good"


def test_the_fewest_bytes_are_those_of_the_ways_that_are_as_good() -> None:
    """Seen to fail: the fewest of all, while the federation and the hybrid moved less."""
    scores = {
        "pooled": (0.9, 0.9, 9e4),
        "federated": (0.7, 0.7, 3e4),
        "hybrid": (0.8, 0.8, 1e4),
        "alone": (0.3, 0.3, 0.0),
    }
    found = advised(scores, "anywhere")
    assert (
        found.way == "pooled" and "fewest" not in found.sentences[0] and "no other way is as good" in found.sentences[0]
    )


def test_lone_devices_within_their_spread_are_not_said_to_be_within_a_point() -> None:
    """Seen to fail: "not more than a point better", at 95 % against 90 %, and at an error of 24.0 against 20.1."""
    wide = Score(0.80, 0.74, 0.86)
    rows = [row("federated", 0.85, 0.95, 1e3), replace(row("alone", 0.80, 0.90, 0.0), score=wide)]
    found = decide(rows, "accuracy", None, RowsHeld(64, 100, 0))
    assert found.way == "alone" and "better by less than the seeds differ" in found.sentences[1]
    rows = [row("pooled", 20.0, 20.0, 1e2), row("federated", 24.0, 24.0, 1e3), row("alone", 20.1, 20.1, 0.0)]
    found = decide(rows, "rmse", None, RowsHeld(64, 100, 0))
    assert found.way == "alone" and "19.4 % worse" in found.sentences[1]


def test_without_rows_that_devices_kept_new_rows_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: no score was a number, so the first way was advised: pooled with 0 %, where others had 50 %."""
    unknown = float("nan")
    scores = {"pooled": (0.0, unknown, 1e3), "federated": (0.5, unknown, 1e4), "alone": (0.5, unknown, 0.0)}
    found = advised(scores)
    text = " ".join((*found.sentences, *found.changes))
    assert found.way == "alone" and "own" not in text and "both" not in text
    assert "On new rows a common model is as good (within a point), and costs each device" in text
    assert found.sentences[1].endswith("No device had rows to keep out of training: the scores on new rows decide.")
    assert advised({**scores, "alone": (0.1, unknown, 0.0)}).way == "federated"

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(12, 4)), y=np.arange(12) % 2, unit=np.arange(12))
    asked = f"advise {tmp_path}/rows.npz --seeds 1 --days 0.2 --model linear --json -o {tmp_path}/page.html"
    assert main(asked.split()) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {row["own"] for row in said["rows"]} == {None}
    assert all(row["accuracy"] is not None for row in said["rows"])
    assert "nan" not in (tmp_path / "page.html").read_text().lower()


NAMES: list[Name] = ["pooled", "data-parallel", "hybrid", "alone"]


@st.composite
def measured(draw: st.DrawFn) -> tuple[list[WayRow], str, Reach | None]:
    """Ways with scores that are often close, equal, or no number."""
    metric = draw(st.sampled_from(["accuracy", "rmse"]))
    near = st.sampled_from([0.89, 0.899, 0.9, 0.9001, 0.905, 0.91, 0.95]).map(
        lambda at: at if metric == "accuracy" else 20 * at
    )
    value = st.one_of(near, st.floats(0, 1 if metric == "accuracy" else 1e4), st.just(float("nan")))
    positive = st.one_of(st.sampled_from([0.0, 1e3, 1e3, 5e3]), st.integers(0, 10**9).map(float))
    rows = []
    for way in ["federated", *draw(st.lists(st.sampled_from(NAMES), unique=True))]:
        score, own, worst = (draw(value) for _ in range(3))
        spread = draw(st.sampled_from([0.0, 0.0, 0.004, 0.1])) * (score if metric == "rmse" else 1)
        moved = 0.0 if way == "alone" else draw(positive)
        seconds = draw(st.sampled_from([1.0, 10.0, 599.0, 601.0, 3600.0, 90_000.0]))
        scores = Score(score, score - spread / 2, score + spread / 2), Score(own, own, own), Score(worst, worst, worst)
        rows.append(WayRow(way, *scores, seconds, moved, 0.0, 1.0, draw(positive), 1.0, 100.0))
    return rows, metric, draw(st.sampled_from([None, "nowhere", "site", "anywhere"]))


def holds(clause: Clause, rows: list[WayRow], metric: str, reach: Reach | None, held: RowsHeld) -> bool:
    """Whether a statement follows from the rows, computed without the code that made it."""
    named = {each.way: each for each in rows}
    mine, other = named[clause.way], named.get(clause.other) if clause.other else None
    better = 1 if metric == "accuracy" else -1
    kept = any(each.own.mean == each.own.mean for each in rows)

    def both(row: WayRow) -> float:
        return (row.score.mean + row.own.mean) / 2 if kept else row.score.mean

    def margin(value: float) -> float:
        return 0.01 if metric == "accuracy" else 0.02 * abs(value)

    def usable(where: Reach | None) -> list[WayRow]:
        reaches = {"nowhere": ("nowhere",), "site": ("nowhere", "site")}.get(
            where or "", ("nowhere", "site", "anywhere")
        )
        found = [each for each in rows if each.exposure.reach in reaches and both(each) == both(each)]
        pooled, parallel = named.get("pooled"), named.get("data-parallel")
        slow = pooled is None or (parallel is not None and parallel.seconds < pooled.seconds > 600)
        return [each for each in found if each.way != "data-parallel" or slow]

    def as_good(where: Reach | None) -> list[WayRow]:
        known = usable(where)
        best = better * max((better * both(each) for each in known), default=0.0)
        spread = {each.way: each.score.high - each.score.low for each in known}
        return [each for each in known if better * (best - both(each)) <= max(margin(best), spread[each.way])]

    def gain() -> float:
        assert other is not None
        at, to = (both(each) if clause.quantity == "both" else each.own.mean for each in (mine, other))
        assert clause.value == pytest.approx(better * (at - to), nan_ok=True)
        return clause.value

    match clause.relation:
        case "is":
            measured = getattr(mine, clause.quantity)
            if clause.quantity in ("score", "own"):
                return score(measured.mean, metric) == clause.words
            return (duration(measured) if clause.quantity == "seconds" else size(measured)) == clause.words
        case "only good":
            return [each.way for each in as_good(reach)] == [mine.way] or not usable(reach)
        case "exposes least":
            return (
                mine.exposure.order == min(each.exposure.order for each in as_good(reach)) and len(as_good(reach)) > 1
            )
        case "fewest of good":
            fewest = min(each.bytes for each in as_good(reach))
            return mine.bytes == fewest and size(fewest) in clause.words and mine in as_good(reach)
        case "better" | "worse":
            assert other is not None
            value = both(other) if clause.quantity == "both" else other.own.mean
            part = f"{100 * abs(gain()):.1f} points" if metric == "accuracy" else " %" if value else ""
            right = gain() > margin(value) if clause.relation == "better" else gain() < -margin(value)
            return right and part in clause.words and clause.words.endswith(clause.relation)
        case "as good":
            assert other is not None
            return abs(gain()) <= margin(both(other) if clause.quantity == "both" else other.own.mean)
        case "no better":
            gains = [better * (each.score.mean - clause.value) for each in rows]
            return (
                not any(each > margin(clause.value) for each in gains) and score(clause.value, metric) in clause.words
            )
        case "unknown":
            return gain() != gain()
        case "within spread":
            assert other is not None
            return margin(both(mine)) < gain() <= other.score.high - other.score.low
        case "fewer":
            assert other is not None
            return mine.bytes < other.bytes and clause.value == pytest.approx(other.bytes / mine.bytes)
        case "even":
            assert other is not None
            at = clause.value
            grown = (mine.bytes - held.model_bytes) * at / held.rows
            return held.model_bytes + grown == pytest.approx(other.bytes) and f"{at:,.0f} rows" in clause.words
        case "chosen":
            good = as_good(clause.reach)
            fewest = clause.reach == "anywhere"
            first = min(good, key=lambda each: (each.bytes if fewest else 0, each.exposure.order), default=mine)
            return first == mine and clause.words in _DONE[mine.way]
    raise AssertionError(clause.relation)


_DONE = {
    "pooled": "collect the rows, and train on one machine",
    "data-parallel": "collect the rows, and train data-parallel",
    "federated": "train federated",
    "hybrid": "train data-parallel within sites, and federate the sites",
    "alone": "train each device alone",
}
_CLAIMS = re.compile(r"\d|fewe|better|worse|behind|good|least|faster|the same|more than a point")
"""What only a clause may say."""


@settings(max_examples=400, deadline=None)
@given(measured(), st.sampled_from([None, 0.0, 0.89, 0.9, 1.0, 18.0]))
def test_every_statement_of_the_advice_follows_from_its_rows(
    drawn: tuple[list[WayRow], str, Reach | None], guess: float | None
) -> None:
    """Seen to fail: a relation turned around, no margin, an answer that is not the rule's, another way's bytes."""
    rows, metric, reach = drawn
    held = RowsHeld(64.0, 100.0, next((each.bytes for each in rows if each.way == "pooled"), 0.0) / 4)
    found = decide(rows, metric, reach, held, guess)
    for clause in found.clauses:
        assert holds(clause, rows, metric, reach, held), clause
    text = whole = " ".join((*found.sentences, *found.changes)).replace(f"more than {duration(600.0)}", "")
    for clause in sorted(found.clauses, key=lambda each: -len(each.words)):
        assert clause.words in whole
        text = text.replace(clause.words, "")
    assert not _CLAIMS.search(text), text
    others: list[Reach] = ["nowhere", "site", "anywhere"]
    if "Wherever" in text:
        assert {decide(rows, metric, other, held).way for other in others} == {found.way}
