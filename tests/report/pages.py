"""Reading a page as a program would."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page's numbers, its text, and whether every element is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.numbers: list[tuple[float, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.headings: list[str] = []
        self._value: float | None = None
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self._value = float(dict(attributes)["value"] or "nan")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        data = re.sub(r"[ \n]+", " ", data)  # as a browser shows it
        self.text += data
        if self.open and self.open[-1] == "data" and self._value is not None:
            self.numbers.append((self._value, data))
        if self.open and self.open[-1] in {"h1", "h2", "h3"}:
            self.headings.append(data.strip())

    @property
    def drawings(self) -> list[ET.Element]:
        """Every drawing, through a parser of XML: it takes nothing that is not well-formed."""
        found = re.findall(r"<svg.*?</svg>", self.source, flags=re.DOTALL)
        return [ET.fromstring(one) for one in found]

    @property
    def words(self) -> list[str]:
        """Those in the drawings."""
        return [text for drawing in self.drawings for text in self.words_of(drawing)]

    def words_of(self, drawing: ET.Element) -> list[str]:
        return [text.text or "" for text in drawing.iter("text")]


def fetches(source: str) -> list[str]:
    """All that could make a browser load something."""
    patterns = (
        r"https?://[^\s\"'<]+",
        r"\bsrc\s*=",
        r"\bhref\s*=",
        r"@import",
        r"url\(",
        r"<script",
        r"<link",
        r"<iframe",
    )
    return [found for pattern in patterns for found in re.findall(pattern, source)]
