"""SECURITY.md: each row names the test that holds it, and that test is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def rows() -> list[str]:
    start, end = TEXT.index("## What Midge guarantees"), TEXT.index("## Keys")
    heads = ("| it can try", "| event", "| what happens to files")
    return [line for line in TEXT[start:end].splitlines() if line.startswith("| ") and not line.startswith(heads)]


def test_each_row_names_its_test() -> None:
    assert len(rows()) > 20
    assert [row for row in rows() if "`tests/" not in row.rsplit("|", 2)[1]] == []


def test_each_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 20
    for file, test in named:
        text = (ROOT / file).read_text()
        assert not test or re.search(rf"def {test}\(", text), (file, test)
