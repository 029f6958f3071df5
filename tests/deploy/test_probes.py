"""What a prober is answered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.metrics.prometheus import pages
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin


def get(aggregator: Aggregator, path: str) -> tuple[str, str]:
    said: list[str] = []

    def start(status: str, headers: Any) -> None:
        said.append(status)

    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    body = b"".join(pages(aggregator)(environ, start)).decode()
    return said[0], body


def test_ready_while_updates_are_taken_in_and_alive_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(
        AggregatorConfig(
            connector=Twin().connect, federation="f", initial={"w": np.zeros(3, np.float32)}, store=tmp_path
        )
    )
    assert get(aggregator, "/alive") == ("200 OK", "alive\n")
    assert get(aggregator, "/ready")[0].startswith("503")  # the store is not open
    aggregator.open()
    try:
        assert get(aggregator, "/ready")[0].startswith("503")  # nor is there a broker
        monkeypatch.setattr(aggregator, "_connected", True)
        assert get(aggregator, "/ready") == ("200 OK", "ready\n")
        assert "midge_ready 1.0" in get(aggregator, "/metrics")[1]
    finally:
        aggregator.close()
    assert get(aggregator, "/alive")[0] == "200 OK"
