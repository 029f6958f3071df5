"""All of it on this machine: python examples/homes/run.py."""

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np
from compare import alone, judged, picture
from home import DAY, device
from households import Household
from server import app

import midge
from midge.broker import Endpoint, Options, connector


class HomeAssistants:
    """What the Home Assistant of each home publishes, hour by hour: the next hour once all homes have trained."""

    def __init__(self, url: str, households: list[Household], homes: list, days: int) -> None:
        self.url, self.households, self.homes, self.days = url, households, homes, days
        self.forecasts = np.full((len(homes), DAY * days), np.nan)

    async def serve(self) -> None:
        async with connector(Endpoint.parse(self.url))(Options(client_id="statestream")) as broker:
            heard = dict.fromkeys(self.homes, 0)
            while not all(heard.values()):  # until all have subscribed
                await self._publish(broker, [{"load_energy": "unknown"}] * len(self.homes))
                await asyncio.sleep(0.1)
                heard = {home: home.config.sources[0].heard for home in self.homes}
            for hour in range(DAY * self.days):
                await self._publish(broker, [household.states(hour) for household in self.households])
                for home in self.homes:
                    while home.config.samples.seen <= hour or (hour > DAY and home.config.samples.new):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                if hour % DAY == DAY - 1 and DAY < hour < DAY * self.days - 1:
                    self.forecasts[:, hour + 1 : hour + 1 + DAY] = [home.predict(DAY) for home in self.homes]

    async def _publish(self, broker, states: list[dict[str, str]]) -> None:
        for number, each in enumerate(states):
            for entity, state in each.items():
                await broker.publish(f"{base(number)}/sensor/{entity}/state", state.encode(), qos=0, retain=True)

    def stop(self) -> None:
        pass


def base(number: int) -> str:
    """The base topic of a home's statestream. Here all homes share a broker; at home it is your own."""
    return f"home-{number}/homeassistant"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--homes", type=int, default=20)
parser.add_argument("--days", type=int, default=7)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--seconds", type=float, default=600, help="at most")
parser.add_argument("--picture", type=Path, help="an SVG file to draw the errors of each day into")
args = parser.parse_args()

households = [Household(args.seed, number, DAY * args.days) for number in range(args.homes)]
assistants: HomeAssistants


def devices(url: str) -> list:
    global assistants  # noqa: PLW0603 - `local` starts and ends them
    homes = [device(f"home-{n}", url, url, f"{base(n)}/sensor/+/state", look_every=0.02) for n in range(args.homes)]
    assistants = HomeAssistants(url, households, homes, args.days)
    return [*homes, assistants]


midge.local(app, devices, seconds=args.seconds)
found = judged(households, {"federated": assistants.forecasts, "alone": alone(households)})
if args.picture:
    args.picture.write_text(picture(found))
print(json.dumps({name: {key: value.tolist() for key, value in each.items()} for name, each in found.items()}))
