"""A profile: a fleet's hardware classes, their links, when they are there, and how often they train. A TOML file.

Whatever a profile says is checked when it is read; a mistake is told with the file, the key and what to write instead.
"""

import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import balanced
from midge.aggregator.core.strategy import Strategy
from midge.sensor_fleet.profiles.board import PRESET, ROWS_PER_SECOND, Board
from midge.sensor_fleet.profiles.units import Bytes, Rate, Seconds

SHIPPED: Final = ("city-gateways", "factory", "farm", "phones", "microcontrollers", "demo")
_SUM_OFF: Final = 1e-6
Share = Annotated[float, Field(ge=0, le=1)]
Hour = Annotated[float, Field(ge=0, le=24)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=3)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinkPart(_Part):
    """A class's way to the broker."""

    up: Rate | None = None
    """Bytes per second from the device, on the link in the middle; without a limit unless it is given."""
    down: Rate | None = None
    latency: Seconds = 0.04
    """Each way."""
    loss: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The share of packets that are lost: TCP sends them again, and slower (`sensor_fleet.profiles.population`)."""
    spread: Spread = 0.0
    """σ of the logarithms of bandwidth and latency within the class."""
    twice: Share = 0.0
    """The probability that a message reaches the broker twice."""


class Always(_Part):
    """There, unless the link breaks."""

    kind: Literal["always"] = "always"


class Diurnal(_Part):
    """There by day only, as what the sun or a shift keeps running."""

    kind: Literal["diurnal"]
    hours: tuple[Hour, Hour]
    """Of the local day, from and to; beyond midnight where the second is less."""
    jitter: Seconds = 1800.0
    """σ of when a day begins and ends."""
    zones: Annotated[float, Field(ge=0, le=24)] = 0.0
    """Hours over which the devices' local times are spread."""
    chance: Share = 1.0
    """That it comes on a given day at all."""


class Mains(_Part):
    """Connected all the time, and trains while it is on mains at night only."""

    kind: Literal["mains"]
    hours: tuple[Hour, Hour] = (22.5, 6.5)
    jitter: Seconds = 3600.0
    zones: Annotated[float, Field(ge=0, le=24)] = 0.0
    chance: Share = 0.85
    """That it is plugged in on a given night."""


class OnOff(_Part):
    """Comes and goes at random: both times are exponential."""

    kind: Literal["on-off"]
    on: Annotated[Seconds, Field(gt=0)]
    off: Annotated[Seconds, Field(gt=0)]


class Breaking(_Part):
    """Connected from the start; the link breaks at random: both times are exponential."""

    kind: Literal["breaking"]
    online: Annotated[Seconds, Field(gt=0)]
    offline: Annotated[Seconds, Field(gt=0)]


class Wakes(_Part):
    """Asleep; it wakes at regular times, trains once, sends, waits for the receipt, and sleeps again."""

    kind: Literal["wakes"]
    every: Annotated[Seconds, Field(gt=0)]
    stays: Annotated[Seconds, Field(gt=0)] = 90.0
    """At most, if there is nothing to train from or no answer comes."""

    @model_validator(mode="after")
    def _sleeps(self) -> "Wakes":
        if self.stays >= self.every:
            raise ValueError("stays must be less than every, or it never sleeps")
        return self


class Trace(_Part):
    """There when a file says so: CSV with the columns start and end in seconds, and device where there are several."""

    kind: Literal["trace"]
    file: str
    """Beside the profile, or an absolute path. Devices of the file are drawn at random, with repetition."""
    repeat: Seconds = 0.0
    """After so long the file starts over; 0: it does not, and whoever is past its last line stays away."""


Availability = Annotated[Always | Diurnal | Mains | OnOff | Breaking | Wakes | Trace, Field(discriminator="kind")]


class Churn(_Part):
    """Who comes late and who leaves for good."""

    late: Share = 0.0
    leave: Share = 0.0
    goodbye: Share = 0.5
    """The share of those that leave which say so; the others vanish."""
    within: Seconds = 7 * 86400.0
    """The time within which they come and go."""


