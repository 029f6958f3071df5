"""`make mutants`: every bug against every kind of test, a line each."""

import sys
import tempfile
from pathlib import Path

from tests.mutants.bugs import BUGS
from tests.mutants.kinds import KINDS


def main() -> int:
    """Print who catches what; the exit code is 1 where a bug's own killer does not."""
    missed = 0
    for name, bug in BUGS.items():
        found: dict[str, str] = {}
        for kind, show in KINDS.items():
            with tempfile.TemporaryDirectory(prefix="midge-mutant-") as directory:
                if (seen := show(name, Path(directory) / "play" if kind == "virtual" else Path(directory))) is not None:
                    found[kind] = seen
        missed += bug.killer in KINDS and bug.killer not in found
        killers = ", ".join(found) or ("the power cut" if bug.killer == "power cut" else "nobody")
        sys.stdout.write(f"{name:28} {killers:40} {bug.words}\n")
        for kind, seen in found.items():
            sys.stdout.write(f"{'':28} {kind}: {seen}\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
