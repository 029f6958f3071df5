"""The pages say what the code does."""

import re

import pytest

from tests.docs.scripts import ROOT, script

MADE = (
    "brokers", "comparison", "compression", "configuration", "events", "fields", "performance",
    "sensors", "session", "states", "strategies", "tree",
)  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_the_generated_parts_of_a_page_are_those_of_the_code(name: str) -> None:
    """Seen to fail on a field without a meaning, another default, a new verdict and a renamed event."""
    page = script(name)
    text = page.PAGE.read_text()
    assert script("marks").filled(text, page.parts()) == text, f"run: python docs/{name}.py"


def test_the_readme_compares_by_the_results_that_are_kept() -> None:
    text = (ROOT / "README.md").read_text()
    assert script("marks").filled(text, script("comparison").readme()) == text, "run: python docs/comparison.py"


def test_the_picture_of_bytes_is_of_the_results_that_are_kept() -> None:
    compression = script("compression")
    assert compression.picture() in compression.PICTURE.read_text(), "run: python docs/compression.py"


def test_the_tree_has_a_phrase_for_every_file() -> None:
    lines = script("tree").parts()["tree"].split("Every file")[1].splitlines()
    assert all(len(line.split(None, 1)) == 2 for line in lines if ".py" in line), "a module without a first sentence"


def test_the_tree_names_every_top_level_folder() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"^(\w+)/", tree, re.MULTILINE))
    present = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert named <= present
    assert present - named <= {"runs", "build", "dist", "midge.egg-info"}


def test_the_protocol_page_knows_every_verdict_and_kind() -> None:
    from midge.wire.messages import Verdict
    from midge.wire.messages.decoding import _TO_AGGREGATOR

    page = (ROOT / "docs" / "protocol.md").read_text()
    for word in [*Verdict, *_TO_AGGREGATOR]:
        assert f"`{word}`" in page


def test_every_linked_file_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_protocol_page_has_every_message() -> None:
    from midge.wire import messages, overview, renewal, sealing

    described = {model for _, _, models in script("fields").SECTIONS for model in models}
    shapes = {messages.Message, messages.Outgoing, messages.StrictPlan}
    for module in (messages, overview, renewal, sealing):
        ours = {each for each in vars(module).values() if isinstance(each, type) and issubclass(each, messages.Message)}
        assert ours - shapes <= described


def test_every_link_to_a_heading_leads_to_one() -> None:
    """Seen to fail on a heading that was renamed."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    anchors = {
        page: {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in lines if line[:1] == "#"}
        for page in pages
        for lines in [page.read_text().splitlines()]
    }
    wrong = [
        f"{page.name}: {target}#{anchor}"
        for page in pages
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
        if anchor not in anchors[(page.parent / target).resolve() if target else page]
    ]
    assert wrong == []
