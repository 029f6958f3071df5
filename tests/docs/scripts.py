"""The programs of docs/ and tools/, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def script(name: str, *, folder: str = "docs") -> ModuleType:
    """FOLDER/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / folder))  # as Python does for a program
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
