"""The actions of the live page on a federation whose store is at hand: the commands, by the same functions.

A new action is one more `Action` in `actions_on`: the page gets its button from there, and needs no change.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from midge.aggregator.store import device_erasure, model_orders, pausing
from midge.dashboard.actions import Action, ActionRequest, Refused

T = TypeVar("T")
_LONGEST = 60.0
"""Seconds that a journal may take to be read."""
_ANSWER = 20.0
"""Seconds in which a running aggregator answers an order."""


def actions_on(store: Path) -> Sequence[Action]:
    """What can be done to the federation of a store. A running aggregator follows within seconds."""

    async def pause(asked: ActionRequest) -> str:
        why = asked.text or "the operator paused it"
        await _written(pausing.pause, store, why)
        return f"Paused: {why}"

    async def resume(_: ActionRequest) -> str:
        return "The federation continues." if await _written(pausing.resume, store) else "It was not paused."

    async def withdraw(asked: ActionRequest) -> str:
        await _written(device_erasure.ask, store, asked.device)
        return f"{asked.device} is withdrawn: it is refused from now on, and its data in the store is erased."

    async def readmit(asked: ActionRequest) -> str:
        await _written(partial(device_erasure.ask, readmit=True), store, asked.device)
        return f"{asked.device} may take part again."

    reading = asyncio.Lock()

    async def explain(asked: ActionRequest) -> str:
        async with reading:  # a journal may be large
            return await _explained(store, asked)

    async def ordered(verb: model_orders.Verb, asked: ActionRequest) -> str:
        return await _ordered(store, verb, asked)

    return (
        Action("pause", "Pause", "federation", pause, "Refuse updates until it is resumed?", asks="Reason"),
        Action("resume", "Resume", "federation", resume, "Accept updates again?"),
        Action(
            "register",
            "Register",
            "federation",
            partial(ordered, "register"),
            "Keep a release whole, to use, to export or to go back to, and let a share of the devices try it, or those "
            "with a capability, such as site=north?",
            asks="Version (the newest), NAME=VALUE (all)",
        ),
        Action(
            "promote",
            "Promote",
            "federation",
            partial(ordered, "promote"),
            "Let all devices use a registered version?",
            asks="Version (the candidate)",
        ),
        Action(
            "rollback",
            "Roll back",
            "federation",
            partial(ordered, "rollback"),
            "Continue the training from a registered version, as a new generation? Updates that were trained since are "
            "refused.",
            asks="Version (the champion)",
            grave=True,
        ),
        Action(
            "withdraw",
            "Withdraw",
            "device",
            withdraw,
            "Refuse this device from now on, and erase its name, its updates and its counters from the store? What it "
            "has contributed to the model stays in it.",
            grave=True,
        ),
        Action("readmit", "Readmit", "device", readmit, "Let this device take part again, as a new one?"),
        Action("explain", "Explain", "update", explain),
    )


async def _written(write: Callable[..., T], *arguments: Any) -> T:
    try:
        return await asyncio.to_thread(write, *arguments)
    except OSError as error:
        raise Refused(f"The store cannot be written: {error.strerror or error}.") from error


async def _ordered(store: Path, verb: model_orders.Verb, asked: ActionRequest) -> str:
    """Give an order about registered versions, and wait for the aggregator's answer."""
    attempt, version, where = verb == "register", 0, dict[str, str]()
    for text in asked.text.split():
        name, equal, value = text.partition("=")
        if attempt and name and equal:
            where[name] = value
        elif not version and text.isascii() and text.isdecimal() and len(text) < 19:
            version = int(text)
        else:
            raise Refused(f"{text[:40]!r} is no version: write its number, or nothing.")
    try:
        order = model_orders.ModelOrder(verb, version, attempt=attempt, where=where, by="the live page")
    except ValueError as error:
        raise Refused(str(error)) from error
    await _written(model_orders.give, store, order)
    if (answer := await model_orders.awaited(store, order, _ANSWER)) is None:
        return "The order is in the store: the aggregator follows it once it runs and has its broker, within a day."
    if not answer["ok"]:
        raise Refused(f"{answer['why']}.")
    named = ", ".join(f"{name} {version}" for name, version in answer["aliases"].items()) or "Registered."
    meant = answer.get("meant")
    return named if meant is None else f"{named}, for {meant['devices']} of {meant['known']} known devices"


async def _explained(store: Path, asked: ActionRequest) -> str:
    """What `midge explain` says: by a process of its own, which takes no time from a running aggregator's loop."""
    command = (sys.executable, "-P", "-m", "midge", "explain", str(store), f"{asked.device}/{asked.seq}")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_LONGEST):
            said, why = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Refused(
            f"The journal was not read within {_LONGEST:.0f} s: say `midge explain` on the machine."
        ) from None
    if process.returncode:
        raise Refused(why.decode(errors="replace").removeprefix("midge: ").strip())
    return said.decode(errors="replace")
