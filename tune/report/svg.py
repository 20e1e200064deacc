"""From a matplotlib figure to SVG a page can carry: themed, safe to inline, the same bytes every time.

Figures are drawn in the light palette. For the page each palette colour becomes the CSS variable of its name, so
that one drawing follows the reader's light or dark setting; the file on disk keeps the light colours, so that any
viewer shows it. Identifiers are prefixed with the drawing's name because many drawings share one page.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.figure import Figure

SVG_NAMESPACE = "http://www.w3.org/2000/svg"
FONT_FAMILY = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
)

PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#151a21"),
    "ink": ("#1c2530", "#e6eaf0"),
    "muted": ("#5a6675", "#a3aebc"),
    "line": ("#dde2e8", "#323b47"),
    "natural": ("#4a5563", "#b8c2cf"),
    "better": ("#0a6fb8", "#4aa8ea"),
    "worse": ("#c2570c", "#f0914a"),
    "source-1": ("#c44e00", "#ff9a52"),
    "source-2": ("#8e3f97", "#d79be0"),
    "source-3": ("#a67c00", "#e8bd4a"),
    "source-4": ("#b3123f", "#ff7d9c"),
    "share-1": ("#3f4fa3", "#8ea0ff"),
    "share-2": ("#2d6f9e", "#6fb3ec"),
    "share-3": ("#1f8a8c", "#4ecdc4"),
    "share-4": ("#3d9b62", "#7fdc9a"),
    "share-5": ("#7f9f12", "#c5e063"),
}
"""Colour by role: (light, dark). Sources are warm, shares run from indigo to lime with rising lightness, natural text
is grey everywhere; every series also has its own marker, so nothing rests on colour alone."""

SMALLEST_SCALE, LARGEST_SCALE = 0.85, 1.6
"""A drawing shrinks and grows to these times its own size, so that its text stays readable on a phone and is about as
large in wide figures as in narrow ones; where it does not fit, it scrolls."""

_BY_LIGHT = {light: name for name, (light, _) in PALETTE.items()}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_FONT = re.compile(r"font-family: [^;]*;?\s*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "synthscale",
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout is the same on every machine
    "font.size": 9.0,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,
    "axes.edgecolor": PALETTE["muted"][0],
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "grid.color": PALETTE["line"][0],
    "text.color": PALETTE["ink"][0],
    "axes.labelcolor": PALETTE["muted"][0],
}


@dataclass(frozen=True)
class Series:
    """What belongs together in a drawing and can be hidden together."""

    label: str
    role: str
    """Palette role of its colour."""
    gids: tuple[str, ...]
    """Artists it is made of, by gid."""


@dataclass(frozen=True)
class Drawing:
    """One finished figure panel."""

    name: str
    """File stem and prefix of its identifiers: letters, digits and dashes."""
    title: str
    alt: str
    """What a reader who cannot see it needs to know."""
    run_ids: tuple[str, ...]
    """The runs it shows."""
    file_svg: str
    """The standalone file: light colours on white."""
    inline_svg: str
    """The element for the page: colours are CSS variables, no namespace, no style sheet, no outside reference."""
    series: tuple[tuple[str, str], ...] = ()
    """(label, palette role) of what a reader may hide; element k of the page's drawing has `data-series="k"`."""


def light(role: str) -> str:
    """Return the light colour of a palette role, which is what figures are drawn in."""
    return PALETTE[role][0]


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside this, and nothing of matplotlib's own configuration on the machine shows."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def finish_drawing(
    figure: Figure, name: str, title: str, alt: str, run_ids: Sequence[str], tips: Mapping[str, Sequence[str]],
    series: Sequence[Series] = (),
) -> Drawing:  # fmt: skip
    """Turn a figure into a Drawing. `tips` gives, by artist gid, one tooltip per marker (or one for the artist).

    A single series is not offered for hiding: nothing would be left. Raises ValueError when an artist's markers and tips differ in number: a tooltip on the wrong run would lie.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        _plain_element(element)
    for gid, texts in tips.items():
        _add_tips(root, gid, texts)
    shown = series if len(series) > 1 else ()
    for number, each in enumerate(shown):
        for element in root.iter("g"):
            if element.get("id") in each.gids:
                element.set("data-series", str(number))
    _drop_boilerplate(root)
    _prefix_identifiers(root, name)
    width, height = (side.removesuffix("pt") for side in (root.get("width", ""), root.get("height", "")))
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": alt,
            "font-family": FONT_FAMILY,
            "style": f"min-width:{float(width) * SMALLEST_SCALE:.0f}px;max-width:{float(width) * LARGEST_SCALE:.0f}px",
        }
    )
    inline = _themed(root)
    root.insert(0, ET.Element("rect", width="100%", height="100%", fill=light("paper")))
    root.attrib.update({"xmlns": SVG_NAMESPACE, "width": width, "height": height})
    drawn = tuple(dict.fromkeys(run_ids))
    text = ET.tostring(root, encoding="unicode") + "\n"
    return Drawing(name, title, alt, drawn, text, inline, tuple((each.label, each.role) for each in shown))


def _themed(root: ET.Element) -> str:
    """Return the element as text with every palette colour replaced by the CSS variable of its role."""
    themed = copy.deepcopy(root)
    for element in themed.iter():
        for key in {"style", "fill", "stroke"} & element.attrib.keys():
            element.attrib[key] = _COLOUR.sub(lambda found: _variable(found.group()), element.attrib[key])
    return ET.tostring(themed, encoding="unicode")


def _plain_element(element: ET.Element) -> None:
    element.tag = element.tag.rpartition("}")[2]
    for key in list(element.attrib):
        if "}" in key:
            element.attrib[key.rpartition("}")[2]] = element.attrib.pop(key)
    if "d" in element.attrib:
        element.attrib["d"] = " ".join(element.attrib["d"].split())
    if "style" in element.attrib:
        element.attrib["style"] = _FONT.sub("", element.attrib["style"]).strip()
    element.text, element.tail = (
        text if text and text.strip() else None for text in (element.text, element.tail)
    )


def _add_tips(root: ET.Element, gid: str, texts: Sequence[str]) -> None:
    groups = [element for element in root.iter("g") if element.get("id") == gid]
    marks = [mark for group in groups for mark in group.iter("use")]
    marks = marks or [mark for group in groups for mark in group.iter("path")]
    if len(marks) != len(texts):
        raise ValueError(f"{gid} has {len(marks)} markers and {len(texts)} tooltips")
    for mark, text in zip(marks, texts, strict=True):
        ET.SubElement(mark, "title").text = text


def _drop_boilerplate(root: ET.Element) -> None:
    for child in list(root):
        if child.tag == "metadata" or (child.tag == "defs" and child.find("style") is not None):
            root.remove(child)


def _prefix_identifiers(root: ET.Element, name: str) -> None:
    """Keep only identifiers something refers to, and make them the drawing's own."""
    used: set[str] = set()
    for element in root.iter():
        if "href" in element.attrib:
            used.add(element.attrib["href"].removeprefix("#"))
            element.attrib["href"] = f"#{name}-{element.attrib['href'].removeprefix('#')}"
        for key, text in element.attrib.items():
            if found := _REFERENCE.search(text):
                used.add(found.group(1))
                element.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", text)
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier in used:
            element.attrib["id"] = f"{name}-{identifier}"


def _variable(colour: str) -> str:
    try:
        return f"var(--{_BY_LIGHT[colour.lower()]})"
    except KeyError:
        raise ValueError(f"figures are drawn in palette colours only; {colour} is none of them") from None
