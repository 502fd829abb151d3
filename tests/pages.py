"""Look at an HTML page as a program can: which elements it has, what it refers to, and what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

# Elements that have no end.
_VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col", "area", "base", "embed", "source", "track"}

# Attributes with an address in them.
_ADDRESSES = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background", "xlink:href", "ping"}


@dataclass
class Page(HTMLParser):
    """A page that was read.

    Attributes:
        tags: the names of its elements, in order.
        ids: those that it has.
        addresses: what it refers to.
        handlers: attributes that are scripts.
        problems: elements that are not closed, or closed twice.
        styles: all of its CSS.
        cells: the text of its elements, by the nearest of them.
    """

    tags: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    handlers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    styles: str = ""
    cells: dict[str, list[str]] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in _ADDRESSES:
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}")
            if name == "style":
                self.styles += value or ""
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that ends at once."""
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Note its end."""
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.problems.append(f"</{tag}> within {self._open[-3:]}")

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._open:
            if self._open[-1] == "style":
                self.styles += data
            self.cells.setdefault(self._open[-1], []).append(data)

    @property
    def text(self) -> str:
        """All that it says."""
        return "".join(data for tag, found in self.cells.items() if tag != "style" for data in found)

    @property
    def from_elsewhere(self) -> list[str]:
        """What would have to be fetched, or could run: nothing, for a page that is complete."""
        fetched = {
            "script",
            "iframe",
            "img",
            "object",
            "embed",
            "base",
            "form",
            "frame",
            "audio",
            "video",
            "image",
            "use",
        }
        found = [f"<{tag}>" for tag in self.tags if tag in fetched]
        found += self.handlers
        found += [address for address in self.addresses if address != "data:," and not re.match(r"#|\./", address)]
        found += re.findall(r"url\((?!#)[^)]*\)|@import[^;]*|expression\(", self.styles)
        return found

    def dead(self, folder: Path) -> list[str]:
        """Links of a page in a folder that lead nowhere."""
        inner = {f"#{name}" for name in self.ids}
        found = [address for address in self.addresses if address.startswith("#") and address not in inner]
        for address in self.addresses:
            if address.startswith("./"):
                path = Path(bytes(folder).decode(errors="surrogateescape")) / unquote_to_bytes(address).decode(
                    errors="surrogateescape"
                )
                if not path.exists():
                    found.append(address)
        found += [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", self.styles) if name not in self.ids]
        return found


def read(text: str) -> Page:
    """Read a page."""
    page = Page()
    page.feed(text)
    page.close()
    page.problems += [f"<{tag}> is not closed" for tag in page._open]
    return page