class Hardware(_Part):
    """One class of devices."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the fleet."""
    hardware: Literal["micro"] | None = None
    """`micro` is a microcontroller: what is not given is an ESP32's (`sensor_fleet.profiles.board`)."""
    board: Board | None = None
    """Of a microcontroller: its client, its flash and its currents."""
    samples_per_second: Positive | None = None
    """Rows that training takes in a second, on the device in the middle."""
    seconds: Seconds | None = None
    """In place of that: how long a usual training takes on it, whatever the model."""
    spread: Spread = 0.0
    """σ of the logarithm of its speed within the class."""
    memory: Bytes
    """That training may take. A class in which the model does not fit takes no part."""
    joules_per_step: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of a step on one mini-batch, beyond what the device takes anyway."""
    joules_per_byte: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of a byte sent or received."""
    link: LinkPart
    availability: Availability = Always()
    churn: Churn = Churn()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("hardware") != "micro":
            return values
        board = values.get("board", {})
        client = board.get("client", "c") if isinstance(board, dict) else board.client
        speed = {} if "seconds" in values else {"samples_per_second": ROWS_PER_SECOND.get(client)}
        return {**PRESET, "board": {}, **speed, **values}

    @model_validator(mode="after")
    def _speed(self) -> "Hardware":
        if (self.samples_per_second is None) == (self.seconds is None):
            raise ValueError("give one of samples_per_second and seconds, the time of a usual training")
        if self.board is not None and self.hardware is None:
            raise ValueError('board is of microcontrollers: add hardware = "micro"')
        return self


class Training(_Part):
    """How often the fleet trains, where no strategy is given."""

    interval: Seconds = 3600.0
    """Between two trainings of one device, at least."""
    release_interval: Seconds = 600.0
    """Between two releases of the model, at least."""


class Profile(_Part):
    """A whole fleet."""

    name: str
    about: str = ""
    training: Training = Training()
    classes: Annotated[tuple[Hardware, ...], Field(min_length=1, max_length=32)]
    folder: str = ""
    """Where it was read: traces lie beside it."""

    @model_validator(mode="after")
    def _shares(self) -> "Profile":
        total = math.fsum(one.share for one in self.classes)
        if abs(total - 1) > _SUM_OFF:
            raise ValueError(f"the shares of the classes add up to {total:g}: make it 1")
        names = [one.name for one in self.classes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice: give each class a name of its own")
        return self

    def with_micro(self, share: float) -> "Profile":
        """The same fleet with microcontrollers as a share of it; the other classes keep their proportions."""
        if not share:
            return self
        boards = Hardware.model_validate({"name": "microcontroller", "share": share, "hardware": "micro"})
        others = [one.model_copy(update={"share": one.share * (1 - share)}) for one in self.classes if share < 1]
        return Profile(**{**dict(self), "classes": (*others, boards)})

    def strategy(self) -> Strategy:
        """Midge's default strategy at this fleet's pace."""
        return balanced(
            pace=Pace(interval=self.training.interval),
            release_interval=self.training.release_interval,
            deadline=max(10.0, self.training.release_interval),
        )


def load(source: str | Path) -> Profile:
    """A shipped profile by its name, or one of a TOML file.

    Raises:
        ValueError: there is none, or it cannot be; the message names the file, the key and what to write.
    """
    if str(source) in SHIPPED:
        text = (resources.files("midge.sensor_fleet.profiles") / f"{source}.toml").read_text(encoding="utf-8")
        return _checked(text, f"profile {source}", "")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        shipped = ", ".join(SHIPPED)
        raise ValueError(
            f"The profile {path} cannot be read ({why}): name a TOML file, or one of those that ship: {shipped}."
        ) from error
    return _checked(text, str(path), str(path.resolve().parent))


def _checked(text: str, where: str, folder: str) -> Profile:
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is no TOML: {error}.") from error
    if "class" in values:
        values["classes"] = values.pop("class")
    elif "classes" not in values:
        raise ValueError(f"{where} has no class of devices: add a [[class]] with name, share, speed and link.")
    values.setdefault("name", Path(where).stem.removeprefix("profile "))
    try:
        return Profile(**{**values, "folder": folder})
    except ValidationError as error:
        told = "; ".join(_in_words(one) for one in error.errors()[:4])
        more = f"; and {error.error_count() - 4} more" if error.error_count() > 4 else ""
        raise ValueError(f"{where}: {told}{more}.") from error


def _in_words(error: Any) -> str:
    """One mistake: its key, and what to write."""
    kinds = ("always", "diurnal", "mains", "on-off", "breaking", "wakes", "trace")
    key = ".".join(str(part) for part in error["loc"] if part not in kinds)
    key = key.replace("classes", "class", 1)
    match error["type"]:
        case "missing":
            return f"{key} is missing: add it"
        case "extra_forbidden":
            return f"{key} is not known: leave it out, or see how it is spelled"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{key}.kind must be one of {', '.join(kinds)}"
        case _:
            message = str(error["msg"]).removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            if not key:
                return message
            return f"{key}: {message}" + ("" if "none:" in message else f", not {error['input']!r}")
