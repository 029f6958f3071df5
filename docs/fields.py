"""Write the tables of fields, numbers, enumerations and limits of docs/protocol.md: python docs/fields.py.

Types, ranges and defaults are those of the models in `midge.wire`; a meaning is the sentence below a field there, or
the one here.
"""

import ast
import inspect
import math
import textwrap
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from marks import put
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from midge.aggregator.ingress import reassembly
from midge.iot_client.connection import connection_loop, model_fetcher
from midge.iot_client.session import sending, timers
from midge.wire import frames, inputs, lineage, messages, overview, rice, row_statistics, schema, sealing, standby
from midge.wire.messages import Message, masking, proofs
from midge.wire.names import NAMES
from midge.wire.renewal import Authorities, RenewalAnswer, RenewalRequest

PAGE = Path(__file__).with_name("protocol.md")
WIDTH = 118

Section = tuple[str, str, list[type[BaseModel]]]
SECTIONS: list[Section] = [
    (
        "update, offer",
        "On `update/{slot}/{device}`; the body is the encoded delta, of an offer none.",
        [messages.Update],
    ),
    (
        "chunk",
        "On `update/{slot}/{device}`; the body is bytes part·c … (part+1)·c of the encoded delta.",
        [messages.Chunk],
    ),
    ("fetch", "On `update/{slot}/{device}`; no body.", [messages.Fetch]),
    ("statistics", "On `update/{slot}/{device}`; the body: [Statistics](#statistics).", [messages.Statistics]),
    ("prove", "On `update/{slot}/{device}`; no body: [the log of releases](#the-log-of-releases).", [proofs.Prove]),
    ("hello", "On `status/{device}`; no body.", [messages.Hello]),
    ("report", "On `report/{device}`; no body.", [messages.Report]),
    ("receipt", "On `receipt/{device}`; no body.", [messages.Receipt, messages.Settled, messages.Grant]),
    ("trouble", "On `receipt/{device}`; no body.", [messages.Trouble]),
    ("proof", "On `receipt/{device}`; no body, and not signed: the announced root proves it.", [proofs.Proof]),
    ("vouch", "On `receipt/{device}`; no body.", [messages.Vouch]),
    ("aggregator", "On `aggregator`; no body.", [messages.AggregatorStatus, messages.Health]),
    (
        "envelope",
        "On `model/train` and `model/serve`, and each link of a `chain`; no body, and no `kind`.",
        [messages.Envelope],
    ),
    (
        "announcement",
        "The `body` of an envelope; no body of its own.",
        [messages.Announcement, messages.Moment, messages.Plan, masking.Masking, messages.Participation],
    ),
    ("alias", "The `body` of an envelope on `model/alias/{name}`; no body of its own.", [messages.ModelAlias]),
    ("survey", "The `body` of an envelope on `model/survey`; no body of its own.", [messages.SurveyRequest]),
    (
        "surveyed",
        "On `report/{device}`; the body: [Surveys](#surveys).",
        [messages.Surveyed, row_statistics.Summary],
    ),
    ("part", "On `model/{channel}/{version}/{span}-{index}`; the body is a slice of the frame.", [messages.Part]),
    ("site_values", "On `model/site`; the body: the values.", [messages.SiteValues]),
    ("succession", "The `body` of an envelope in `chain`; no body of its own.", [messages.Succession]),
    (
        "site",
        "The `body` of the envelope in `vouch`, of a gateway; no body of its own.",
        [messages.SiteCertificate],
    ),
    ("claim", "On `claim`; no body.", [messages.Claim]),
    ("ask", "On `aggregator/ask`; no body.", [overview.Ask]),
    (
        "overview",
        "On `aggregator/overview`; the body is a msgpack array of rows.",
        [overview.Overview, standby.StandbyState, overview.DeviceRow],
    ),
    (
        "renew, renewed, authorities",
        "[Renewing credentials](#renewing-credentials); no bodies.",
        [RenewalRequest, RenewalAnswer, Authorities],
    ),
    (
        "helper, deposit, dealt",
        "On `helper` (in an envelope), `helper/deposit`, `helper/dealt`: [secure aggregation](#secure-aggregation).",
        [
            masking.HelperStatement,
            masking.SealingKey,
            masking.Deposit,
            masking.Ticket,
            masking.MaskEntry,
            masking.Piece,
            masking.Dealt,
            masking.SumMember,
            masking.Rejected,
        ],
    ),
    ("standby", "On `standby/copy` and `standby/follow`; devices need not read it.", [standby.StandbyMessage]),
    ("sealed", "Inside a [seal](#seals): frames without a `kind`.", [sealing.Confided, sealing.Details]),
]
TITLES: Mapping[type[BaseModel], str] = {
    messages.Settled: "each of `settled`",
    messages.Grant: "each of `grants`",
    messages.Health: "`health`",
    messages.Moment: "each of `moments`",
    messages.Plan: "`plan`",
    messages.Participation: "`participation`",
    overview.DeviceRow: "a row of the body, its keys text",
    standby.StandbyState: "`standby`",
    RenewalRequest: "`renew`",
    RenewalAnswer: "`renewed`",
    Authorities: "`authorities`",
    masking.Masking: "`masking` of a plan",
    masking.HelperStatement: "`helper`",
    masking.SealingKey: "each of `keys`",
    masking.Deposit: "`deposit`",
    masking.Ticket: "each item of the body of a `deposit`, a frame without a `kind`",
    masking.MaskEntry: "`entry`: a frame without a `kind`, and the device's signature after it",
    masking.Piece: "`dealt`",
    masking.Dealt: "inside the seal of the joined bodies of `dealt`, a frame without a `kind`",
    masking.SumMember: "each of `members`",
    masking.Rejected: "each of `rejected`",
    row_statistics.Summary: "the header of the body, a frame without a `kind`",
    sealing.Confided: "of an update that is `confided`: the header before the delta",
    sealing.Details: "`hidden`: of these, those that the message leaves out",
}
SAID: Mapping[str, Any] = tomllib.loads(PAGE.with_name("fields.toml").read_text())
"""Descriptions that the models do not have."""
KINDS = {"snapshot": ("exponent", "schema", "frozen", "filling"), "step": ("exponent", "size")}
"""Fields of frames, whose headers have no model: all integers, all required."""
# -------------------------------------------------------------------------------- fields


