"""Write docs/midge.cddl, the headers of all messages in CDDL (RFC 8610), from the models: python docs/cddl.py."""

import textwrap
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import BaseModel

from midge.wire import messages, overview, row_statistics, sealing, standby
from midge.wire.kinds import KINDS
from midge.wire.messages import Message, masking
from midge.wire.names import NAMES

PAGE = Path(__file__).with_name("midge.cddl")
HEAD = """\
; The headers of Midge's messages, version 1 (docs/protocol.md), in CDDL (RFC 8610). Made by docs/cddl.py.
;
; Headers are msgpack, with the types of this description: int, float, str, bin, bool, nil, array, map. Keys are the
; numbers that Midge sends; the name in each comment, as text, is equivalent. A frame is
;     u16 length, little-endian | header | body

message = {messages}

; Names of a later version, which are ignored.
later = ({first}..65535) / tstr

; A key chosen by a user, such as a metric's; known names are sent as numbers here, too.
name = uint / (tstr .size (0..256))
number = float / int
told = (tstr .size (0..1600)) / int / float / bool
"""
NESTED: dict[type[Message], str] = {
    messages.Settled: "settled",
    messages.Grant: "grant",
    messages.Health: "health",
    messages.Moment: "moment",
    messages.Plan: "plan",
    messages.Participation: "participation",
    messages.AggregatorStatus: "aggregator",
    masking.Masking: "masking",
    masking.SealingKey: "sealing_key",
    masking.SumMember: "member",
    masking.Rejected: "rejected",
    standby.StandbyState: "standby_state",
}
BESIDE: dict[str, type[Message]] = {
    "envelope": messages.Envelope,
    "confided": sealing.Confided,
    "details": sealing.Details,
    "row": overview.DeviceRow,
    "summary": row_statistics.Summary,
    "entry": masking.MaskEntry,
    "ticket": masking.Ticket,
    "answer": masking.Dealt,
}
"""Maps without a `kind`."""
VALUES = {"float / int": "number", "tstr .size (0..1600) / int / float / int / bool": "told"}
MODELS = """
; Frames whose headers have no model.
snapshot = {
  0: "snapshot",
  "exponent": -40..60,
  "schema": 0..2097152,
  "frozen": uint,
  "filling": uint,
}

step = {
  0: "step" / 50,
  "exponent": -40..60,
  22: uint,  ; size
}

; The first part of a snapshot's body. The last text of a tied tensor is the name of the tensor that it shares.
schema = [* tensor]
tensor = [tstr .size (0..255), [* uint], dtype, role, ? tstr]
dtype = "float32" / "float64" / "complex64" / "complex128" / "int64" / "int32" / "int16" / "int8" /
  "uint64" / "uint32" / "uint16" / "uint8" / "bool"
role = "trained" / "averaged" / "local" / "frozen" / "site"
"""


def typed(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Return the CDDL of an annotation."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [each for item in more for each in getattr(item, "metadata", [item])]
        return typed(inner, (*flat, *metadata))
    if get_origin(annotation) in (Union, UnionType):
        kinds = [typed(each, () if each is NoneType else metadata) for each in get_args(annotation)]
        return " / ".join(dict.fromkeys(kinds))
    bounds = {type(each): each for each in metadata}
    if get_origin(annotation) is Literal:
        return " / ".join(f'"{each}"' for each in get_args(annotation))
    if get_origin(annotation) is dict:
        value = typed(get_args(annotation)[1])
        return f"{{{_times(bounds)} name => {VALUES.get(value, value)}}}"
    if get_origin(annotation) is tuple:
        items = [each for each in get_args(annotation) if each is not Ellipsis]
        if Ellipsis in get_args(annotation):
            return f"[{_times(bounds)} {_grouped(typed(items[0]))}]"
        return f"[{', '.join(map(typed, items))}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return NESTED[annotation]  # type: ignore[index]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " / ".join(f'"{each.value}"' for each in annotation)
    simple = {NoneType: "nil", bool: "bool", Any: "any", float: "float / int"}
    if annotation is int:
        return _range(bounds)
    if annotation in (str, bytes):
        return ("tstr" if annotation is str else "bstr") + _size(bounds, 4 if annotation is str else 1)
    return simple[annotation]


def _grouped(kind: str) -> str:
    return f"({kind})" if " / " in kind else kind


def _times(bounds: dict[type, Any]) -> str:
    least = bounds[MinLen].min_length if MinLen in bounds else 0
    most = bounds[MaxLen].max_length if MaxLen in bounds else ""
    return f"{least}*{most}"


def _size(bounds: dict[type, Any], bytes_each: int) -> str:
    """Return a bound in bytes; a character of text takes up to four."""
    if MaxLen not in bounds:
        return ""
    least, most = bounds[MinLen].min_length if MinLen in bounds else 0, bounds[MaxLen].max_length * bytes_each
    return f" .size {most}" if least == most else f" .size ({least}..{most})"


def _range(bounds: dict[type, Any]) -> str:
    least = bounds[Ge].ge if Ge in bounds else bounds[Gt].gt + 1 if Gt in bounds else None
    most = bounds[Le].le if Le in bounds else 2**63 - 1
    return "int" if least is None else f"{least}..{most}"


def ruled(name: str, model: type[Message], kind: str = "") -> str:
    """Return the CDDL of one map."""
    lines = [f"{name} = {{"]
    if kind:
        lines.append(f"  0: {NAMES.index(kind)},  ; {kind}" if kind in NAMES else f'  0: "{kind}",')
    for attribute, info in model.model_fields.items():
        if attribute == "kind":
            continue
        field = info.serialization_alias or attribute
        number = model is not overview.DeviceRow and field in NAMES
        key = str(NAMES.index(field)) if number else f'"{field}"'
        packed = (model, field) == (messages.Announcement, "frames")
        value = "bstr" if packed else typed(info.annotation, tuple(info.metadata))
        comment = f"  ; {field}" if number else ""
        lines.append(f"  {'' if info.is_required() else '? '}{key}: {value},{comment}")
    return "\n".join([*lines, "  * later => any,", "}"])


def page() -> str:
    """Return the content of the file."""
    text = HEAD.replace("{messages}", textwrap.fill(" / ".join(KINDS), 100, subsequent_indent="  ")).replace(
        "{first}", str(len(NAMES))
    )
    kinds = [ruled(kind, model, kind) for kind, model in KINDS.items()]
    nested = [ruled(name, model) for model, name in NESTED.items() if name not in KINDS]
    beside = [ruled(name, model) for name, model in BESIDE.items()]
    return "\n".join([text, *(f"{each}\n" for each in (*kinds, *nested, *beside)), MODELS.lstrip("\n")])


def main() -> None:
    """Write the file."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
