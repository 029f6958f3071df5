"""A mistake in a settings file: where it is, and what to write instead."""

from pathlib import Path
from typing import Any

import pytest

import midge
from midge.__main__ import main

AGGREGATOR = """\
[broker]
url = "mqtt://localhost"

[federation]
name = "pumps"
features = ["speed", "pressure"]

[model]
kind = "linear"
task = "regression"

[store]
path = "store"

[strategy]
"""
DEVICE = """\
[broker]
url = "mqtt://localhost"

[data]
csv = "a.csv"
label = "power"
"""


def told(text: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    path = folder / "midge.toml"
    path.write_text(text)
    assert main(["config", "check", str(path), *more]) == 2
    return [line.removeprefix("midge: ").replace(str(path), "FILE") for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deadlin = 5", "FILE:16: strategy.deadlin is not known: did you mean deadline?"),
        ("retention = 5", "FILE:16: strategy.retention is not known here: move it to [store]."),
        ("cohort = 5", "FILE:16: strategy.cohort is of another kind (fedavg): leave it out."),
        ("[stroe]", "FILE:16: stroe is not known: did you mean store?"),
        (
            'deadline = "soon"',
            "FILE:16: strategy.deadline is 'soon': 'soon' is not a quantity: use a unit of ms, s, min, h, d, such as",
        ),
        ("robust = 1", "FILE:16: strategy.robust is 1: it must be true or false."),
        (
            'combine = "meen"',
            "FILE:16: strategy.combine is 'meen': it must be 'mean', 'trimmed' or 'centred' (did you mean mean?).",
        ),
        (
            'preset = "fedbuf"',
            "FILE:16: strategy.preset is 'fedbuf': it must be one of balanced, fedasync, fedbuff, fedavg, ca2fl, ",
        ),
        (
            "[strategy.pace]\nshare = 3.0",
            "FILE:17: strategy.pace.share is 3.0: it must be a finite number above 0 and at most 1.",
        ),
        ("pace = {share = 3.0}", "FILE:16: strategy.pace.share is 3.0: it must be a finite number above 0 and "),
        ("pace = 3", "FILE:16: strategy.pace is 3: it must be "),
        (
            "[limits]\nburst = 0",
            "FILE:17: limits.burst is 0.0: it must be a finite number of at least 1.",
        ),
        ("[plan]\nlocal_steps = 0", "FILE:17: plan.local_steps is 0: it must be at least 1."),
        ('[plan]\ncodec = "zip"', "FILE:17: plan.codec: no device could follow the plan: unknown codec 'zip'"),
        ("trim = 0.2", "FILE:16: strategy.trim: trim belongs to combine='trimmed', which needs it above 0."),
        ('deadline = 5"', "FILE:16: this is no TOML: "),
        ("[strategy]\ndeadline = 5", "FILE:16: this is no TOML: "),
        ("[security]\nrequire_signed = true", "FILE:17: security.require_signed: "),
    ],
)
def test_a_mistake_of_an_aggregator(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line, *_) = told(AGGREGATOR + text, tmp_path, capsys)
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "linear"', 'kind = "liner"', "FILE:9: model.kind is 'liner': it must be one of linear, logistic, mlp"),
        ('kind = "linear"', "", "FILE:8: model.kind is missing: add one of linear, logistic, mlp"),
        ('task = "regression"', "", "FILE:8: model.task is missing: add it."),
        ('task = "regression"', 'task = "classification"', "FILE:8: a model for classification needs outputs"),
        (
            'task = "regression"',
            'task = "regression"\ninputs = 3',
            "FILE:6: federation.features: the model has 3 inputs",
        ),
        ('features = ["speed", "pressure"]\n', "", "FILE:7: a linear model needs inputs: say how many"),
        ('path = "store"', "", "FILE:12: store.path is missing: add it."),
        ('[store]\npath = "store"', "", "FILE: store is missing: add it."),
        ('name = "pumps"', 'name = "a/b"', "FILE:5: federation.name: 'a/b' cannot be a federation"),
        ('name = "pumps"', "", "FILE: federation.name is missing: add it, or name a bundle in [broker]."),
        ('url = "mqtt://localhost"', "", "FILE: broker.url is missing: add the broker's address, or the bundle."),
        ('url = "mqtt://localhost"', 'bundle = "none"', "{folder}/none cannot be read"),
        (
            'kind = "linear"',
            'kind = "mlp"\nhidden = [70000, 70000]',
            "FILE:8: the mlp model cannot be made of these values: it would have 4,900,350,001 values, and ",
        ),
        ('kind = "linear"', 'kind = "python"\nattribute = "no_such:net"', "There is no module 'no_such'"),
    ],
)
def test_a_mistake_of_the_model_or_the_place(
    old: str, new: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = AGGREGATOR.replace(old, new)
    if "python" in new:
        text = text.replace('task = "regression"\n', "")
    (line, *_) = told(text, tmp_path, capsys)
    assert line.startswith(words.replace("{folder}", str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('labl = "x"', "FILE:7: data.labl is not known: did you mean label?"),
        ("isolate = true", "FILE:7: data.isolate is not known here: move it to [process]."),
        ('[costs]\nbytes_per_month = "much"', "FILE:8: costs.bytes_per_month: 'much' is no amount such as 50M"),
        ('[costs]\nwatts = "2"', "FILE:8: costs.watts is '2': it must be a number."),
        (
            'model = "cnn"',
            "FILE:7: data.model is 'cnn': it must be 'auto', 'linear', 'softmax', 'mlp' or 'autoencoder'.",
        ),
        ('[conditions]\nhours = ["25:00-26:00"]', "'25:00-26:00'"),
        ("[sleep]\nawake = 60", "--awake goes with --wake-every or --once"),
        ('[broker_]\nurl = ""', "FILE:7: broker_ is not known: did you mean broker?"),
        ("features = 3", "FILE:7: data.features is 3: it must be a list."),
    ],
)
def test_a_mistake_of_a_device(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line, *_) = told(DEVICE + text, tmp_path, capsys)
    assert line.startswith(words)


@pytest.mark.parametrize("text", [AGGREGATOR, DEVICE], ids=["aggregator", "device"])
def test_a_password_in_an_address_is_refused_and_not_repeated(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(text.replace("mqtt://localhost", "mqtts://anna:secret@mqtt.lan"), tmp_path, capsys)
    assert lines == [
        "FILE:2: broker.url: url holds a password: write anna@mqtt.lan without it, and name its file in password_file."
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip", "nan"), ("deadline", "inf"), ("release_interval", "-1.0"), ("byte_rate", "nan"), ("norm_limit", "nan")],
)
def test_a_file_is_refused_in_the_words_of_python(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`midge config check` called a clip norm of NaN right."""
    with pytest.raises(ValueError, match="it must be") as caught:
        midge.balanced(**dict[str, Any]({key: float(value)}))
    (line,) = told(AGGREGATOR + f"{key} = {value}", tmp_path, capsys)
    assert line == f"FILE:16: strategy.{caught.value}".replace("or None", 'or "none"')


def test_other_spellings_are_taken_and_other_words_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The word "median" was answered with "did you mean mean?"; the file refused a spelling that Python takes."""
    (line,) = told(AGGREGATOR + 'combine = "median"', tmp_path, capsys)
    assert line == "FILE:16: strategy.combine is 'median': it must be 'mean', 'trimmed' or 'centred'."
    (tmp_path / "midge.toml").write_text(AGGREGATOR + 'combine = "centered"')
    assert main(["config", "check", str(tmp_path / "midge.toml")]) == 0


def test_several_mistakes_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(AGGREGATOR + "deadlin = 5\nrobust = 1\n[limts]", tmp_path, capsys)
    assert [line.split(" ")[0] for line in lines] == ["FILE:16:", "FILE:17:", "FILE:18:"]


def test_a_change_of_the_command_line_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told(AGGREGATOR, tmp_path, capsys, "--set", "strategy.robust=1")
    assert line == "--set strategy.robust is 1: it must be true or false."
    (line,) = told(AGGREGATOR, tmp_path, capsys, "--set", "strategy.robust")
    assert line == "--set strategy.robust: write KEY=VALUE, such as --set strategy.deadline=5."


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["agregate"], "there is no 'agregate': did you mean aggregate?"),
        (["config", "chek"], "there is no 'chek' (check, example, schema): did you mean check?"),
        (["config", "example", "--ful"], None),  # argparse takes a beginning that is clear
        (["config", "example", "--fulll"], "unrecognized arguments: --fulll: did you mean --full?"),
        (["aggregate", "server:app", "--brokr=x"], "unrecognized arguments: --brokr=x: did you mean --broker?"),
        (["device", "statsu", "x.outbox"], "did you mean status?"),
    ],
)
def test_a_mistyped_command_or_option_is_told_with_what_is_meant(
    words: list[str], error: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    found = capsys.readouterr().err
    assert (code, error or "") == (
        0 if error is None else 2,
        error if error and error in found else "",
    ) or found == error


def test_an_aggregator_is_described_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "midge.toml"
    path.write_text(AGGREGATOR)
    assert main(["aggregate", "server:app", "--config", str(path)]) == 2
    assert "both describe an aggregator: give one of them" in capsys.readouterr().err
    assert main(["aggregate"]) == 2
    assert "Say what to serve" in capsys.readouterr().err
    assert main(["aggregate", "server:app", "--set", "a=1"]) == 2
    assert "--set replaces keys of a settings file" in capsys.readouterr().err
