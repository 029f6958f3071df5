"""The page on strategies says what the results say."""

from tests.docs.scripts import ROOT


def test_ratios_to_an_incomplete_search_are_withdrawn() -> None:
    for name in ("README.md", "docs/strategies.md"):
        text = (ROOT / name).read_text().partition("**Withdrawn:**")
        assert "best synchronous" not in text[0] + text[2].partition("\n\n")[2], name
