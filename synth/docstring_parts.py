"""What a piece of a docstring says, part by part: sentences of prose, and fields (parameters, results, errors).

The three usual ways of writing fields are read: numpydoc (`name : type`), Google (`name (type): ...`) and reStructuredText
(`:param name: ...`). A piece may begin or end anywhere, as chunks do, so a field is known by its own line and a heading
only helps. Code, doctests, tables and headings are no parts: nothing is asked about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FieldKind = Literal["parameter", "result", "error"]


@dataclass(frozen=True)
class Sentence:
    """One sentence of prose, white space evened out, with its closing mark if it has one."""

    text: str


@dataclass(frozen=True)
class Field:
    """One described thing: a parameter or attribute, a result, an error."""

    kind: FieldKind
    name: str
    """As written, without marks; empty for a result that has none."""
    type: str
    """What is said of its type, or empty."""
    sentences: tuple[str, ...]
    """Its description; () when there is none."""


Part = Sentence | Field

_HEADINGS: dict[str, FieldKind | None] = {
    **dict.fromkeys(("parameters", "other parameters", "args", "arguments", "attributes", "keyword args", "keyword arguments", "params"), "parameter"),
    **dict.fromkeys(("returns", "return", "yields", "receives"), "result"),
    **dict.fromkeys(("raises", "warns", "exceptions"), "error"),
    **dict.fromkeys(("notes", "note", "examples", "example", "references", "see also", "methods", "usage", "warning", "warnings"), None),
}  # fmt: skip
"""Headings, and the kind of field below each; None where there is prose."""

_NAME = r"\*{0,2}`{0,2}\*{0,2}[A-Za-z_][\w.]*`{0,2}(?:, ?\*{0,2}`{0,2}[A-Za-z_]\w*`{0,2}){0,5}"
_NUMPY = re.compile(rf"(?P<indent>[ ]*)(?P<name>{_NAME}) : (?P<type>\S.*)")
_GOOGLE = re.compile(
    rf"(?P<indent>[ ]*)(?P<name>{_NAME}) ?\((?P<type>[^()]*(?:\([^()]*\)[^()]*)*)\): ?(?P<rest>.*)"
)
_UNTYPED = re.compile(rf"(?P<indent>[ ]*)(?P<name>{_NAME}): (?P<rest>\S.*)")
_SPHINX = re.compile(
    r"(?P<indent>[ ]*):(?P<role>param|parameter|arg|keyword|returns?|raises?) ?(?:(?P<type>[\w.\[\], |]+) )?(?P<name>\*{0,2}\w+)?: ?(?P<rest>.*)"
)
_BARE_RESULT = re.compile(r"(?P<indent>[ ]*)(?P<type>[A-Za-z_][\w.\[\], |`~]*)")
_UNDERLINE = re.compile(r"\s*([-=~^*])\1{2,}\s*")
_LETTER_RUN = re.compile(r"[A-Za-z]{2}")
_BULLET = re.compile(r"\A\s*(?:[-*+•]|\d{1,2}[.)])\s+")
_ROLE = re.compile(r":[a-z:]{2,20}:`~?\.?([^`<>]*?)(?:\s*<[^`]*>)?`")
_FOOTNOTE = re.compile(r"\s*\[#?\w{1,12}\]_")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[A-Z`*\"'(])")
_ABBREVIATED = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|resp|Eq|Fig|approx)\.|\b[A-Z]\.)$")


def parts_of(text: str) -> tuple[Part, ...]:
    """Return the sentences and fields of a piece of a docstring, in order."""
    return tuple(_Reader(text.splitlines()).parts())


def sentences_of(paragraph: str) -> tuple[str, ...]:
    """Return the sentences of some prose, cleaned of the marks of reStructuredText."""
    cleaned = clean(paragraph)
    found: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(cleaned):
        if _ABBREVIATED.search(cleaned[start : match.start()]):
            continue
        found.append(cleaned[start : match.end()].strip())
        start = match.end()
    found.append(cleaned[start:].strip())
    return tuple(sentence for sentence in found if _LETTER_RUN.search(sentence))


def clean(text: str) -> str:
    """Return a text on one line: roles and footnotes gone, double backticks single, a literal block's colons one."""
    text = _FOOTNOTE.sub("", _ROLE.sub(r"`\1`", text)).replace("``", "`").replace("::", ":")
    return " ".join(text.split())


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._at = 0
        self._kind: FieldKind | None = None
        self._within: int | None = None
        """Indentation of a heading whose section ends where lines are no deeper than it; None for an underlined one."""

    def parts(self) -> Iterator[Part]:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not line.strip() or _UNDERLINE.fullmatch(line):
                self._at += 1
            elif self._skipped_code(line) or self._heading(line):
                continue
            else:
                if self._within is not None and _indent(line) <= self._within:
                    self._kind, self._within = None, None
                field = self._field(line)
                yield from self._prose() if field is None else [field]

    def _prose(self) -> Iterator[Part]:
        kind, sentences = self._kind, sentences_of(self._paragraph())
        if kind == "result" and sentences:
            yield Field("result", "", "", sentences)
        else:
            yield from map(Sentence, sentences)

    def _skipped_code(self, line: str) -> bool:
        """Skip a doctest up to the next blank line, a fence, or a directive with a literal body."""
        stripped = line.strip()
        if stripped.startswith((">>>", "... ", "$ ", "In [")):
            while self._at < len(self._lines) and self._lines[self._at].strip():
                self._at += 1
            return True
        if stripped.startswith("```"):
            self._at += 1
            while self._at < len(self._lines) and not self._lines[self._at].strip().startswith("```"):
                self._at += 1
            self._at += 1
            return True
        if stripped.startswith(".."):
            literal = re.match(
                r"\.\. (?:code|code-block|testcode|math|plot|ipython|doctest|jupyter-execute|figure|image|testoutput|sourcecode|\[|_)",
                stripped,
            )
            self._at += 1
            if literal:
                self._skip_deeper(_indent(line))
            return True
        if not _LETTER_RUN.search(line) or stripped.startswith(("|", "+-", "@")):
            self._at += 1
            return True
        return False

    def _skip_deeper(self, indent: int) -> None:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.strip() and _indent(line) <= indent:
                return
            self._at += 1

    def _heading(self, line: str) -> bool:
        stripped = line.strip()
        following = self._lines[self._at + 1] if self._at + 1 < len(self._lines) else ""
        word = stripped.rstrip(":").lower()
        underlined = _UNDERLINE.fullmatch(following) is not None
        if not underlined and not (word in _HEADINGS and stripped.endswith(":")):
            return False
        self._kind = _HEADINGS.get(word)
        self._within = None if underlined else _indent(line)
        self._at += 2 if underlined else 1
        return True

    def _field(self, line: str) -> Field | None:  # noqa: PLR0911 (one return a style)
        kind = self._kind or "parameter"
        if (match := _SPHINX.fullmatch(line)) is not None:
            role = match["role"]
            kind = (
                "result"
                if role.startswith("return")
                else "error"
                if role.startswith("raise")
                else "parameter"
            )
            return self._described(
                kind, match["name"] or "", match["type"] or "", match["rest"], _indent(line)
            )
        if (match := _NUMPY.fullmatch(line)) is not None:
            return self._described(kind, match["name"], match["type"], "", _indent(line))
        if (match := _GOOGLE.fullmatch(line)) is not None:
            return self._described(kind, match["name"], match["type"], match["rest"], _indent(line))
        if self._kind is not None and (match := _UNTYPED.fullmatch(line)) is not None:
            if self._kind == "result":  # `ndarray: the sorted values`
                return self._described(kind, "", match["name"], match["rest"], _indent(line))
            rest = match["rest"]
            if (
                self._within is None and len(rest.split()) <= 4 and not rest.endswith(".")
            ):  # networkx: `path: list`
                return self._described(kind, match["name"], rest, "", _indent(line))
            return self._described(kind, match["name"], "", rest, _indent(line))
        return self._bare(line, kind) if self._kind is not None else None

    def _bare(self, line: str, kind: FieldKind) -> Field | None:
        """Return a field whose line is a name or a type alone, with its description indented below it."""
        below = self._lines[self._at + 1] if self._at + 1 < len(self._lines) else ""
        if not below.strip() or _indent(below) <= _indent(line) or not _BARE_RESULT.fullmatch(line.rstrip()):
            return None
        word = line.strip()
        if len(word.split()) > 5:
            return None
        return self._described(
            kind, "" if kind == "result" else word, word if kind == "result" else "", "", _indent(line)
        )

    def _described(self, kind: FieldKind, name: str, type_: str, rest: str, indent: int) -> Field:
        self._at += 1
        lines = [rest]
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not line.strip() or _indent(line) <= indent or line.strip().startswith((">>>", "..", "```")):
                break
            lines.append(_BULLET.sub("", line, count=1) if _BULLET.match(line) else line)
            self._at += 1
        type_ = clean(type_).replace("*optional*", "optional").strip(" ,:")
        return Field(kind, name.strip("*`").replace("`", ""), type_, sentences_of(" ".join(lines)))

    def _paragraph(self) -> str:
        """Return the lines up to the next blank one; a list's entries are paragraphs of their own."""
        lines = [_BULLET.sub("", self._lines[self._at], count=1)]
        self._at += 1
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not line.strip() or _BULLET.match(line) or line.strip().startswith((">>>", "..", "```", ":")):
                break
            if self._at + 1 < len(self._lines) and _UNDERLINE.fullmatch(self._lines[self._at + 1]):
                break
            if (
                _NUMPY.fullmatch(line)
                or _GOOGLE.fullmatch(line)
                or (line.strip().endswith(":") and line.strip().rstrip(":").lower() in _HEADINGS)
            ):
                break
            lines.append(line)
            self._at += 1
        if lines[-1].rstrip().endswith("::"):
            self._skip_deeper(_indent(lines[0]))
        return " ".join(lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
