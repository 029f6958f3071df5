"""What Prometheus sees."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.metrics.counters import Histogram
from midge.aggregator.metrics.prometheus import Exposition
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from tests.aggregator.rig import hello


def scrape(aggregator: Aggregator) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exposition(aggregator))
    return generate_latest(registry).decode()


def test_the_page_before_and_while_the_store_is_open_has_no_label_for_a_device(tmp_path: Path) -> None:
    aggregator = Aggregator(
        AggregatorConfig(
            connector=Twin().connect, federation="f", initial={"w": np.zeros(3, np.float32)}, store=tmp_path
        )
    )
    assert "midge_updates_total" in scrape(aggregator)
    aggregator.open()
    for number in range(1000):
        name, payload = hello(f"pump-{number}")
        aggregator.federation.processor.process([_delivery(name, payload)], 0.0)
    page = scrape(aggregator)
    aggregator.close()
    assert 'midge_devices{state="ready"} 1000.0' in page
    assert "midge_ready 0.0" in page
    assert 'midge_health{state="waiting"} 1.0' in page and 'midge_health{state="stalled"} 0.0' in page
    assert "midge_alarming 0.0" in page and "midge_last_accepted_timestamp_seconds 0.0" in page
    assert "pump-" not in page and len(page) < 10_000
    assert not re.search(r"(?m)^midge_model_version [1-9]", page)


def value(page: str, metric: str) -> float:
    (found,) = re.findall(rf"(?m)^{re.escape(metric)} (\S+)$", page)
    return float(found)


def test_the_page_shows_a_wrong_clock_the_store_and_its_lag(tmp_path: Path) -> None:
    aggregator = Aggregator(
        AggregatorConfig(
            connector=Twin().connect, federation="f", initial={"w": np.zeros(3, np.float32)}, store=tmp_path
        )
    )
    aggregator.open()
    federation = aggregator.federation
    before = scrape(aggregator)
    assert value(before, "midge_clock_trusted") == 1 and abs(value(before, "midge_clock_skew_seconds")) < 60
    assert value(before, "midge_journal_lag_records") == value(before, "midge_last_release_timestamp_seconds") == 0
    federation.begin(time.monotonic())  # the first release
    federation.issuer.dating.resume(time.time() + 10 * 86_400)
    after = scrape(aggregator)
    aggregator.close()
    assert value(after, "midge_clock_trusted") == 0
    assert value(after, "midge_clock_skew_seconds") == pytest.approx(-10 * 86_400, abs=60)
    assert value(after, "midge_journal_lag_records") == federation.core.lsn > 0
    assert value(after, "midge_last_release_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert value(after, "midge_store_bytes") >= (tmp_path / "store.db").stat().st_size > 0
    assert 0 < value(after, "midge_disk_free_bytes") <= value(after, "midge_disk_bytes")
    assert value(after, 'midge_events_total{event="release"}') == 1


def _delivery(topic: str, payload: bytes) -> Delivery:
    return Delivery(topic, payload, 1, retain=True)


def test_a_histogram_counts_each_observation_once_at_its_bound_and_above() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 9):
        histogram.observe(value)
    assert histogram.cumulative() == [("1", 2), ("2", 3), ("4", 4), ("+Inf", 5)]
    assert (histogram.count, histogram.total) == (5, 16)
