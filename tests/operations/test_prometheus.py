"""Alert rules and the dashboard, against Prometheus' own tools and against what the exporter really serves."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.metrics.prometheus import serve
from midge.aggregator.service import Aggregator
from midge.aggregator.standby.policy import StandbyPolicy
from midge.broker.embedded.in_memory import Twin
from midge.wire.frames import encode
from midge.wire.messages import DeviceState, Report, Verdict
from tests import needs
from tests.aggregator.rig import hello
from tests.aggregator.test_exposition import _delivery, scrape
from tests.docs.scripts import ROOT
from tests.ports import free_port
from tests.waiting import LAST_RESORT

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
CASES = DEPLOY / "prometheus" / "alerts_test.yaml"
DASHBOARD = DEPLOY / "grafana" / "midge.json"
SELECTOR = re.compile(r"\b(midge_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
OF_TARGETS = {"job", "instance", "federation"}
"""Labels that Prometheus adds to what it scrapes."""
GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    yaml = needs.module("yaml", "yamllint")
    return list(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def targets() -> Iterator[tuple[str, str]]:
    """Expressions of the dashboard, with its variables replaced, and the titles of their panels."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$federation", "pumps")
            yield panel["title"], expression


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """Names of an exporter's real samples, with the values of each label, of an aggregator with something of each."""
    directory = tmp_path_factory.mktemp("store")
    key = directory / "release.key"
    assert main(["release-key", "new", str(key)]) == 0
    (directory / "release.key.ends").write_text("2040-01-01")
    aggregator = Aggregator(
        AggregatorConfig(
            connector=Twin().connect,
            federation="f",
            initial={"w": np.zeros(3, np.float32)},
            store=directory / "store",
            release_key=key,
            standby=StandbyPolicy(follow=True),
        )
    )
    aggregator.open()
    try:
        for state in DeviceState:
            aggregator.federation.process([_delivery(*hello(f"pump-{state.value}", state=state))], 0.0)
        federation, now = aggregator.federation, time.monotonic()
        report = encode(Report(lineage=aggregator.core.lineage, version=0, examples=5, metrics={"loss": 0.5}))
        for number in range(3):  # a fast one, a middle one and a slow one
            federation.process([_delivery(aggregator.config.topics.report(f"pump-{number}"), report)], 0.0)
            federation.reports.trained(f"pump-{number}", 1.0 + number)
        federation.process([_delivery("midge/1/f/update/0/pump-0", b"x")], 0.0)  # is dropped
        federation.activity.heard("pump-0", now)
        federation.activity.settled("pump-0", Verdict.ACCEPTED, "", now)
        aggregator.evaluation.metrics = {"accuracy": 0.9}
        aggregator.evaluation.combine(federation, 10.0)
        aggregator.federation.credential_alarms.now()
        found: dict[str, dict[str, set[str]]] = {}
        for family in text_string_to_metric_families(scrape(aggregator)):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    finally:
        aggregator.close()
    return found


def strangers(expression: str, page: dict[str, dict[str, set[str]]]) -> list[str]:
    """What an expression asks for that the exporter does not serve: a metric, a label, or the value of a label."""
    wrong = []
    for metric, inside in SELECTOR.findall(expression):
        if metric not in page:
            wrong.append(metric)
            continue
        for label, operator, value in MATCHER.findall(inside):
            if label in OF_TARGETS:
                continue
            if label not in page[metric]:
                wrong.append(f"{metric}{{{label}}}")
            elif label in ("verdict", "state", "event", "of", "direction"):
                asked = value.split("|") if "~" in operator else [value]
                wrong += [f"{metric}{{{label}={each}}}" for each in asked if each not in page[metric][label]]
    known = OF_TARGETS | {"le"} | {label for labels in page.values() for label in labels}
    wrong += [word for group in GROUPED.findall(expression) for word in re.split(r",\s*", group) if word not in known]
    return wrong


def test_every_expression_asks_for_what_the_exporter_serves(page: dict[str, dict[str, set[str]]]) -> None:
    """Seen to fail on a metric that was renamed, a verdict that does not exist and a label that none has."""
    wanted = [(rule["alert"], rule["expr"]) for rule in rules()] + list(targets())
    assert len(wanted) > 50
    assert {name: wrong for name, text in wanted if (wrong := strangers(text, page))} == {}


