"""Each bug against the cheapest kind of test that catches it."""

from pathlib import Path

import pytest

from tests.mutants.bugs import BUGS
from tests.mutants.kinds import KINDS


@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.killer in KINDS])
def test_the_bug_is_caught(name: str, tmp_path: Path) -> None:
    assert KINDS[BUGS[name].killer](name, tmp_path) is not None


def test_a_damaged_checkpoint_is_passed_over_where_there_is_no_bug(tmp_path: Path) -> None:
    assert KINDS["damage"]("never_resend", tmp_path) is None  # a bug of the other side
