"""A real Home Assistant beside a federation: what it shows, and that its switch works.

    make home-assistant

It is no part of `make test`, because Home Assistant needs Python 3.13 and 300 MB of its own; MIDGE_HOME_ASSISTANT names
the Python of its environment. Home Assistant itself reads every discovery message, renders every template and calls the
services; a warning of its MQTT integration fails the test.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from midge.aggregator.home_assistant_bridge import ShownAggregator
from midge.aggregator.store.pausing import paused
from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.federation_view import clear_federation
from midge.iot_client.board.duty_cycle import Duty
from midge.iot_client.training.evaluation import Scores
from midge.wire.topics import HomeTopics, Topics
from tests.federation.live import Log, aggregator, device, serving
from tests.ports import free_port

PROGRAM = Path(__file__).with_name("home_assistant_core.py")
TOPICS = Topics("f")
PREFIX = f"midge-{HomeTopics(TOPICS).node}"
AWAY = "unavailable"


class HomeAssistant:
    """The process, and what it showed last."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.states: dict[str, Any] = {}
        self.complaints: list[str] = []

    async def until(self, done: Callable[[], object]) -> None:
        """Read what it shows until something is so."""
        assert self._process.stdout is not None
        async with asyncio.timeout(120):
            while not done():
                line = json.loads(await self._process.stdout.readline())
                if line["kind"] == "states":
                    self.states = line["states"]
                else:
                    self.complaints.append(line["message"])

    def state(self, key: str, of: str = "aggregator") -> str:
        return str(self.states.get(f"{PREFIX}-{of}-{key}", {}).get("state"))

    def attributes(self, key: str, of: str = "aggregator") -> dict[str, Any]:
        return dict(self.states[f"{PREFIX}-{of}-{key}"]["attributes"])

    def call(self, service: str, key: str) -> None:
        assert self._process.stdin is not None
        entity = self.states[f"{PREFIX}-aggregator-{key}"]["entity"]
        self._process.stdin.write(f"{service} {entity}\n".encode())


@asynccontextmanager
async def home_assistant(directory: Path, port: int) -> AsyncIterator[HomeAssistant]:
    directory.mkdir()  # noqa: ASYNC240 - nothing else runs yet
    process = await asyncio.create_subprocess_exec(
        *(os.environ["MIDGE_HOME_ASSISTANT"], str(PROGRAM), str(directory), str(port), str(free_port())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield HomeAssistant(process)
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(60):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_home_assistant_shows_a_federation_and_its_switch_pauses_it(tmp_path: Path) -> None:
    log = Log()
    async with local_broker("mosquitto", directory=tmp_path) as broker:
        reach = connector(broker.endpoint)
        twin: Any = type("Reach", (), {"connect": staticmethod(reach)})
        service = aggregator(twin, tmp_path / "store", log, evaluate=lambda _: {"accuracy": 0.5})
        names = ("pump-1", "pump.2")
        sleeper = device(twin, "sleeper", log, duty=Duty(every=600))
        async with home_assistant(tmp_path / "home", broker.endpoint.port) as home:
            shown = ShownAggregator(service, HomeTopics(TOPICS))
            evaluating: dict[str, Any] = {"evaluate": lambda _: Scores(10, {"loss": 0.25})}
            devices = [device(twin, name, log, **evaluating) for name in names]
            async with serving(shown, sleeper, *devices):
                await home.until(lambda: home.state("devices") in ("2", "3"))
                await home.until(lambda: home.state("score") == "0.5")
                await home.until(lambda: home.state("version").isdigit() and int(home.state("version")) > 0)
                await home.until(lambda: home.state("version", "device-pump-1").isdigit())
                await home.until(lambda: home.state("score", "device-pump-1") == "0.25")
                await home.until(lambda: home.state("next", "device-sleeper") not in ("None", AWAY, "unknown"))
                assert datetime.fromisoformat(home.state("next", "device-sleeper")).tzinfo is not None
                await home.until(lambda: home.state("updated").endswith("+00:00"))
                await home.until(lambda: home.state("health") == "learning")
                assert home.attributes("health")["alarms"] == []
                assert home.attributes("score")["friendly_name"] == "Midge f Accuracy"
                assert home.state("problem") == "off" and home.state("paused") == "off"
                dotted = HomeTopics(TOPICS).object_id("pump.2")
                assert home.state("state", dotted) in home.attributes("state", dotted)["options"]
                home.call("turn_on", "paused")
                await home.until(lambda: home.state("paused") == "on")
                assert service.core.paused == "paused in Home Assistant"
                await home.until(lambda: home.state("health") == "paused")
                home.call("turn_off", "paused")
                await home.until(lambda: home.state("paused") == "off")
                assert paused(tmp_path / "store") is None
            await home.until(lambda: home.state("version") == home.state("state", "device-pump-1") == AWAY)
            assert all(entity["state"] == AWAY for entity in home.states.values())
            await clear_federation(reach, TOPICS, [*names, "sleeper"])
            await home.until(lambda: not home.states)
            assert home.complaints == []
