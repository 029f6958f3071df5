"""What is left out is told in one line, is counted once with several workers, and fails where all must run."""

import re
from pathlib import Path

import pytest

from tests.left_out import noted, sentence

pytest_plugins = ["pytester"]

MOSQUITTO = "needs Mosquitto (apt-get install mosquitto)"
PROGRAM = """
import pytest

@pytest.mark.skipif(True, reason="needs Mosquitto (apt-get install mosquitto)")
@pytest.mark.parametrize("number", range(3))
def test_with_a_broker(number): ...

def test_with_a_disk():
    pytest.skip("needs loop devices")

def test_plain(): ...
"""


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([], ""),
        ([MOSQUITTO], "1 test was left out: it needs Mosquitto (apt-get install mosquitto)."),
        ([MOSQUITTO] * 34, "34 tests were left out: they need Mosquitto (apt-get install mosquitto)."),
        (
            ["needs b", *[MOSQUITTO] * 2],
            "3 tests were left out: 2 need Mosquitto (apt-get install mosquitto), 1 needs b.",
        ),
        (["it rains"], "1 test was left out: it rains."),
        (["it rains", "needs b", "needs b"], "3 tests were left out: 2 need b, 1 because it rains."),
    ],
)
def test_one_line_for_all_reasons(reasons: list[str], said: str) -> None:
    assert sentence(reasons) == said


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with tests of its own, which run with our hooks in processes of their own."""
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(conftest=(root / "tests" / "conftest.py").read_text(), test_it=PROGRAM)
    return pytester


@pytest.mark.parametrize("workers", [(), ("--numprocesses", "2")], ids=["alone", "two workers"])
def test_it_is_told_at_the_end_and_fails_where_all_must_run(workers: tuple[str, ...], inner: pytest.Pytester) -> None:
    told = "4 tests were left out: 3 need Mosquitto (apt-get install mosquitto), 1 needs loop devices."
    done = inner.runpytest_subprocess(*workers)
    assert done.ret == 0
    assert [line for line in done.outlines if "left out" in line] == [told]
    done = inner.runpytest_subprocess(*workers, "--all-or-nothing")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    named = [line for line in done.outlines if line.startswith("LEFT OUT")]
    assert len(named) == 4 and "LEFT OUT test_it.py::test_with_a_broker[1]: " + MOSQUITTO in named


def test_two_runs_write_to_one_file(inner: pytest.Pytester) -> None:
    """Each run as `make test` starts it; the file of the first one is no path of tests for the second."""
    tests, file = inner.mkdir("tests"), inner.mkdir("elsewhere") / "file"
    for name in ("conftest.py", "test_it.py"):
        (inner.path / name).rename(tests / name)
    inner.makeini("[pytest]\ntestpaths = tests")
    option = _option_of_make_test(file)
    for _ in range(2):
        done = inner.runpytest_subprocess(*option)
        assert done.ret == 0
        assert not [line for line in done.outlines if "were left out" in line]
    assert len(noted(file)) == 8


def _option_of_make_test(file: Path) -> list[str]:
    """The option by which the Makefile's pytest runs name their file."""
    recipe = (Path(__file__).parents[1] / "Makefile").read_text()
    (option,) = set(re.findall(r"--left-out[ =]\$\(LEFT_OUT\)", recipe))
    return str(option).replace("$(LEFT_OUT)", str(file)).split()


@pytest.mark.parametrize(("why", "code"), [("", 1), ("reason='a bug elsewhere'", 0)])
def test_a_failure_is_expected_only_for_a_reason(why: str, code: int, inner: pytest.Pytester) -> None:
    inner.makepyfile(test_it=f"import pytest\n@pytest.mark.xfail({why})\ndef test_x():\n    assert False\n")
    assert inner.runpytest_subprocess("--all-or-nothing").ret == code
