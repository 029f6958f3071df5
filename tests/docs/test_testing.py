"""The page of tests: each test that it names exists, and what is expected to fail is in its table of what is open."""

import ast
import re
from pathlib import Path

from tests.docs.scripts import ROOT

PAGE = ROOT / "docs" / "testing.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions(path: Path) -> dict[str, bool]:
    """The tests of a file, and whether each is expected to fail."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found[node.name] = any("mark.xfail" in ast.unparse(each) for each in node.decorator_list)
    return found


def test_every_test_that_the_page_names_is_there() -> None:
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 50
    missing = [f"{file}::{test}" for file, test in named if test not in functions(ROOT / file)]
    assert not missing


def test_what_is_expected_to_fail_is_open_and_nothing_else() -> None:
    held, _, still = PAGE.read_text().partition("## Open")
    expected = {
        (str(path.relative_to(ROOT)), test)
        for path in (ROOT / "tests").rglob("test_*.py")
        for test, fails in functions(path).items()
        if fails
    }
    assert set(NAMED.findall(still)) == expected
    assert not expected & set(NAMED.findall(held))


def test_what_is_expected_to_fail_says_why_and_fails_strictly() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.xfail"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert said.get("strict") == "True" and len(said.get("reason", "")) > 20, path.name
