"""The names of codecs, and the table of their stages.

float32                as it is                          bf16              upper halves
int8:B  int4:B         blocks of B; `:random` behind it rounds at random, unbiased
sign:B                 signs, a mean for each B          eden:b            rotated, 1, 2 or 4 bits; `:least`
topk:p|…  randk:p|…    a share p of the values, and then any of the above for them
stc:p                  the same as topk:p|sign:65536
uq:k|rice  uq:k        steps of k rms of each tensor, Rice coded, or a byte each
…|zstd                 Zstandard over it all, where the extra is installed
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from midge.wire.codecs import lossless
from midge.wire.codecs.blocks import BFloat16, Float32, Int8, Integers, Sign
from midge.wire.codecs.eden import Eden
from midge.wire.codecs.sparse import RandomK, TopK, Uniform
from midge.wire.codecs.stages import Selection, ValueQuantiser
from midge.wire.errors import WireError

FALLBACK = "int8:256"
"""The codec that every device and every aggregator has."""
KNOWN = "float32, bf16, int8:B, int4:B, sign:B, eden:b, topk:p|…, randk:p|…, stc:p, uq:k|rice and …|zstd"


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages in order: an optional selection, a quantiser, and optionally Zstandard."""

    selection: Selection | None
    quantiser: ValueQuantiser
    squeezed: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the bytes hold a seed."""
        return self.quantiser.seeded or (self.selection is not None and self.selection.seeded)

    @property
    def feedback(self) -> bool:
        """Whether error feedback helps: the error is not random."""
        if self.selection is None:
            return self.quantiser.biased
        return self.selection.biased


Codec = Chain | Float32 | Int8


def _block(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[1-9][0-9]{1,4}", text) and 16 <= int(text) <= 65536 else None


def _part(text: str) -> float | None:
    """A share above 0 and below 1, to five places."""
    return float(text) if re.fullmatch(r"0\.[0-9]{1,5}", text) and float(text) > 0 else None


def _steps(text: str) -> float | None:
    """0.01 to 99.99 root mean squares."""
    return float(text) if re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,2})?", text) and float(text) > 0 else None


def _quantiser(words: list[str]) -> ValueQuantiser | None:
    match words:
        case ["float32"]:
            return Float32()
        case ["bf16"]:
            return BFloat16()
        case ["int8"]:
            return Int8()
        case ["int8", digits] if block := _block(digits):
            return Int8(block)
        case ["int4", digits] if block := _block(digits):
            return Integers(4, block, stochastic=False)
        case ["int8" | "int4" as name, digits, "random"] if block := _block(digits):
            return Integers(8 if name == "int8" else 4, block, stochastic=True)
        case ["sign", digits] if block := _block(digits):
            return Sign(block)
        case ["eden", "1" | "2" | "4" as bits, *rest] if rest in ([], ["least"]):
            return Eden(1 if bits == "1" else 2 if bits == "2" else 4, least=bool(rest))
        case ["uq", digits] if k := _steps(digits):
            return Uniform(k, rice=False)
    return None


def _selection(words: list[str]) -> Selection | None:
    match words:
        case ["topk", digits] if part := _part(digits):
            return TopK(part)
        case ["randk", digits] if part := _part(digits):
            return RandomK(part)
    return None


def _chain(stages: list[list[str]]) -> Codec | None:
    match stages:
        case [*before, ["zstd"]] if len(before) < 3 and before[-1:] != [["zstd"]] and (codec := _chain(before)):
            return (
                Chain(codec.selection, codec.quantiser, squeezed=True)
                if isinstance(codec, Chain)
                else Chain(None, codec, squeezed=True)
            )
        case [["uq", digits], ["rice"]] if k := _steps(digits):
            return Chain(None, Uniform(k, rice=True))
        case [["stc", digits]] if part := _part(digits):
            return Chain(TopK(part), Sign(65536))
        case [words] if quantiser := _quantiser(words):
            return quantiser if isinstance(quantiser, Float32 | Int8) else Chain(None, quantiser)
        case [first, words] if (selection := _selection(first)) and (quantiser := _quantiser(words)):
            return Chain(selection, quantiser)
    return None


@lru_cache(maxsize=64)
def parse(name: str) -> Codec:
    """Return the codec of a name on the wire.

    Raises:
        WireError: there is none of that name.
    """
    codec = _chain([stage.split(":") for stage in name.split("|")]) if len(name) <= 64 else None
    if codec is None:
        raise WireError(f"unknown codec {name[:40]!r}; known are {KNOWN}")
    return codec


def followable(name: str, available: Callable[[], bool] = lossless.available) -> str:
    """The codec that a device uses if asked for this one: the same if available here.

    Without Zstandard that stage is left out; an unknown codec, of a later version, becomes int8:256.
    """
    try:
        codec = parse(name)
    except WireError:
        return FALLBACK
    if isinstance(codec, Chain) and codec.squeezed and not available():
        name = name.removesuffix("|zstd")
        return f"{name}|rice" if isinstance(codec.quantiser, Uniform) and not codec.quantiser.rice else name
    return name
