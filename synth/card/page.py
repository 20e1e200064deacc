"""The card as Markdown and as one HTML page that asks for nothing outside itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2

from synth.card.examples import Example
from synth.card.figures import draw_bar, draw_histogram, text_histogram
from synth.card.survey import EDGES, Survey
from synth.config import RephraseCost
from synth.percentage import percentage
from synth.recipe import Recipe

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Invisible in a page and harmful in some: escapes, and marks that turn the direction of writing around."""

TITLES = {
    "prompt_tokens": "Prompt, tokens",
    "completion_tokens": "Answer, tokens",
    "length_ratio": "Compression: answer / source length",
    "source_overlap": "Overlap: answer's 5-grams in the source",
    "source_words": "Answer's words in the source",
    "repetition": "Repetition: 4-grams seen before",
    "prompt_echo": "Prompt echo: 5-grams of the prompt",
    "held_out_overlap": "Words in 13-grams of the held-out split",
}
COUNTS = ("rows", "kept", "rejected", "quarantined", "prompt_tokens", "cached_prompt_tokens", "completion_tokens",
          "accepted_tokens", "input_truncated_tokens")  # fmt: skip


@dataclass(frozen=True)
class Card:
    """Everything the card says."""

    name: str
    model: str
    recipes: tuple[Recipe, ...]
    summary: Mapping[str, Any]
    """Of `synth.ledger.summarise`."""
    duplicates: Mapping[str, Any]
    """Of `synth.quality.near_duplicates.find_near_duplicates`."""
    survey: Survey
    statistics: Mapping[str, Any]
    kept: list[Example]
    rejected: list[Example]
    cost: RephraseCost

    @property
    def money_per_billion(self) -> float | None:
        """Price of a billion accepted tokens, None where no price or no rate is known."""
        hours = self.summary["device_hours_per_billion_accepted_tokens"]
        price = self.cost.device_hour_price
        return None if hours is None or price is None else float(hours) * price

    @property
    def reasons(self) -> list[tuple[str, int, float]]:
        """Why rows were not kept: reason, rows, fraction of all rows; most frequent first."""
        rows = max(1, self.summary["rows"])
        ranked = sorted(self.summary["reasons"].items(), key=lambda item: (-item[1], item[0]))
        return [(reason, count, count / rows) for reason, count in ranked]


def render_card(card: Card) -> dict[str, str]:
    """Return the card's files, name -> text."""
    context = {"card": card, "edges": EDGES, "titles": TITLES, "counts": COUNTS}
    return {
        "card.md": _environment(html=False).get_template("card.md.j2").render(context).rstrip() + "\n",
        "card.html": _environment(html=True).get_template("card.html.j2").render(context),
    }


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("synth.card", "templates"), autoescape=html, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "hours": hours, "percent": percent, "quoted": quoted, "visible": visible, "cell": cell,
    }  # fmt: skip
    environment.globals |= {"histogram": draw_histogram, "text_histogram": text_histogram, "bar": draw_bar}
    return environment


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separated; a dash for one that was not measured."""
    return "–" if value is None else f"{value:,.{digits}f}"


def hours(seconds: float | None) -> str:
    """Return seconds in hours; a dash for a time that was not measured."""
    return number(None if seconds is None else seconds / 3600, 3)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction in per cent; a dash for one that was not measured."""
    if value is None:
        return "–"
    least = 10.0 ** -(digits + 2)
    return f"<{percentage(least, digits)}" if 0 < value < least / 2 else percentage(value, digits)


def visible(text: str) -> str:
    """Return a text without characters that are obeyed rather than shown."""
    return _CONTROL.sub("\ufffd", text)


def cell(text: str) -> str:
    """Return a text that cannot break out of a Markdown table or be taken for markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", " ".join(visible(text).split()))


def quoted(text: str) -> str:
    """Return a text as a Markdown code block that nothing in the text can end."""
    shown = visible(text)
    fence = "~" * (max(map(len, re.findall("~+", shown)), default=0) + 3)
    return f"{fence}text\n{shown}\n{fence}"
