"""Settings files: what is written in TOML is what the same arguments make in Python or on the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import midge
from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.commands import aggregate, device
from midge.commands.config import model, parser_of
from midge.configuration import aggregator_file, device_file
from midge.configuration.aggregator_file import AggregatorSettings
from midge.configuration.listing import kinds, rows
from midge.configuration.strategies import PRESETS, strategy_of
from midge.configuration.toml_file import TomlFile, tables_of
from midge.wire import signing

LEAST = """
[broker]
url = "mqtt://localhost"
[federation]
name = "pumps"
[model]
kind = "linear"
task = "regression"
inputs = 3
[store]
path = "store"
"""


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def config_of(text: str, folder: Path) -> AggregatorConfig:
    path = folder / "midge.toml"
    path.write_text(text)
    settings = AggregatorSettings(TomlFile(path), parser_of(aggregate, "aggregate"))
    return settings.aggregator(lambda name: {"w": np.zeros(3, np.float32)} if name == "net:initial" else None).config


def same(one: AggregatorConfig, other: AggregatorConfig) -> None:
    for field in dataclasses.fields(AggregatorConfig):
        if field.name == "initial":
            assert one.initial.keys() == other.initial.keys()
            assert all(np.array_equal(one.initial[name], other.initial[name]) for name in one.initial)
        elif field.name == "features":
            assert list(one.features or ()) == list(other.features or ())
        elif field.name != "connector":
            assert getattr(one, field.name) == getattr(other, field.name), field.name


def python(**more: Any) -> AggregatorConfig:
    """What a program would write."""
    frozen = ("input_mean", "input_scale", "target_mean", "target_scale")
    return midge.Aggregator(
        "mqtt://localhost",
        federation="pumps",
        store=more.pop("store", "store"),
        initial=midge.Linear(3, outputs=1, task="regression").initial(),
        roles=dict.fromkeys(frozen, "frozen"),
        moments={"input": 3, "target": 1},
        **more,
    ).config


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["short", "full"])
def test_the_example_of_an_aggregator_means_the_defaults(
    full: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "config", "example", *full)
    same(config_of(text, tmp_path), python(store="pumps", features=["speed", "pressure", "temperature"]))


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["short", "full"])
def test_the_example_of_a_device_means_the_defaults(
    full: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "device.toml"
    path.write_text(printed(capsys, "config", "example", "--device", *full))
    parser = parser_of(device, "device")
    args, by_hand = (
        parser.parse_args([]),
        parser.parse_args(
            f"--broker mqtt://localhost --federation pumps --name pump-1 --csv {tmp_path}/pump-1.csv --label power "
            "--features speed,pressure,temperature".split()
        ),
    )
    device_file.apply_file(TomlFile(path), args, parser)
    assert vars(args) == vars(by_hand)


@pytest.mark.parametrize("kind", ["aggregator", "device"])
@pytest.mark.parametrize("full", [[], ["--full"]], ids=["short", "full"])
def test_the_schema_takes_the_example_and_no_other_key(
    kind: str, full: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import tomllib

    of = ["--device"] if kind == "device" else []
    schema = json.loads(printed(capsys, "config", "schema", *of))
    text = printed(capsys, "config", "example", *of, *full)
    assert text.startswith(f"#:schema ./midge-{kind}.schema.json\n")
    values = tomllib.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(values)
    assert "null" not in json.dumps(schema)
    assert not validator.is_valid({**values, "brokre": {}})
    assert not validator.is_valid({**values, "broker": {**values["broker"], "port": 1883}})
    if kind == "aggregator":
        assert validator.is_valid({**values, "strategy": {"deadline": 5}})
        assert validator.is_valid({**values, "strategy": {"deadline": "5 min"}})
        assert not validator.is_valid({**values, "strategy": {"deadline": "5 minutes"}})
        assert validator.is_valid({**values, "strategy": {"preset": "fedbuff", "deadline": "none"}})
        assert not validator.is_valid({**values, "strategy": {"preset": "fedbuff", "fairness_": 5}})


def test_every_field_of_the_config_is_a_key_or_left_out_with_a_reason() -> None:
    keys = [name for names in aggregator_file.FIELDS.values() for name in names]
    fields = [field.name for field in dataclasses.fields(AggregatorConfig)]
    assert sorted([*keys, *aggregator_file.LEFT_OUT]) == sorted(fields)


@pytest.mark.parametrize(
    ("command", "name", "tables", "left"),
    [
        (device, "device", device_file.OPTIONS, device_file.LEFT_OUT),
        (
            aggregate,
            "aggregate",
            aggregator_file.OPTIONS,
            {
                *("help", "app", "set", "replace", "raise_epoch"),
                *("release_key", "features", "site", "shards", "plan"),  # keys of [security], [federation] and [plan]
            },
        ),
    ],
)
def test_every_option_is_a_key_or_left_out(command: Any, name: str, tables: Any, left: Any) -> None:
    options = {action.dest for action in parser_of(command, name)._actions}
    assert sorted([*(dest for table in tables.values() for dest in table.values()), *left]) == sorted(options)


def test_every_number_of_a_strategy_and_of_the_limits_is_a_key() -> None:
    strategies = kinds(model("aggregator"), "strategy")
    numbers = {field.name for field in dataclasses.fields(Strategy)}
    for name, table in strategies.items():
        assert numbers - {"name", "plan", "rate", "privacy", "weigh_devices", "relays"} <= {*table.model_fields}, name
    (limits,) = kinds(model("aggregator"), "limits").values()
    assert [*limits.model_fields] == [field.name for field in dataclasses.fields(IngressLimits)]


@pytest.mark.parametrize("kind", ["aggregator", "device"])
def test_every_key_has_a_meaning(kind: str) -> None:
    without = []
    for table in tables_of(model(kind)):
        found = [model(kind)]
        for part in table:
            found = [inner for each in found if part in each.model_fields for inner in kinds(each, part).values()]
        without += [(*table, row.name) for each in found for row in rows(each) if len(row.text) < 5]
    assert set(without) == set()


# ------------------------------------------------------------------------------- the same as in Python


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("", midge.balanced()),
        ("[strategy]\ndeadline = 5", midge.balanced(deadline=5.0)),
        ('[strategy]\ndeadline = "none"\nclip = "none"', midge.balanced(deadline=None, clip=None)),
        (
            '[strategy]\nmax_age = "2 h"\n[strategy.pace]\ninterval = "10 min"\n[plan]\nevaluate = "1 d"',
            midge.balanced(max_age=7200.0, pace=midge.Pace(interval=600.0), plan=midge.Plan(evaluate=86400.0)),
        ),
        ('[strategy]\nnormalise = "none"', dataclasses.replace(midge.balanced(), normalise="none")),
        ('[strategy]\npreset = "fedbuff"\nbuffer_size = 3', midge.fedbuff(3)),
        (
            '[strategy]\npreset = "fedbuff"\nnormalise = "weight"\n[strategy.staleness]\nkind = "hinge"\nb = 2.0',
            midge.fedbuff(normalise="weight", staleness=midge.hinge(b=2.0)),
        ),
        ('[strategy]\npreset = "fedasync"\nalpha = 0.3\nform = "delta"', midge.fedasync(0.3, form="delta")),
        ('[strategy]\npreset = "fedasync"\n[plan]\nproximal = 0.1', midge.fedasync(plan=midge.Plan(proximal=0.1))),
        ('[strategy]\npreset = "fedavg"\ncohort = 4', midge.fedavg(4)),
        ('[strategy]\npreset = "ca2fl"\ncalibration = 0.5', midge.ca2fl(calibration=0.5)),
        ('[strategy]\npreset = "fadas"\ndelay = 2', midge.fadas(delay=2)),
        (
            '[strategy]\npreset = "private"\n[strategy.privacy]\nclip = 1.0\nnoise = 4.0\nepsilon = 8.0',
            midge.private(midge.Privacy(clip=1.0, noise=4.0, epsilon=8.0)),
        ),
        (
            '[strategy]\ncombine = "trimmed"\ntrim = 0.1\n[strategy.pace]\ninterval = 60',
            midge.balanced(combine="trimmed", trim=0.1, pace=midge.Pace(interval=60.0)),
        ),
        ('[strategy]\noptimizer = {kind = "adam", beta1 = 0.5}', midge.balanced(optimizer=midge.adam(0.5))),
        (
            "[plan]\nlearning_rate = 0.05\nlocal_steps = 20",
            midge.balanced(plan=midge.Plan(learning_rate=0.05, local_steps=20)),
        ),
    ],
)
def test_a_strategy_is_that_of_python(text: str, strategy: Strategy, tmp_path: Path) -> None:
    same(
        config_of(LEAST + text, tmp_path),
        python(strategy=strategy) if strategy.privacy is None else _without_statistics(strategy),
    )


def _without_statistics(strategy: Strategy) -> AggregatorConfig:
    return dataclasses.replace(python(), strategy=strategy, moments=None)


@pytest.mark.parametrize("name", sorted({*PRESETS} - {"private"}))
def test_a_preset_by_its_name_alone_is_that_preset(name: str) -> None:
    assert strategy_of({"preset": name}, {}) == PRESETS[name]()


def test_a_cohort_stays_where_the_pace_is_changed() -> None:
    assert strategy_of({"preset": "fedavg", "pace": {"interval": 60.0}}, {}).pace == midge.Pace(
        cohort=10, interval=60.0
    )


@pytest.mark.parametrize(
    ("text", "initial"),
    [
        ('kind = "logistic"\ninputs = 4', midge.Logistic(4).initial()),
        ('kind = "mlp"\ninputs = 4\nhidden = [8]\ntask = "binary"', midge.MLP(4, (8,), 1, "binary").initial()),
        (
            'kind = "mlp"\ninputs = 4\ntask = "classification"\noutputs = 3\nseed = 7',
            midge.MLP(4, outputs=3).initial(7),
        ),
        ('kind = "autoencoder"\ninputs = 20\nhidden = [4]', midge.Autoencoder(20, (4,)).initial()),
        ('kind = "python"\nattribute = "net:initial"', {"w": np.zeros(3, np.float32)}),
    ],
)
def test_a_model_is_that_of_python(text: str, initial: Any, tmp_path: Path) -> None:
    config = config_of(LEAST.replace('kind = "linear"\ntask = "regression"\ninputs = 3', text), tmp_path)
    assert config.initial.keys() == initial.keys()
    assert all(np.array_equal(config.initial[name], initial[name]) for name in initial)


def test_weights_of_a_file_are_beside_the_settings(tmp_path: Path) -> None:
    np.savez(tmp_path / "begin.npz", w=np.ones(2, np.float32))
    text = LEAST.replace('kind = "linear"\ntask = "regression"\ninputs = 3', 'kind = "file"\npath = "begin.npz"')
    assert np.array_equal(config_of(text, tmp_path).initial["w"], [1, 1])


def test_files_that_are_read_are_beside_the_settings_and_the_store_is_not(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "release.key").write_bytes(signing.new_key().pem())
    config = config_of(f'{LEAST}[security]\nrelease_key = "keys/release.key"\n[limits]\nrate = "none"', tmp_path)
    assert config.release_key == tmp_path / "keys" / "release.key"
    assert config.store == "store"
    assert config.limits == IngressLimits(rate=None)


# ------------------------------------------------------------------------------- order and commands


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(
        '[data]\ncsv = "a.csv"\ntrain_after = 5\nclasses = ["good, as new", "bad"]\n[costs]\nbytes_per_month = "50M"\n'
    )
    parser = parser_of(device, "device")
    args = parser.parse_args(["--csv", "b.csv"])
    device_file.apply_file(TomlFile(path, ["data.keep_rows=7", "data.label=power"]), args, parser)
    assert (args.csv, args.train_after, args.keep_rows, args.label) == ("b.csv", 5, 7, "power")
    assert (args.classes, args.bytes_per_month) == ('"good, as new",bad', 50e6)


def test_a_bundle_is_named_by_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "broker",
                "init",
                "--name",
                "pumps",
                "--host",
                "localhost",
                "--devices",
                "1",
                "--out",
                str(tmp_path / "fleet"),
            ]
        )
        == 0
    )
    text = LEAST.replace('url = "mqtt://localhost"', 'bundle = "fleet/aggregator"').replace('name = "pumps"', "")
    (tmp_path / "midge.toml").write_text(text)
    capsys.readouterr()
    assert "federation 'pumps'" in printed(capsys, "config", "check", str(tmp_path / "midge.toml"))
    assert "is a bundle: dev0001" in printed(capsys, "config", "check", str(tmp_path / "fleet/devices/dev0001"))


def test_a_device_loads_no_server_for_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text('[broker]\nurl = "mqtt://localhost"\n[data]\ncsv = "a.csv"\n')
    code = (
        "import sys; from midge.__main__ import main; code = main(sys.argv[1:]);"
        "print(sorted(name for name in sys.modules if name.startswith(('midge.aggregator', 'aiomqtt'))), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "config", "check", str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_a_reader_that_stops_reading_ends_the_command_without_a_traceback() -> None:
    """Seen to fail with a traceback: `midge config schema | head -1`."""
    command = [sys.executable, "-m", "midge", "config", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
