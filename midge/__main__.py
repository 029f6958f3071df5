"""The `midge` command."""

import logging
import os
import select
import sys
from pathlib import Path

from midge.wire.inert import inert

# Small models and many devices: one thread per core in each process would oversubscribe the cores. Before NumPy is
# imported.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def main(arguments: list[str] | None = None) -> int:
    """Parse, run the command, and turn an error that the user can fix into one sentence and exit code 2."""
    from midge.commands import ALIASES, problems  # noqa: PLC0415 - after the environment is set
    from midge.commands.auditing import spelled_out  # noqa: PLC0415
    from midge.commands.parser import command_parser  # noqa: PLC0415
    from midge.logs import TEXT, print_failure  # noqa: PLC0415
    from midge.running import note_exit  # noqa: PLC0415

    parser = command_parser()
    given = spelled_out(list(sys.argv[1:] if arguments is None else arguments))
    parsed, more = parser.parse_known_args([*ALIASES.get(" ".join(given[:2]), given[:2]), *given[2:]])
    if more and not (isinstance(getattr(parsed, "app", None), list) and not any(each.startswith("-") for each in more)):
        parsed.parser.refuse(more)
    if more:
        parsed.app += more  # after an option, as in `midge device verify --json OUTBOX`
    logging.basicConfig(
        level=logging.INFO if parsed.verbose else logging.WARNING,
        format=TEXT,
    )
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.append(here)  # last: a user's file must not hide one of ours
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # of a socket, where it is a bug
        code = 141  # as if SIGPIPE had ended it: midge status … | head
    except problems() as error:
        for line in getattr(error, "lines", [str(error)]):
            if getattr(parsed, "log", "text") == "json":
                print_failure(line)
            else:
                sys.stderr.write(f"midge: {inert(line)}\n")
        code = 2
    except KeyboardInterrupt:
        code = 130
    note_exit(exit_code=code)
    return code


def _reader_is_gone() -> bool:
    """Whether nothing reads standard output any more; what else is printed is lost then, without an error."""
    waiting = select.poll()
    waiting.register(sys.stdout.fileno(), 0)
    gone = any(happened & select.POLLERR for _, happened in waiting.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


if __name__ == "__main__":
    sys.exit(main())
