"""Build what a release consists of, and try it as a stranger would: `make release` prints one JSON line.

1. `dist/` gets the source distribution, the wheel built from it, and a bill of materials (CycloneDX) of what the wheel
   and its `demo` extra install.
2. The metadata is checked as PyPI does.
3. The wheel is installed without extras into an empty environment, where two devices federate; then with the `demo`
   extra, where the demonstration must reach its target.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.device import PIP, ROOT, federate, run

DIST = ROOT / "dist"
DEMO = ("demo", "--broker", "embedded", "--target", "0.9", "--seconds", "120", "--json")


def main() -> None:
    """Build and try a release."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    built = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built))
    (wheel,) = DIST.glob("*.whl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = _environment(folder, str(wheel))
        asyncio.run(federate(python, folder))
        _install(python, f"{wheel}[demo]")
        materials = DIST / f"{wheel.name.removesuffix('.whl')}.cdx.json"
        # This interpreter's: the environment that it describes holds nothing but the release.
        run(sys.executable, "-m", "cyclonedx_py", "environment", str(python), "--output-file", str(materials))
        version = run(str(python), "-I", "-m", "midge", "--version").split()[-1]
        assert wheel.name.startswith(f"midge-{version}-"), (wheel.name, version)
        found = json.loads(_demo(python, folder).splitlines()[-1])
    files = {path.name: path.stat().st_size for path in sorted(DIST.iterdir())}
    sys.stdout.write(json.dumps({"version": version, "files": files, "demo": _summary(found)}) + "\n")


def _environment(folder: Path, wheel: str) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    python = folder / "venv" / "bin" / "python"
    _install(python, wheel)
    return python


def _install(python: Path, what: str) -> None:
    run(*PIP, "--python", str(python), "install", "--prefer-binary", what)


def _demo(python: Path, folder: Path) -> str:
    command = [str(python), "-I", "-m", "midge", *DEMO]
    done = subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    if done.returncode:
        sys.exit(f"The demonstration of the installed wheel ended with {done.returncode}: {done.stdout}")
    return done.stdout


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("accuracy", "seconds", "reached") if name in found}


if __name__ == "__main__":
    main()
