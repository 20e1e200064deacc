"""A report's page and tables as its tests look at them."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """What the tests ask of a page: its identifiers, attributes, anchors, numbers and text by section."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.identifiers: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.numbers: dict[str, list[float]] = {}
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self._section = "top"
        self.feed(text)
        self.close()
        assert self._open == [], f"elements never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if "id" in given:
            self.identifiers.append(given["id"])
        if tag == "section":
            self._section = given["id"]
        if tag == "data":
            self.numbers.setdefault(self._section, []).append(float(given["value"]))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text[self._section] = self.text.get(self._section, "") + data


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV of the report."""
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
