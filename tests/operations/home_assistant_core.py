"""Runs a real Home Assistant with its MQTT integration; in an environment of its own, with no import of Midge.

    PYTHON home_assistant_core.py CONFIG_DIRECTORY BROKER_PORT HTTP_PORT

needs the packages `homeassistant` and `paho-mqtt`. It prints one JSON object a line: all states of MQTT entities with
their attributes, whenever one has changed, and what Home Assistant logs as a warning or an error. It reads lines
`turn_on ENTITY` and `turn_off ENTITY`, and calls these services. It ends with its input.
"""

import asyncio
import json
import logging
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

from homeassistant import bootstrap, loader
from homeassistant.config_entries import ConfigEntries, ConfigEntry
from homeassistant.core import HomeAssistant
from homeassistant.core_config import async_process_ha_core_config
from homeassistant.helpers import entity_registry
from homeassistant.setup import async_setup_component


def say(kind: str, **fields: Any) -> None:
    print(json.dumps({"kind": kind, **fields}, default=str), flush=True)  # noqa: T201


class Warnings(logging.Handler):
    """What Home Assistant complains of."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("homeassistant.components.mqtt", "homeassistant.config_entries")):
            say(
                "log",
                level=record.levelname,
                message=record.getMessage(),
                why=logging.Formatter().formatException(record.exc_info) if record.exc_info else "",
            )


def states(hass: HomeAssistant) -> dict[str, Any]:
    """Entities of MQTT by unique id."""
    registry = entity_registry.async_get(hass)
    found = {}
    for entry in registry.entities.values():
        if entry.platform == "mqtt" and (state := hass.states.get(entry.entity_id)) is not None:
            found[entry.unique_id] = {
                "entity": entry.entity_id,
                "state": state.state,
                "attributes": dict(state.attributes),
            }
    return found


async def main(directory: Path, broker: int, http: int) -> None:
    logging.getLogger().addHandler(Warnings(logging.WARNING))
    (directory / "configuration.yaml").touch()
    hass = HomeAssistant(str(directory))
    loader.async_setup(hass)
    hass.config_entries = ConfigEntries(hass, {})
    hass.config.skip_pip = True
    await bootstrap.async_load_base_functionality(hass)
    await async_process_ha_core_config(hass, {})
    assert await async_setup_component(hass, "homeassistant", {})
    assert await async_setup_component(hass, "http", {"http": {"server_host": ["127.0.0.1"], "server_port": http}})
    entry = ConfigEntry(
        domain="mqtt",
        title="MQTT",
        data={"broker": "127.0.0.1", "port": broker},
        options={},
        version=1,
        minor_version=2,
        source="user",
        unique_id=None,
        discovery_keys=MappingProxyType({}),
        subentries_data=None,
    )
    await hass.config_entries.async_add(entry)
    await hass.async_start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def obey() -> None:
        while line := await reader.readline():
            service, entity = line.decode().split()
            await hass.services.async_call("switch", service, {"entity_id": entity})

    obeying = asyncio.create_task(obey())
    before: dict[str, Any] = {}
    while not obeying.done():
        if (found := states(hass)) != before:
            before = found
            say("states", states=found)
        await asyncio.sleep(0.1)
    await obeying
    await hass.async_stop(force=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