def described(annotation: Any, metadata: tuple[Any, ...] = ()) -> tuple[str, str]:
    """Return the msgpack type of an annotation and its range, in words."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return described(inner, (*_flat(more), *metadata))
    if get_origin(annotation) in (Union, UnionType):
        kinds = [described(each, metadata if each is not NoneType else ()) for each in get_args(annotation)]
        ranges = [found for kind, found in kinds if found]
        return " or ".join(dict.fromkeys(kind for kind, _ in kinds)), "; ".join(dict.fromkeys(ranges))
    bounds = {type(each): each for each in metadata}
    if get_origin(annotation) is Literal:
        return "text", " · ".join(f"`{each}`" for each in get_args(annotation))
    if get_origin(annotation) is dict:
        key, value = (described(each) for each in get_args(annotation))
        limits = [f"at most {bounds[MaxLen].max_length}"] if MaxLen in bounds else []
        ranges = [f"{what}: {found}" for what, (_, found) in (("keys", key), ("values", value)) if found]
        return f"map of {key[0]} to {value[0]}", "; ".join([*limits, *ranges])
    if get_origin(annotation) is tuple:
        items = [each for each in get_args(annotation) if each is not Ellipsis]
        kinds = [described(each) for each in items]
        if Ellipsis not in get_args(annotation):
            return "array [" + ", ".join(kind for kind, _ in kinds) + "]", "; ".join(
                found for _, found in kinds if found
            )
        (kind, inner), count = kinds[0], _lengths(bounds, "")
        return f"array of {kind}", "; ".join(filter(None, (count, f"each {inner}" if inner else "")))
    if annotation is NoneType:
        return "nil", ""
    if annotation is Any:
        return "anything", ""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "map", ""
    if inspect.isclass(annotation) and issubclass(annotation, StrEnum):
        return "text", " · ".join(f"`{each}`" for each in annotation) if len(
            annotation
        ) <= 4 else "[listed](#enumerations)"
    if annotation in (str, bytes):
        return ("text", _lengths(bounds, " characters")) if annotation is str else ("bin", _lengths(bounds, " bytes"))
    if annotation in (int, float):
        return annotation.__name__, _numbers(bounds)
    assert annotation is bool, annotation
    return "bool", ""


def _flat(metadata: list[Any]) -> list[Any]:
    """Return the constraints of a `Field` in an `Annotated`."""
    return [each for item in metadata for each in getattr(item, "metadata", [item])]


def _lengths(bounds: Mapping[type, Any], unit: str) -> str:
    least = bounds[MinLen].min_length if MinLen in bounds else 0
    most = bounds[MaxLen].max_length if MaxLen in bounds else None
    if most is None:
        return f"at least {least}{unit}" if least else ""
    if least == most:
        return f"{most}{unit}"
    return f"{least} to {most:,}{unit}" if least else f"at most {most:,}{unit}"


def _numbers(bounds: Mapping[type, Any]) -> str:
    least = f"> {_number(bounds[Gt].gt)}" if Gt in bounds else f"≥ {_number(bounds[Ge].ge)}" if Ge in bounds else ""
    if Le in bounds and Ge in bounds:
        return f"{_number(bounds[Ge].ge)} … {_number(bounds[Le].le)}"
    most = f"≤ {_number(bounds[Le].le)}" if Le in bounds else f"< {_number(bounds[Lt].lt)}" if Lt in bounds else ""
    return ", ".join(filter(None, (least, most)))


def _number(value: float) -> str:
    """Format a number for readers; near a power of two, as a power of two."""
    if isinstance(value, int) and value >= 2**20:
        for less, minus in ((0, ""), (1, " − 1")):
            bits = (value + less).bit_length() - 1
            if value + less == 1 << bits:
                return "2" + str(bits).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) + minus
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


@cache
def sentences(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field of a model and of its base classes."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if not issubclass(each, Message) or each is Message:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match after:
                    case ast.Expr(ast.Constant(str() as text)):
                        found[field.target.id] = " ".join(text.split())
    return found


def meaning(model: type[BaseModel], name: str) -> str:
    """Return the description of a field.

    Raises:
        KeyError: it is said nowhere.
    """
    ours: Mapping[str, str] = SAID["fields"]
    found = ours.get(f"{name}|{model.__name__}") or sentences(model).get(name) or ours[name]
    return found[0].lower() + found[1:] if found[1:2].islower() or found[:2] == "A " else found


def default(value: Any) -> str:
    """Return the default of a field, as text."""
    if value is PydanticUndefined:
        return "required"
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case BaseModel():
            return "its defaults"
        case str() | bytes() | tuple() | dict() if not value:
            return "empty"
        case int() | float():
            return _number(value)
    return f"`{value}`"


def row(model: type[BaseModel], name: str) -> str:
    """Return a field's table row."""
    field = model.model_fields[name]
    packed = (model, name) == (messages.Announcement, "frames")
    kind, found = ("bin", "") if packed else described(field.annotation, tuple(field.metadata))
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    said = field.serialization_alias or name
    cells = (f"`{said}`", _place(said), kind, found, default(value), meaning(model, name))
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _place(name: str) -> str:
    return str(NAMES.index(name)) if name in NAMES else "text"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").rstrip(".")


