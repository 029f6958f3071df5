"""Draw the diagrams of the pages as SVG, for the site: python docs/diagrams.py mermaid.min.js.

GitHub draws them itself; the site must not load a library for it. A picture is named after its description's digest: a
changed description is shown as text until it is drawn again. The library is dist/mermaid.min.js of npm's `mermaid` 11.
"""

import argparse
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures" / "diagrams"
FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def picture(description: str) -> Path:
    """Where a diagram's picture is."""
    return PICTURES / f"{hashlib.sha256(description.encode()).hexdigest()[:12]}.svg"


def main() -> None:
    """Draw what is not drawn yet, and delete what no page has."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not for those who only ask where a picture is

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    args = parser.parse_args()
    wanted = {picture(found): found for page in PAGES for found in FENCE.findall(page.read_text(encoding="utf-8"))}
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in set(PICTURES.glob("*.svg")) - set(wanted):
        old.unlink()
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"]).new_page()
        page.add_script_tag(path=args.library)
        page.evaluate("mermaid.initialize({theme: 'neutral', htmlLabels: false, flowchart: {htmlLabels: false}})")
        for path, description in wanted.items():
            if not path.exists():
                name = f"d{path.stem}"
                drawn = page.evaluate(
                    "async ([name, text]) => (await mermaid.render(name, text)).svg", [name, description]
                )
                path.write_text(drawn + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
