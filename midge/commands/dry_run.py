"""`midge device --csv FILE --dry-run`: show what would be read or dropped, and why; nothing is sent or kept."""

import argparse
import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from midge.broker import connector
from midge.broker.mqtt.connection import BrokerError, Delivery, Options
from midge.broker.mqtt.topic_filters import check_filter
from midge.commands.gateway import csv_options, file_columns, kind_of, names_in, sensors
from midge.commands.parts import Problem, user_errors
from midge.commands.places import moved
from midge.iot_client.data.columns import FIRST, no_inputs
from midge.iot_client.data.csv_inspection import first_rows, header
from midge.iot_client.data.csv_source import CsvError, CsvRows
from midge.iot_client.data.intake import Intake
from midge.iot_client.data.mqtt_source import LATER, SensorTopic
from midge.iot_client.data.payloads import records_of, spelled
from midge.iot_client.data.samples import Samples
from midge.iot_client.data.values import WORDS, missing, number
from midge.wire.inert import inert

log = logging.getLogger("iot_client")

_BYTES = 256 * 2**20
"""Bytes of rows that are kept to count their classes; memory is allocated as they come."""
_MOST_CLASSES = 20
_LISTEN, _MOST_MESSAGES = 10.0, 100_000


def run(args: argparse.Namespace) -> int:
    log.disabled = True  # the counts show it
    try:
        found = _file(args) if args.csv is not None else asyncio.run(_topic(args))
    except (CsvError, Problem) as error:
        if not args.json:
            raise
        print(json.dumps({**_empty(args), "problem": str(error)}))
        raise Problem(str(error)) from error
    finally:
        log.disabled = False
    if args.json:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(inert(line))
    return 0 if found["kept"] else 1


def _file(args: argparse.Namespace) -> dict[str, Any]:
    with user_errors():
        path, options = Path(args.csv).expanduser(), csv_options(args)
        classes = names_in(args.classes)
        if not path.exists():
            raise Problem(f"There is no file {path}. A device would wait for it.")
        named = [*names_in(args.features), *([args.label] if args.label else [])]
        layout = header(path, named, options)
        features, out = file_columns(args, path, layout)
        samples = _samples(args, features)
        source = CsvRows(path, classes=classes, options=options)
    problem = ""
    try:
        while source.read(samples):
            pass
    except CsvError as error:
        problem = str(error)
    finally:
        source.close()
    said = [] if args.label is None else first_rows(path, layout, FIRST)[args.label]
    intake = samples.intake(str(path))
    found = _found(args, samples, intake, out, said)
    found["format"] = {"encoding": layout.encoding, "separator": layout.delimiter}
    if layout.encoding == "utf-8" and not _is_utf8(path):
        found["format"]["encoding"] = layout.other
    return found if not problem else {**found, "problem": problem}


async def _topic(args: argparse.Namespace) -> dict[str, Any]:
    """Collect messages for a while, then read them: the fields are not known before."""
    heard = await _listen(args)
    if not heard:
        spent = _LISTEN if args.listen is None else args.listen
        why = f"no message came on {args.sensor_topic} in {spent:g} s: is the topic right, and does a sensor speak?"
        return {**_empty(args), "problem": why}
    records = [(each, record) for _, each in heard for record in records_of(each.topic, each.payload)]
    fields: dict[str, list[Any]] = {}
    for _, record in records:
        for name, value in record.items():
            fields.setdefault(name, []).append(value)
    with user_errors():
        if args.features:
            features = names_in(args.features)
            used = {spelled(each).rpartition("/")[2] for each in (*features, args.label or "")} | {
                *features,
                args.label,
            }
            out = dict.fromkeys([name for name in fields if name not in used], "not among --features")
        else:
            out = {name: why for name, why in no_inputs(fields).items() if name != args.label}
            out |= _twins(fields, args.label)
            features = [name for name in fields if name != args.label and name not in out]
        if not features:
            left = ", ".join(f"{name!r} ({why})" for name, why in out.items()) or "no field at all"
            raise Problem(f"{len(heard)} messages came on {args.sensor_topic}, with no input by their look: {left}.")
        samples, now = _samples(args, features), 0.0
        source = SensorTopic(_unused, args.sensor_topic, classes=names_in(args.classes), clock=lambda: now)
    for now, delivery in heard:  # noqa: B007 - the clock reads it
        source.take(delivery, samples)
    said = [] if args.label is None else fields.get(args.label, [])
    intake = samples.intake(args.sensor_topic)
    if (silent := source.silence(samples)) is not None:
        intake.problem = intake.problem or silent[1]
    if not intake.kept and (count := intake.skipped.pop(LATER, 0)):  # no row was expected
        text = next((f"{each.topic} {each.payload[:200].decode(errors='replace')}" for _, each in heard), "")
        for _ in range(count):
            intake.drop(f"no {args.label}" if args.label else "not all features", intake.problem, text)
    return _found(args, samples, intake, out, said)