HEAD = ["| field | key | type | range | default | meaning |", "|---|---|---|---|---|---|"]


def table(model: type[BaseModel]) -> list[str]:
    """Return the table of a model's fields, without `kind`."""
    return [*HEAD, *(row(model, name) for name in model.model_fields if name != "kind")]


def fields() -> str:
    """Return the tables of all messages."""
    lines: list[str] = []
    for title, where, models in SECTIONS:
        lines += [f"### {', '.join(f'`{kind}`' for kind in title.split(', '))}", "", where, ""]
        for model in models:
            lines += ([f"{TITLES[model][0].upper()}{TITLES[model][1:]}:", ""] if model in TITLES else []) + [
                *table(model),
                "",
            ]
    lines += ["### `snapshot`, `step`", "", "The frames that a model's chunks form when joined.", ""]
    for kind, names in KINDS.items():
        lines += [f"`{kind}`, whose kind is sent as text{_also(kind)}:", "", *HEAD]
        lines += [f"| `{name}` | {_place(name)} | int | | required | {SAID['frames'][name]} |" for name in names]
        lines.append("")
    return "\n".join(lines).rstrip()


def _also(kind: str) -> str:
    return f" (a reader takes {NAMES.index(kind)} as well)" if kind in NAMES else ""


# ------------------------------------------------------------------------ beside fields


def names() -> str:
    """Return the list of names with their numbers."""
    words = " · ".join(f"{number}\N{NO-BREAK SPACE}`{name}`" for number, name in enumerate(NAMES))
    wrapped = textwrap.fill(words, WIDTH, break_on_hyphens=False, break_long_words=False)
    return wrapped.replace("\N{NO-BREAK SPACE}", " ")