def test_the_dashboard_shows_every_metric_or_a_rule_watches_it(page: dict[str, dict[str, set[str]]]) -> None:
    asked = {
        metric
        for _, text in [*targets(), *((r["alert"], r["expr"]) for r in rules())]
        for metric, _ in SELECTOR.findall(text)
    }
    shown = {name.removesuffix(suffix) for name in asked for suffix in ("_bucket", "")}
    served = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in page}
    assert served - shown <= {"midge_alarming"}, "alarms and the state say the same"


@pytest.mark.parametrize(
    "check",
    [
        ("check", "rules", str(ALERTS)),
        ("check", "config", str(ALERTS.with_name("prometheus.yaml"))),
        ("test", "rules", str(CASES)),
    ],
    ids=["rules", "config", "unit tests"],
)
def test_promtool_accepts(check: tuple[str, ...]) -> None:
    """The rules' unit tests were seen to fail on another threshold and on another `for`."""
    promtool = needs.program("promtool", needs.PROMTOOL)
    done = subprocess.run([promtool, *check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case_that_fires_and_one_that_does_not() -> None:
    yaml = needs.module("yaml", "yamllint")
    fires: dict[str, set[bool]] = {}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            fires.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in rules()}


def test_promtool_can_parse_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    promtool = needs.program("promtool", needs.PROMTOOL)
    yaml = needs.module("yaml", "yamllint")
    recorded = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(targets())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_a_valid_model() -> None:
    """By Grafana's dashboard JSON model: identifiers, 24 columns without overlaps, declared variables."""
    found = dashboard()
    assert found["uid"] and found["title"] and found["schemaVersion"] >= 36
    variables = {each["name"] for each in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(found))) - {"__rate_interval", "__all"}
    assert used == variables
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert own and not own & cells and max(x for x, _ in own) < 24, panel["title"]
        cells |= own
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries"} and panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references))
        assert all('federation=~"$federation"' in target["expr"] for target in panel["targets"]), panel["title"]
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [{"value": None}])
        assert steps[0]["value"] is None
        assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:])


def test_grafana_finds_the_dashboard() -> None:
    yaml = needs.module("yaml", "yamllint")
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "provisioning.yaml").read_text())["providers"]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/")


def test_a_prometheus_scrapes_an_aggregator_and_evaluates_all(tmp_path: Path) -> None:
    """The config as it is, but for port and interval; every rule and panel is evaluated on real samples."""
    prometheus = needs.program("prometheus", needs.PROMTOOL)
    ports = free_port(), free_port()
    text = ALERTS.with_name("prometheus.yaml").read_text()
    assert "localhost:9464" in text and text.count("15s") == 2
    text = text.replace("localhost:9464", f"127.0.0.1:{ports[0]}").replace("15s", "1s")
    config = tmp_path / "prometheus.yaml"
    config.write_text(text.replace("alerts.yaml", str(ALERTS)))
    aggregator = Aggregator(
        AggregatorConfig(
            connector=Twin().connect, federation="f", initial={"w": np.zeros(3, np.float32)}, store=tmp_path / "store"
        )
    )
    aggregator.open()
    serve(aggregator, ports[0])
    command = [
        prometheus,
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{ports[1]}",
    ]

    def ask(path: str, **query: str) -> Any:
        with urlopen(f"http://127.0.0.1:{ports[1]}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def until(done: Callable[[], object]) -> None:
        end = time.monotonic() + LAST_RESORT
        while time.monotonic() < end:
            with suppress(OSError):
                if done():
                    return
            assert process.poll() is None
            time.sleep(0.1)
        raise TimeoutError

    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until(lambda: ask("query", query='midge_disk_bytes{federation="pumps", job="midge"}')["result"])
            until(lambda: {rule["health"] for group in ask("rules")["groups"] for rule in group["rules"]} == {"ok"})
            for _, expression in targets():
                ask("query", query=expression)  # an error is a status of its own
            (ready,) = ask("query", query="midge_ready == 0")["result"]
            assert ready["metric"]["federation"] == "pumps"
        finally:
            process.terminate()
            aggregator.close()
