"""The tutorial's pages, run from top to bottom as a person would.

A block of Python that begins with `# file: NAME` is written to that file. A block of shell that begins with
`# terminal` is a terminal of its own and runs until the page ends; any other is run to its end, and a `!` before a
command says that it must fail. Only the broker's port is another one, and demonstrations are shorter.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.waiting import LAST_RESORT, until

pytestmark = pytest.mark.alone

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tutorial").glob("[0-9]-*.md"))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"^```(sh|python)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        yield found[1], found[2]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def released(directory: Path) -> bool:
    """Whether one of the terminals tells of a version that has been released."""
    return any("version" in path.read_text().lower() for path in directory.glob("terminal-*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page: Path, tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    terminals: list[subprocess.Popen[bytes]] = []
    ran = 0
    try:
        for language, written in blocks(page):
            text = written.replace("mqtt://localhost", f"mqtt://localhost:{port}")
            text = text.replace("midge broker run", f"midge broker run --port {port}")
            text = re.sub(r"--seconds \d+", "--seconds 30", text)
            if language == "python":
                name = re.match(r"# file: (\S+)\n", text)
                assert name is not None, "say which file it is: # file: NAME"
                (tmp_path / name[1]).write_text(text)
            elif text.startswith("# terminal\n"):
                with (tmp_path / f"terminal-{len(terminals)}").open("wb") as log:
                    command = ["bash", "-c", f"exec {text.splitlines()[1]}"]
                    terminals.append(
                        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
                    )
                until("the broker", partial(listening, port))  # a reader sees it before opening the next terminal
            else:
                if any("midge aggregate" in str(terminal.args) for terminal in terminals):
                    until("a model", partial(released, tmp_path))  # nor does a reader go on before
                done = subprocess.run(
                    ["bash", "-e", "-c", text],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
                assert "Traceback" not in done.stderr
                ran += 1
    finally:
        for terminal in reversed(terminals):
            terminal.send_signal(signal.SIGINT)
            code = terminal.wait(LAST_RESORT)
            assert code in (0, -signal.SIGINT), (terminal.args, code)
    assert ran
    logs = "".join(path.read_text() for path in tmp_path.glob("terminal-*"))
    assert "Traceback" not in logs
