"""`midge completion`: what the shells themselves complete with the script."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.commands.completion import SHELLS
from tests import needs
from tests.waiting import LAST_RESORT

SHTAB = needs.package("shtab", "shtab")


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"midge.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


@SHTAB
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("conf", {"config", "conform"}),
        ("config ", {"check", "example", "schema"}),
        ("config example --f", {"--full"}),
        ("broker authority s", {"succeed", "switch"}),
        ("device ver", {"verify"}),
        ("device --sensor-t", {"--sensor-topic"}),
        ("aggregate --config midge", {"midge.toml"}),
        ("device --config mid", {"midge.toml"}),
        ("device --decimal ", {".", ","}),
        ("completion f", {"fish"}),
    ],
)
def test_bash_completes(typed: str, found: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = needs.program("bash", needs.SHELLS)
    (tmp_path / "midge.toml").touch()
    path = script("bash", tmp_path, capsys)
    path.rename(tmp_path / "completion")
    words = ["midge", *typed.split(" ")]
    program = f"""
        source {tmp_path}/completion
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        function=$(complete -p midge | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        "$function" midge '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([bash, "--norc", "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert {word.strip() for word in done.stdout.split()} == found, done.stderr


@SHTAB
def test_bash_completes_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = needs.program("bash", needs.SHELLS)
    path = script("bash", tmp_path, capsys)
    child, terminal = pty.fork()
    if child == 0:
        os.execve(
            bash, [bash, "--norc", "--noprofile", "-i"], {"TERM": "dumb", "PS1": "ready ", "PATH": os.environ["PATH"]}
        )
    try:
        _read_until(terminal, "ready ")
        os.write(terminal, f"source {path}\n".encode())
        _read_until(terminal, "ready ")
        os.write(terminal, b"midge config exa\t")
        _read_until(terminal, "midge config example ")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _read_until(terminal: int, words: str) -> None:
    said, deadline = "", time.monotonic() + LAST_RESORT
    while words not in said:
        assert time.monotonic() < deadline, said
        said += os.read(terminal, 4096).decode(errors="replace")


@SHTAB
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_can_read_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(shell, tmp_path, capsys)
    program = needs.program(shell, needs.SHELLS)
    done = subprocess.run([program, "-n", str(path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@SHTAB
def test_fish_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fish = needs.program("fish", needs.SHELLS)
    path = script("fish", tmp_path, capsys)
    words = f"source {path}; complete --do-complete 'midge config '"
    done = subprocess.run([fish, "--no-config", "-c", words], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} >= {"check", "example", "schema"}


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == 'midge: Completion is written by shtab: pip install "midge[completion]"\n'
