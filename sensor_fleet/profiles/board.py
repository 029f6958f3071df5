"""Microcontrollers in a profile: RAM, flash and currents with Midge's client for boards.

The defaults are those of an ESP32. Sizes of the clients are as measured in their READMEs; tests hold these formulas to
the clients.
"""

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from midge.sensor_fleet.profiles.units import Amperes, Bytes, Charge, Seconds
from midge.wire.clocks import DAY

YEAR: Final = 365.25 * DAY
_STACK: Final = 2048
"""Maximum stack of the C client on a Cortex-M4 in bytes: `iot_client/c/README.md`, Memory."""
_META, _ALIGNED = 208, 16
"""Outbox records of the C client: bytes before the body, and the alignment of writes."""
_HEAP: Final = 56 * 1024
"""Bytes of heap of the MicroPython client besides the model, on a 64-bit build. Its README's smallest heaps are 50 KiB
and 8 bytes a parameter: of 14 devices one failed on those, two with 2 KiB more, and none with 4, 6 or 8 KiB more."""
_RECORD: Final = 210
"""Bytes that the MicroPython client's outbox adds to an update's body."""
_MODEL: Final = 350
"""Bytes of the model in its flash besides values and frozen tensors: the header with the schema."""
_COMMIT: Final = 0.02
"""Erases of littlefs per written file, besides its data: metadata blocks are rewritten every 50 files."""


class Board(BaseModel, extra="forbid", frozen=True):
    """A microcontroller with Midge's client for boards."""

    client: Literal["c", "micropython"] = "c"
    """Whether `iot_client/c` or `iot_client/micropython` runs on it."""
    sector: Bytes = 4096.0
    """Erase unit of the flash: Winbond W25Q32, 4 KB sectors."""
    cycles: Annotated[int, Field(gt=0)] = 100_000
    """Erase endurance of a sector: the same datasheet."""
    area: Bytes = 2.0**21
    """Flash over which MicroPython's file system spreads its writes: 2 MiB of the 4 MiB of an ESP32 module."""
    volts: Annotated[float, Field(gt=0, le=60)] = 3.3
    battery: Charge | None = None
    """Battery capacity; None on mains. Self-discharge and losses are not modelled."""
    asleep: Amperes = 10e-6
    """In deep sleep with timer and RTC memory: ESP32 Series Datasheet, Current Consumption in Low-Power Modes."""
    connected: Amperes = 31e-3
    """Associated, in modem sleep: ESP-IDF Programming Guide, Low Power Mode in Wi-Fi Scenarios, 31.12 mA at DTIM1."""
    training: Amperes = 68e-3
    """With the processor at 240 MHz: ESP32 Series Datasheet, 30 to 68 mA in modem sleep."""
    waking: Amperes = 100e-3
    """While it starts and joins the Wi-Fi: the same, 95 to 100 mA while receiving."""
    wakes_in: Seconds = 3.0
    """Duration of that: 0.8 s with a fixed address, 3 s with DHCP (iotclass.org, Wi-Fi Power Optimization)."""

    @property
    def largest(self) -> int:
        """Maximum bytes of a received body: with packets of 1,280 in C, by default in MicroPython."""
        return 1024 if self.client == "c" else 2048

    @property
    def keeps_model(self) -> bool:
        """Whether the model survives a deep sleep in flash; otherwise a snapshot is fetched again."""
        return self.client == "micropython"

    def ram(self, values: int, frozen: int) -> int:
        """Bytes of the model and the client: arena and stack in C, heap in MicroPython.

        Rows, and in C the floats of `MIDGE_WORK` for a mini-batch, come on top.
        """
        return 8 * values + frozen + (6120 + _STACK if self.client == "c" else _HEAP)

    @property
    def formula(self) -> str:
        """The formula of `ram`, in words."""
        if self.client == "c":
            return "8 bytes a parameter, 6,120 of Midge's C client, 2,048 of stack, and the frozen tensors"
        return "8 bytes a parameter, 57,344 of Midge's MicroPython client, and the frozen tensors"

    def update_erases(self, size: int) -> float:
        """Sectors erased for an update with a body of that size, until it is settled."""
        if self.client == "c":  # settling writes nothing
            return math.ceil((_META + size + -size % _ALIGNED) / self.sector)
        return self._file(size + _RECORD) + _COMMIT

    def model_erases(self, values: int, frozen: int) -> float:
        """Sectors erased for a fetched model. The C client keeps it in RAM."""
        return self._file(4 * values + frozen + _MODEL) if self.keeps_model else 0.0

    def _file(self, size: int) -> float:
        """Sectors that littlefs erases for a file; the pointers in its blocks are smaller than a schema may be."""
        return math.ceil(size / self.sector) + _COMMIT

    def years(self, erases: float, updates: float) -> float | None:
        """Lifetime of the flash, by erases and updates per year; None is unlimited.

        The C client alternates between two slots, so that every second update erases each of their sectors.
        MicroPython's littlefs levels the wear over its area.
        """
        worst = updates / 2 if self.client == "c" else erases * self.sector / self.area
        return self.cycles / worst if worst else None

    def joules(self, *, asleep: float, connected: float, training: float, wakes: float) -> float:
        """Energy for these seconds in each state and this number of wake-ups; transmission comes on top."""
        amperes = self.asleep * asleep + self.connected * connected + self.training * training
        return self.volts * (amperes + self.waking * self.wakes_in * wakes)


PRESET: Final = {
    "memory": "160 kB",  # of 520 kB of SRAM: ESP-IDF leaves 160 kB static; a MicroPython had 164,064 bytes free
    "joules_per_step": 0.0,  # counted by the duration of trainings instead
    "joules_per_byte": 7e-6,  # Wi-Fi: Balasubramanian et al., IMC 2009, without its tail
    "link": {"up": "100 kB/s", "down": "100 kB/s", "latency": "30 ms", "loss": 0.01, "spread": 0.5},
}
"""Defaults of a class with `hardware = "micro"`."""
ROWS_PER_SECOND: Final = {"c": 1000.0, "micropython": 1.0}
"""For a perceptron of 4,001 parameters. `midge_train` takes 103 thousand instructions a row on a Cortex-M4 (-Os,
counted in QEMU): at 240 MHz, with two cycles each, some 1,200 rows. On one machine MicroPython was 1,260 times as slow
as C."""
