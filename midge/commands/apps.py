"""Loads the user's app that a command runs: `module:attribute`."""

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from midge.commands.parts import Problem, plainly
from midge.extras import how_to_get

_FLEET = "midge.sensor_fleet.live.server"
"""The module of ours with an app to run."""
_EARLIER = {"sensor_fleet.live.server": _FLEET}
"""Earlier names of our modules, which scripts may still use."""


def load_app(name: str, kind: type[Any], what: str) -> Any:
    """The user's object that `module:attribute` names, or the result if it is a function.

    Raises:
        Problem: there is none, it is of another kind, or the user's code failed; its traceback is then on stderr.
    """
    app = attribute(name)
    if callable(app) and not isinstance(app, kind):
        try:
            app = app()
        except Exception as error:
            raise failed(error, f"{name} cannot be called") from error
    if not isinstance(app, kind):
        raise Problem(f"{name} is of type {type(app).__name__}; it must be {what}, or a function that returns one.")
    return app


def attribute(name: str) -> Any:
    """The user's object that `module:attribute` names.

    Raises:
        Problem: there is none, or the user's code failed.
    """
    module_name, colon, wanted = name.partition(":")
    if not colon or not module_name or not wanted:
        raise Problem(f"{name!r} is not of the form module:attribute, such as pump:app.")
    module_name = _EARLIER.get(module_name, module_name)
    if module_name.partition(".")[0] == "midge" and module_name != _FLEET:
        raise Problem(f"{module_name!r} is a package of Midge's own: give your {module_name}.py another name.")
    module = _import(module_name)
    try:
        return getattr(module, wanted)
    except AttributeError as error:
        raise Problem(f"The module {module_name!r} ({_home(module)}) has no {wanted!r}.") from error


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            raise Problem(f"There is no module {name!r} in {Path.cwd()}: go to the directory of {name}.py.") from error
        raise Problem(how_to_get(error) or f"{name!r} imports {error.name!r}, which is not installed here.") from error
    except Exception as error:
        raise failed(error, f"{name!r} cannot be imported") from error


def failed(error: Exception, what: str) -> Problem:
    """The problem to report for an error in the user's code: only its message if our argument check raised it."""
    if isinstance(error, ValueError) and _raised_by_us(error):
        return Problem(plainly(error))
    traceback.print_exc(file=sys.stderr)
    return Problem(f"{what}; its error is above.")


def _raised_by_us(error: Exception) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    packages = {str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames[-1:]}
    return bool(packages & {"midge", "pydantic"})


def _home(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "a folder"