def _unused(options: Options) -> Any:  # noqa: ARG001 - as a connector is called
    raise AssertionError("what was heard is read, and no connection made")


def _twins(fields: Mapping[str, Sequence[Any]], label: str | None) -> dict[str, str]:
    """Fields that duplicate another one under the end of its name or its full name, as in SenML."""
    return {
        name: f"the same as {other}"
        for name, said in fields.items()
        for other, its in fields.items()
        if name not in (other, label)
        and (name.endswith(other) or (other == label and other.endswith(name)))
        and list(said) == list(its)
    }


async def _listen(args: argparse.Namespace) -> list[tuple[float, Delivery]]:
    """The messages of some seconds, with the arrival time of each."""
    if args.sensor_broker is not None:
        with user_errors():
            reach = connector(sensors(args))
    elif args.config is not None or args.broker is not None:
        reach = moved(None, args)[0]["connector"]
    else:
        raise Problem("Say where the sensors are: --sensor-broker URL, --broker URL or --config with a bundle.")
    heard: list[tuple[float, Delivery]] = []
    loop = asyncio.get_running_loop()
    try:
        with user_errors():
            check_filter(args.sensor_topic)
        async with reach(Options(client_id=f"midge-try-{secrets.token_hex(6)}")) as connection:
            await connection.subscribe(args.sensor_topic, qos=0)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LISTEN if args.listen is None else args.listen):
                    async for delivery in connection.messages():
                        connection.ack(delivery)
                        heard.append((loop.time(), delivery))
                        if len(heard) >= _MOST_MESSAGES:
                            break
    except BrokerError as error:
        raise Problem(f"The sensors on {args.sensor_topic} cannot be heard: {error}") from error
    return heard


def _is_utf8(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.read(2**20).decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def _samples(args: argparse.Namespace, features: Sequence[str]) -> Samples:
    return Samples(
        None,
        features,
        args.label,
        kind=kind_of(args),
        rows=max(args.keep_rows, 1_000_000),
        size=_BYTES,
        missing_values=names_in(args.missing),
    )


def _found(
    args: argparse.Namespace, samples: Samples, intake: Intake, out: Mapping[str, str], said: Sequence[Any]
) -> dict[str, Any]:
    """The result of the dry run, as JSON types."""
    packed = intake.packed()
    never = [name for name in samples.absent if intake.kept]
    return {
        **packed,
        "columns": {"used": list(samples.features), "label": samples.label, "left_out": dict(out)},
        "classes": _classes(args, samples, said),
        "never_present": never,
        "trains": bool(intake.kept) and not never,
    }


def _classes(args: argparse.Namespace, samples: Samples, said: Sequence[Any]) -> dict[str, int]:
    """Number of rows in each class; without names, the label's words in the first rows."""
    if names := names_in(args.classes):
        counted = Counter(samples.arrays(take=False)[1].tolist())
        return {name: counted[number] for number, name in enumerate(names)}
    words = [str(each).strip() for each in said if each is not None and not missing(str(each))]
    if words and all(word.casefold() in WORDS or number(word) != number(word) for word in words):
        return dict(Counter(words).most_common(_MOST_CLASSES))
    return {}


def _empty(args: argparse.Namespace) -> dict[str, Any]:
    columns = {"used": [], "label": args.label, "left_out": {}}
    return {
        **Intake(args.csv if args.csv is not None else args.sensor_topic).packed(),
        "columns": columns,
        "classes": {},
        "never_present": [],
        "trains": False,
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same as text."""
    columns = found["columns"]
    said = [f"read      {found['read']:,} rows of {found['source']}, {found['kept']:,} kept"]
    if columns["used"]:
        target = f"to predict {columns['label']}" if columns["label"] else "without a label"
        said.append(f"columns   {', '.join(columns['used'])}, {target}")
    said += [f"left out  {name!r}: {why}" for name, why in columns["left_out"].items()]
    for reason, each in found["dropped"].items():
        where = f"line {each['line']:,}, " if "line" in each else ""
        said.append(f"dropped   {each['count']:,} rows ({reason}); the first is {where}{each['first']!r}")
    for name, each in found["values"].items():
        where = f" (line {each['line']:,})" if "line" in each else ""
        said.append(f"missing   {each['count']:,} values of {name!r} are no numbers: {each['why']}{where}")
    if found["classes"]:
        said.append("classes   " + ", ".join(f"{name} {count:,}" for name, count in found["classes"].items()))
    if found["never_present"]:
        said.append(
            f"          No row had a number for {', '.join(found['never_present'])}: the device would not train. Leave "
            "it out of --features, or see how its values are written."
        )
    if found.get("problem"):
        said.append(f"          {found['problem']}")
    if found["dropped"] and found["classes"] and not found["kept"]:
        said.append(f"          Classes are given by name: --classes {','.join(found['classes'])}")
    return said
