"""Quantities with units in a profile: "6 h", "64 MB", "20 kB/s"."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_RATES = {f"{name}/s": factor for name, factor in _BYTES.items()} | {
    "bit/s": 1 / 8,
    "kbit/s": 1e3 / 8,
    "Mbit/s": 1e6 / 8,
}
_AMPERES = {"uA": 1e-6, "mA": 1e-3, "A": 1.0}
_COULOMBS = {"mAh": 3.6, "Ah": 3600.0}
_WRITTEN = re.compile(r"\s*([0-9.eE+-]+?)\s*([A-Za-z/]+)\s*")


def _reader(units: dict[str, float], example: str) -> BeforeValidator:
    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        found = _WRITTEN.fullmatch(value)
        try:
            if found is not None and found[2] in units:
                return float(found[1]) * units[found[2]]
        except ValueError:
            pass
        raise ValueError(f"{value!r} is not a quantity: use a unit of {', '.join(units)}, such as {example!r}")

    return BeforeValidator(read)


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), _reader(_SECONDS, "6 h")]
Bytes = Annotated[float, Field(gt=0, allow_inf_nan=False), _reader(_BYTES, "64 MB")]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), _reader(_RATES, "20 kB/s")]
"""Bytes per second."""
Amperes = Annotated[float, Field(ge=0, allow_inf_nan=False), _reader(_AMPERES, "31 mA")]
Charge = Annotated[float, Field(gt=0, allow_inf_nan=False), _reader(_COULOMBS, "2600 mAh")]
"""Coulombs."""
