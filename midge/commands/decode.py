"""`midge decode FILE|-`: dissect a payload."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from midge.commands.parts import Problem, Subparsers
from midge.wire.inert import inert

if TYPE_CHECKING:
    from midge.wire.dissection import Dissection
    from midge.wire.signing import MacKey, PublicKey

_MOST = 2**28
"""Bytes that are read at most: the largest MQTT message."""
_SHOWN = 100
"""Characters of a value in words."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "decode",
        help="dissect a payload: its kind, its fields by name, its content",
        description=(
            "Dissect a payload: a file, or - for standard input, as it was published or in hexadecimal digits. Lines "
            "of `TOPIC HEX`, as `mosquitto_sub -F '%%t %%x'` prints them, are a message each. Nothing is sent or "
            "trusted. The exit code is 1 if something is not Midge's, or wrong."
        ),
    )
    parser.add_argument("file", metavar="FILE", help="the payload, or - for standard input")
    parser.add_argument("--topic", help="its topic, which implies its kind and its signer")
    parser.add_argument(
        "--key",
        metavar="PEM",
        action="append",
        default=[],
        help="a public key, a certificate or a secret for HMAC to verify signatures with; repeated",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.wire.dissection import dissect  # noqa: PLC0415 - not for other commands
    from midge.wire.topic_hints import hint  # noqa: PLC0415

    keys, found = _keys(args.key), []
    for topic, payload in _messages(_read(args.file)):
        topic = topic or args.topic or ""  # noqa: PLW2901
        found.append((topic, dissect(payload, hint(topic) if topic else None, keys)))
    ok = all(each.ok for _, each in found)
    if args.json:
        said = [({"topic": topic} if topic else {}) | each.plain() for topic, each in found]
        print(json.dumps({"ok": ok, "messages": said}))
    else:
        for topic, each in found:
            print("\n".join(map(inert, [*([topic] if topic else []), *_words(each)])))
    return 0 if ok else 1


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read(_MOST)
        with Path(file).expanduser().open("rb") as opened:
            return opened.read(_MOST)
    except OSError as error:
        raise Problem(f"{file} cannot be read: {error.strerror}.") from error


def _messages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Topics, if given, and payloads."""
    text = data.decode("ascii", errors="replace").strip()
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if lines and all(len(line) in (1, 2) and "/" in line[0] and _hex(line[1:]) is not None for line in lines):
        for line in lines:
            yield line[0], _hex(line[1:]) or b""
        return
    digits = _hex(text.split())
    yield "", data if digits is None or not text else digits


def _hex(words: list[str]) -> bytes | None:
    """Bytes of hexadecimal digits, however they are grouped; None if they are none."""
    digits = "".join(word.removeprefix("0x").rstrip(",").replace("\\x", "").replace(":", "") for word in words)
    return bytes.fromhex(digits) if re.fullmatch(r"([0-9A-Fa-f]{2})*", digits) else None


def _keys(files: list[str]) -> list["PublicKey | MacKey"]:
    from midge.wire.signing import KeyUnusable, MacKey, read_public  # noqa: PLC0415 - it needs an extra

    try:
        read = [(Path(file).expanduser().read_bytes(), file) for file in files]
        return [(MacKey.read if data.startswith(b"hmac") else read_public)(data, file) for data, file in read]
    except OSError as error:
        raise Problem(f"The key {error.filename} cannot be read: {error.strerror}.") from error
    except (KeyUnusable, ModuleNotFoundError) as error:
        raise Problem(str(error)) from error


def _words(found: "Dissection", indent: str = "") -> list[str]:
    """A dissection as lines of text."""
    name = f"{found.kind}: " if found.kind else ""
    lines = [f"{indent}{name}{found.what} ({found.size:,} bytes)"]
    shown = {field: value for field, value in found.fields.items() if not (found.inside and field in {"body", "chain"})}
    lines += [f"{indent}  {field:<14} {_value(value)}" for field, value in shown.items()]
    if found.defaults:
        left_out = ", ".join(f"{field} {_value(value)}" for field, value in found.defaults.items())
        lines.append(f"{indent}  left out, so: {left_out}")
    if found.unknown:
        lines.append(f"{indent}  unknown to this version:  {', '.join(found.unknown)}")
    if found.body:
        facts = ", ".join(f"{field} {_value(value)}" for field, value in found.body.items())
        lines.append(f"{indent}  body           {facts}")
    if found.signature:
        lines.append(f"{indent}  signature      {found.signature}")
    lines += [f"{indent}  WRONG: {each}" for each in found.wrong]
    for each in found.inside:
        lines += [f"{indent}  inside:", *_words(each, f"{indent}    ")]
    return lines


def _value(value: Any) -> str:
    from midge.wire.dissection import plain  # noqa: PLC0415

    said = _short(plain, value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**32:
        text = f"{value} (0x{value:016x})"
    elif isinstance(value, str):
        text = str(said) or "empty"
    elif isinstance(value, bytes):
        text = said or "empty"
    else:
        text = json.dumps(said, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _short(plain: Callable[[Any], Any], value: Any) -> Any:
    """A value as JSON types; of maps only what travelled."""
    match value:
        case BaseModel():
            return plain(value.model_dump(exclude_defaults=True, by_alias=True))
        case tuple():
            return [_short(plain, each) for each in value]
    return plain(value)
