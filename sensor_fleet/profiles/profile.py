"""Profiles: a fleet's hardware classes, links, availability and training intervals, as a TOML file.

A profile is validated when it is read; errors name the file, the key and the remedy.
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
from midge.wire.clocks import DAY

SHIPPED: Final = ("city-gateways", "factory", "farm", "phones", "microcontrollers", "demo")
_SUM_OFF: Final = 1e-6
Share = Annotated[float, Field(ge=0, le=1)]
Hour = Annotated[float, Field(ge=0, le=24)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=3)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinkPart(_Part):
    """A class's link to the broker."""

    up: Rate | None = None
    """Bytes per second from the device, for the median link; unlimited by default."""
    down: Rate | None = None
    latency: Seconds = 0.04
    """Each way."""
    loss: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Packet loss rate: TCP retransmits lost packets, and slows down (`sensor_fleet.profiles.population`)."""
    spread: Spread = 0.0
    """σ of the logarithms of bandwidth and latency within the class."""
    twice: Share = 0.0
    """Probability that a message is duplicated."""


class Always(_Part):
    """Present, except for broken links."""

    kind: Literal["always"] = "always"


class Diurnal(_Part):
    """Present by day only, such as devices that run on solar power or during a shift."""

    kind: Literal["diurnal"]
    hours: tuple[Hour, Hour]
    """Local times of start and end; past midnight if the end is before the start."""
    jitter: Seconds = 1800.0
    """σ of the start and end of a day."""
    zones: Annotated[float, Field(ge=0, le=24)] = 0.0
    """Hours over which the devices' time zones are spread."""
    chance: Share = 1.0
    """Probability that it is present on a given day."""


class Mains(_Part):
    """Always connected, and trains only while plugged in at night."""

    kind: Literal["mains"]
    hours: tuple[Hour, Hour] = (22.5, 6.5)
    jitter: Seconds = 3600.0
    zones: Annotated[float, Field(ge=0, le=24)] = 0.0
    chance: Share = 0.85
    """Probability that it is plugged in on a given night."""


class OnOff(_Part):
    """Present and absent for exponentially distributed times."""

    kind: Literal["on-off"]
    on: Annotated[Seconds, Field(gt=0)]
    off: Annotated[Seconds, Field(gt=0)]


class Breaking(_Part):
    """Connected from the start; the link works and breaks for exponentially distributed times."""

    kind: Literal["breaking"]
    online: Annotated[Seconds, Field(gt=0)]
    offline: Annotated[Seconds, Field(gt=0)]


class Wakes(_Part):
    """Asleep; it wakes at regular times, trains once, sends, waits for the receipt, and sleeps again."""

    kind: Literal["wakes"]
    every: Annotated[Seconds, Field(gt=0)]
    stays: Annotated[Seconds, Field(gt=0)] = 90.0
    """Maximum, if there is nothing to train from or no answer arrives."""

    @model_validator(mode="after")
    def _sleeps(self) -> "Wakes":
        if self.stays >= self.every:
            raise ValueError("stays must be less than every, or it never sleeps")
        return self


class Trace(_Part):
    """Present according to a CSV file with columns start and end in seconds, and device if it has several."""

    kind: Literal["trace"]
    file: str
    """Path relative to the profile, or absolute. Devices of the file are drawn at random, with repetition."""
    repeat: Seconds = 0.0
    """Period after which the file repeats; 0: it does not, and a device is absent after its last line."""


Availability = Annotated[Always | Diurnal | Mains | OnOff | Breaking | Wakes | Trace, Field(discriminator="kind")]


class Churn(_Part):
    """Devices that join late or leave for good."""

    late: Share = 0.0
    leave: Share = 0.0
    goodbye: Share = 0.5
    """Share of the leaving devices that disconnect cleanly; the others vanish."""
    within: Seconds = 7.0 * DAY
    """Period within which devices join and leave."""


class Hardware(_Part):
    """One class of devices."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the fleet."""
    hardware: Literal["micro"] | None = None
    """`micro` is a microcontroller, with the defaults of an ESP32 (`sensor_fleet.profiles.board`)."""
    board: Board | None = None
    """Of a microcontroller: its client, flash and currents."""
    samples_per_second: Positive | None = None
    """Rows trained per second on the median device."""
    seconds: Seconds | None = None
    """Instead of that: duration of a usual training on it, for any model."""
    spread: Spread = 0.0
    """σ of the logarithm of its speed within the class."""
    memory: Bytes
    """Available for training. A class whose memory is too small for the model takes no part."""
    joules_per_step: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Per step on a mini-batch, beyond the device's base load."""
    joules_per_byte: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Per byte sent or received."""
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
            raise ValueError('board is for microcontrollers: add hardware = "micro"')
        return self


class Training(_Part):
    """How often the fleet trains, unless a strategy is given."""

    interval: Seconds = 3600.0
    """Minimum time between two trainings of a device."""
    release_interval: Seconds = 600.0
    """Minimum time between two releases of the model."""


class Profile(_Part):
    """A whole fleet."""

    name: str
    about: str = ""
    training: Training = Training()
    classes: Annotated[tuple[Hardware, ...], Field(min_length=1, max_length=32)]
    folder: str = ""
    """Folder of the profile, in which its traces are looked up."""

    @model_validator(mode="after")
    def _shares(self) -> "Profile":
        total = math.fsum(one.share for one in self.classes)
        if abs(total - 1) > _SUM_OFF:
            raise ValueError(f"the shares of the classes add up to {total:g}: make it 1")
        names = [one.name for one in self.classes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} occurs twice: give each class a unique name")
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
    """Load a shipped profile by its name, or a TOML file.

    Raises:
        ValueError: the profile is missing or invalid; the message names the file, the key and the remedy.
    """
    if str(source) in SHIPPED:
        text = (resources.files("midge.sensor_fleet.profiles") / f"{source}.toml").read_text(encoding="utf-8")
        return _checked(text, f"profile {source}", "")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        shipped = ", ".join(SHIPPED)
        raise ValueError(
            f"The profile {path} cannot be read ({why}): name a TOML file, or a shipped profile: {shipped}."
        ) from error
    return _checked(text, str(path), str(path.resolve().parent))


def _checked(text: str, where: str, folder: str) -> Profile:
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not valid TOML: {error}.") from error
    if "class" in values:
        values["classes"] = values.pop("class")
    elif "classes" not in values:
        raise ValueError(f"{where} has no class of devices: add a [[class]] with name, share, speed and link.")
    values.setdefault("name", Path(where).stem.removeprefix("profile "))
    try:
        return Profile(**{**values, "folder": folder})
    except ValidationError as error:
        problems = "; ".join(_in_words(one) for one in error.errors()[:4])
        more = f"; and {error.error_count() - 4} more" if error.error_count() > 4 else ""
        raise ValueError(f"{where}: {problems}{more}.") from error


def _in_words(error: Any) -> str:
    """One validation error: its key, and the remedy."""
    kinds = ("always", "diurnal", "mains", "on-off", "breaking", "wakes", "trace")
    key = ".".join(str(part) for part in error["loc"] if part not in kinds)
    key = key.replace("classes", "class", 1)
    match error["type"]:
        case "missing":
            return f"{key} is missing: add it"
        case "extra_forbidden":
            return f"{key} is unknown: remove it, or check its spelling"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{key}.kind must be one of {', '.join(kinds)}"
        case _:
            message = str(error["msg"]).removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            if not key:
                return message
            return f"{key}: {message}" + ("" if "not a quantity:" in message else f", not {error['input']!r}")
