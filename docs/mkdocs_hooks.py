"""Hooks of MkDocs, which make a site of the pages as they are read in the repository.

Pages link to pages and files outside docs/: such a page becomes one of the site, such a file is copied. Headings get
the anchors that GitHub gives them. The page of commands is made from the parser.
"""

import posixpath
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import diagrams

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
"""A link's target without its anchor, in Markdown; not an address."""
EXTERNAL = re.compile(r'(?:href|src)="(https?://[^"]+)"')

_external: set[str] = set()
_log = get_plugin_logger(__name__)


def place(path: Path) -> str:
    """Where a file of the repository is in the site: docs/ and the rest have one root."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


@cache
def reached() -> frozenset[Path]:
    """Files outside docs/ to which pages lead, and the pages among them."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/README.md"), *DOCS.rglob("*.md")]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".md":
            targets = {(path.parent / target).resolve() for target in LINK.findall(path.read_text(encoding="utf-8"))}
            waiting += [each for each in targets if each.is_file() and each.is_relative_to(ROOT)]
    return frozenset(path for path in seen if not path.is_relative_to(DOCS))


def anchor(heading: str, separator: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", separator)


def commands() -> str:
    """The page of all commands: what each prints with `--help`."""
    sys.path.insert(0, str(ROOT))
    from midge.commands.parser import command_parser  # noqa: PLC0415 - the package of this repository

    parser = command_parser()
    choices = next(action.choices for action in parser._actions if action.metavar == "COMMAND")  # noqa: SLF001
    parts = ["# Commands", "", "What each command prints with `--help`.", ""]
    for name, command in dict(choices or {}).items():
        parts += [f"## midge {name}", "", "```text", command.format_help().strip(), "```", ""]
    return "\n".join(parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as GitHub's, so that one link works in both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is outside docs/."""
    for path in sorted(reached()):
        files.append(File.generated(config, place(path), abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs names them
    """Lead links to where the files are in the site; put drawn diagrams in the place of their descriptions."""
    if page.file.abs_src_path is None:
        return markdown
    source = Path(page.file.abs_src_path)

    def drawn(found: re.Match[str]) -> str:
        picture = diagrams.picture(found[1])
        where = posixpath.relpath(place(picture), posixpath.dirname(page.file.src_uri) or ".")
        return f"![Diagram]({where})" if picture.exists() else found[0]

    def moved(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return found[1]
        return posixpath.relpath(place(target), posixpath.dirname(page.file.src_uri) or ".")

    return diagrams.FENCE.sub(drawn, LINK.sub(moved, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs names them
    """Note the addresses of other sites."""
    _external.update(EXTERNAL.findall(html))
    return html


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """List the links to other sites, which are not followed."""
    path = Path(config.site_dir, "external-links.txt")
    path.write_text("".join(f"{address}\n" for address in sorted(_external)), encoding="utf-8")
    _log.info("%d links to other sites were not followed: %s", len(_external), path)
