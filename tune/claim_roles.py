"""Which source of a study plays which part in the paper's claims: read off how its text was made.

The paper mixes three kinds of text: documents rewritten as clear prose ("HQ"), documents turned into questions and answers
("QA"), and textbook sections written from keywords alone ("TXBK"). A source's kind is that of the recipes in the manifest of
its synthetic set: known for the shipped recipes, told by what a recipe asks for and by the shape it wants for others. Sources
made by one recipe from one corpus with generators of different size are compared as generators. Where the manifest of a
source is not at hand, its name is all there is to go by. Whoever knows better says so in the report's `claims`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synth.errors import UserError
from tune.config import ClaimRoles

PARTS = ("rephrased", "question_answer", "textbook")

_KIND_OF_RECIPE: dict[str, str | None] = {
    **dict.fromkeys(("hq", "wrap_easy", "wrap_medium", "wrap_hard", "cc_wiki", "cc_distill", "guided_rewrite"), "rephrased"),
    **dict.fromkeys(("qa", "wrap_qa", "cc_diverse_qa", "faq"), "question_answer"),
    "textbook": "textbook",
    **dict.fromkeys(("cc_extract", "cc_knowledge_list", "continue", "math", "summarise", "summary_brief", "table", "tutorial")),
}  # fmt: skip
"""Shipped recipes: the kind of the paper's that each makes; None for those it has no counterpart of."""
_FIRST = {"hq", "qa", "textbook"}
"""The paper's own recipes: of several sources of a kind, one made by these is tested."""
_NAMES = {
    "rephrased": {"hq", "rephrase", "rephrased", "wikipedia"},
    "question_answer": {"qa"},
    "textbook": {"textbook", "txbk"},
}
_SIZE = re.compile(r"(?:^|[-_])(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmb])(?=$|[-_.])")
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class Roles:
    """Which source of the study plays which part in the claims; None: none does."""

    rephrased: str | None = None
    question_answer: str | None = None
    textbook: str | None = None
    generators: tuple[str, ...] = ()
    """Sources that differ in nothing but the size of their generator, small to large."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Why, in words."""


@dataclass(frozen=True)
class SourceMade:
    """How the text of a synthetic source was made, as far as the manifests say."""

    recipes: Mapping[str, Mapping[str, Any]]
    """By name, as the manifest of the synthetic set has them."""
    corpus: str
    model: str
    """The generator, as the study named it."""
    num_params: float | None
    """Its parameters: of a generator of the study from its manifest, of another from its name; None when neither says."""

    @property
    def kind(self) -> str | None:
        """The one kind all its recipes have; None when they have none or several."""
        kinds = {kind_of(name, recipe) for name, recipe in self.recipes.items()}
        return kinds.pop() if len(kinds) == 1 else None


def kind_of(name: str, recipe: Mapping[str, Any]) -> str | None:
    """Return which of the paper's kinds of text a recipe makes; None for none of them."""
    if name in _KIND_OF_RECIPE:
        return _KIND_OF_RECIPE[name]
    asked = " ".join(str(message.get("content", "")) for message in recipe.get("messages", ()))
    if "{document}" not in asked:
        return "textbook" if "{keywords}" in asked else None
    shape = recipe.get("thresholds", {}).get("format")
    return {"question_answer": "question_answer", "free": "rephrased"}.get(shape)


def size_in_name(model: str) -> float | None:
    """Return the parameters a model's name gives, such as 8e9 for `meta-llama/Llama-3.1-8B-Instruct`; None without any."""
    found = _SIZE.search(model.rstrip("/").rsplit("/", 1)[-1].lower())
    return float(found["number"]) * _UNITS[found["unit"]] if found else None


def roles_of(
    runs_by_source: Mapping[str, int], made: Mapping[str, SourceMade], given: ClaimRoles | None = None
) -> Roles:
    """Return which source plays which part: what is `given`, else what its making says, else what its name says.

    `runs_by_source` counts the runs of every source: of several of a kind, the paper's own recipe comes first, then the one
    with the most runs. Several sources that were searched together, joined by a plus, play no part. Raises UserError for a
    given name that is no source of the runs.
    """
    given = given or ClaimRoles()
    single = sorted(source for source in runs_by_source if "+" not in source)
    _refuse_unknown(given, single)
    notes, chosen = [], {}
    for part in PARTS:
        if named := getattr(given, part):
            chosen[part] = named
            notes.append(f"{_spoken(part)}: {named}, as the configuration says")
            continue
        able = [source for source in single if _kind(source, made) == part]
        able.sort(key=lambda source: (not _is_the_papers(source, made), -runs_by_source[source], source))
        chosen[part] = able[0] if able else None
        if able:
            others = f"; {', '.join(able[1:])} could play it too" if able[1:] else ""
            notes.append(f"{_spoken(part)}: {able[0]}, {_why(able[0], made)}{others}")
    generators = given.generators or _by_size(single, made)
    if generators:
        notes.append(f"generators, small to large: {', '.join(generators)}")
    if without := [source for source in single if _kind(source, made) is None and source not in given.named]:
        notes.append(
            f"no part: {', '.join(without)}; to test them all the same, name them in the report's claims, such as "
            f'claims.rephrased = "{without[0]}"'
        )
    return Roles(
        chosen["rephrased"], chosen["question_answer"], chosen["textbook"], tuple(generators), tuple(notes)
    )


def _refuse_unknown(given: ClaimRoles, sources: Sequence[str]) -> None:
    for name in given.named:
        if name not in sources:
            raise UserError(
                f"claims names {name!r}, which is no synthetic source of the report's runs (they have "
                f"{', '.join(sources) or 'none'}): correct the name."
            )


def _kind(source: str, made: Mapping[str, SourceMade]) -> str | None:
    if source in made and made[source].recipes:
        return made[source].kind
    words = set(re.split(r"[^a-z0-9]+", source.lower()))
    return next((part for part, names in _NAMES.items() if words & names), None)


def _is_the_papers(source: str, made: Mapping[str, SourceMade]) -> bool:
    return source not in made or set(made[source].recipes) <= _FIRST


def _why(source: str, made: Mapping[str, SourceMade]) -> str:
    if source in made and made[source].recipes:
        return f"made by {', '.join(sorted(made[source].recipes))} with {made[source].model}"
    return "by its name, as how it was made is not under this root"


def _spoken(part: str) -> str:
    return {
        "rephrased": "rephrased text",
        "question_answer": "question-answer text",
        "textbook": "textbooks",
    }[part]


def _by_size(sources: Sequence[str], made: Mapping[str, SourceMade]) -> tuple[str, ...]:
    """Return the sources of the first family of at least three sizes: one corpus, the same recipes, other generators."""
    families: dict[tuple[Any, ...], dict[float, str]] = {}
    for source in sources:
        how = made.get(source)
        key: tuple[Any, ...]
        if how is not None and how.recipes:
            hashes = (str(recipe.get("hash", name)) for name, recipe in how.recipes.items())
            key, size = (how.corpus, *sorted(hashes)), how.num_params
        else:
            key, size = (_SIZE.sub("", source.lower()),), size_in_name(source)
        if size is not None:
            families.setdefault(key, {}).setdefault(size, source)
    family = next((family for family in families.values() if len(family) >= 3), {})
    return tuple(family[size] for size in sorted(family))
