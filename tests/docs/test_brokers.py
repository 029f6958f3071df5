"""The page on brokers says what was measured."""

from types import ModuleType

import pytest

from midge.broker.mqtt.services import SERVICES
from tests.brokers.known import KNOWN
from tests.brokers.programs import PROGRAMS
from tests.docs import scripts


@pytest.fixture(name="script")
def _script() -> ModuleType:
    return scripts.script("brokers")


def test_every_broker_has_a_name_and_every_figure_words(script: ModuleType) -> None:
    assert set(script.NAMES) == set(PROGRAMS)
    assert {name for service in SERVICES.values() for name in service.figures} == set(script.FIGURES)
    assert KNOWN.keys() <= PROGRAMS.keys()


def test_rows_become_tables(script: ModuleType) -> None:
    """With rows made up here: each value is in its table, and a broker that is missing is a row too."""
    ran = {
        "broker": "rabbitmq",
        "version": "rabbitmq 3.10.8",
        "contract": {"passed": 21, "failed": 7, "differs": ["sends little"], "unexpected": []},
        "check": {"protocol": "MQTT 3.1.1"},
        "demo_seconds": 12.34,
        "demo_good": True,
        "kills": 3,
        "kills_updates": 40,
        "kills_lost": 0,
        "clean_left": 0,
        "clean_seen": 50,
        "clean_named": True,
    }
    missing = {"broker": "aedes", "version": None, "missing": "aedes is not installed: npm install"}
    service = {"service": "aws-iot", "devices": 20, "model_mb": 5.0, "seconds": 33.3, "receipts": 20, "fetched": 19}
    service["violations"] = []
    found = [ran, missing, service]
    own, hosted = "\n".join(script.brokers(found)), "\n".join(script.services(found))
    assert "| 3.10.8 | MQTT 3.1.1 | 21, 7 | 12.3 s | 3 kills, 40 updates: 0 lost | 0 of 50, devices named |" in own
    assert "- RabbitMQ, `rabbitmq_mqtt` sends little." in own
    assert "| aedes | not run | aedes is not installed: npm install |" in own
    assert "| `aws-iot` | 20 | 5 MB | 33 s | 20, 19 | none |" in hosted
    assert script.brokers([]) == script.services([]) == script.MISSING
