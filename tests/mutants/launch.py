"""The harness's program with a bug in it, which the environment variable MIDGE_MUTANT names."""

import os
import sys
from pathlib import Path

VARIABLE = "MIDGE_MUTANT"
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-P", str(Path(__file__)))


def main() -> int:
    """Plant it, and go on as the program."""
    from tests.harness import program
    from tests.mutants.bugs import BUGS

    BUGS[os.environ[VARIABLE]].plant(setattr)
    return program.main()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