ENUMERATIONS: list[tuple[str, type[StrEnum]]] = [
    ("`verdict`, of a receipt", messages.Verdict),
    ("`state`, of `hello`", messages.DeviceState),
    ("`state`, of `aggregator`", messages.AggregatorState),
    ("`state`, of `health`", messages.HealthState),
]


def enumerations() -> str:
    """Return the tables of enumerations."""
    lines: list[str] = []
    for title, kind in ENUMERATIONS:
        said = _sentences_of(kind)
        final = kind is messages.Verdict
        lines += [f"| {title} | {'settled | ' if final else ''}|", f"|---|---|{'---|' if final else ''}"]
        for word in kind:
            settled = [("yes" if word.final else "**no**")] if isinstance(word, messages.Verdict) else []
            text = SAID["words"][kind.__name__].get(word.value) or said[word.name]
            lines.append("| " + " | ".join([f"`{word}`", *settled, _cell(text[0].lower() + text[1:])]) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _sentences_of(kind: type[StrEnum]) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for word, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        match word, after:
            case ast.Assign(targets=[ast.Name(name)]), ast.Expr(ast.Constant(str() as text)):
                found[name] = " ".join(text.split())
    return found


def limits() -> str:
    """Return the table of limits, from the constants in the code."""
    pause, longest = connection_loop._PAUSE, connection_loop._LONGEST_PAUSE  # noqa: SLF001
    quiet = connection_loop._DUPLICATE_WAIT  # noqa: SLF001
    rows = [
        ("header of a frame", f"{frames.MAX_HEADER:,} bytes", "the length is a u16"),
        ("items of an array in a header", f"{frames.MAX_ITEMS:,}", "more are refused before they are read"),
        (
            "updates in an outbox",
            f"{messages.OUTBOX_LIMIT}",
            "the aggregator remembers as many verdicts: do not train further ahead",
        ),
        ("updates in flight", f"{sending.IN_FLIGHT}", "the aggregator keeps as many out of order per device"),
        ("chunks in a grant", f"{reassembly.WINDOW}", ""),
        (
            "a chunk of an update, if it has more than 64 parts",
            f"at least {reassembly.SMALLEST} bytes",
            "or the offer is `busy`",
        ),
        ("names of inputs", f"{inputs.MOST}, of {inputs.LONGEST} characters", "16 KiB in all"),
        ("names of metrics", "32, of 64 characters", "finite numbers"),
        (
            "tensors of a model",
            f"{schema.MAX_TENSORS:,}",
            f"names of at most {schema.MAX_NAME} bytes, {schema.MAX_SIDES} sides",
        ),
        (
            "values of a model",
            _number(schema.MAX_PARAMETERS),
            f"each below 2^{int(math.log2(lineage.LARGEST_VALUE))} in magnitude",
        ),
        (
            "an integer of a state or a step",
            f"±({_number(lineage.LARGEST)})",
            "−2³¹ is not allowed; a sum beyond the range refuses the frame",
        ),
        ("Rice parameter", f"{rice.WIDEST}", "of coded integers and of codecs"),
        ("chunks requested at a time", f"{model_fetcher.WINDOW}", "a device may take fewer"),
        (
            "seconds without a chunk before `fetch`",
            f"{model_fetcher.PATIENCE:g}",
            f"doubled while nothing arrives, up to {model_fetcher.LONGEST:g}",
        ),
        (
            "seconds before an unanswered message is sent again",
            f"{timers.PATIENCE:g}",
            f"doubled each time up to {timers.LONGEST:g}, ±25 %",
        ),
        ("seconds before the first reconnection", f"{pause:g}", f"doubled each time up to {longest:g}, ±50 %"),
        ("seconds to wait for another device of the same name", f"{quiet:g}", ""),
        ("keep-alive", f"{messages_keepalive()} s", "a SHOULD; a chunk should take a quarter of it at most"),
        ("a client id", "128 bytes", "a SHOULD: some services accept no more"),
    ]
    return "\n".join(
        ["| subject | limit | remark |", "|---|---|---|", *(f"| {' | '.join(map(_cell, each))} |" for each in rows)]
    )


def messages_keepalive() -> int:
    """Return the keep-alive in seconds."""
    from midge.iot_client.config import DeviceConfig  # noqa: PLC0415

    found: int = DeviceConfig.__dataclass_fields__["keepalive"].default
    return found


def parts() -> dict[str, str]:
    """Return all generated parts of the page."""
    return {"names": names(), "fields": fields(), "enumerations": enumerations(), "limits": limits()}


def main() -> None:
    """Write all generated parts into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
