"""Which recipes a document goes through: those whose routing takes its quality score, or a draw among them by weight."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from synth.recipe import Recipe

_END_OF_SENTENCE = tuple(".!?…\"'”’)。！？।؟:;")
_MARKUP = re.compile(r"[{}<>\\|=~^]|https?://|\.\.\.|…")


@dataclass(frozen=True)
class Assignment:
    """The rule of one synthetic set. Without weights every document goes through every recipe that takes its score."""

    recipes: tuple[Recipe, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    """Recipe name -> weight of the draw; empty draws nothing."""
    recipes_per_document: int = 1
    """With weights: different recipes drawn for a document."""
    seed: int = 0

    @property
    def needs_quality(self) -> bool:
        """Whether a document's score makes any difference."""
        return not all(recipe.routing.takes_all for recipe in self.recipes)

    def of(self, doc_id: str, quality: float | None) -> tuple[int, ...]:
        """Return the numbers of a document's recipes, ascending; () when no recipe takes its score.

        The draw is weighted sampling without replacement (Efraimidis and Spirakis 2006: the smallest -log(u) / weight
        win) with u a hash of seed, document and recipe: it does not depend on the order of documents or of recipes,
        and a recipe added to the mix changes only the documents it wins.
        """
        taking = [
            at
            for at, recipe in enumerate(self.recipes)
            if recipe.routing.takes_all or (quality is not None and recipe.routing.takes(quality))
        ]
        if not self.weights:
            return tuple(taking)
        lots = {at: self._lot(doc_id, self.recipes[at].name) for at in taking}
        winners = sorted((at for at in taking if lots[at] < math.inf), key=lambda at: (lots[at], at))
        return tuple(sorted(winners[: self.recipes_per_document]))

    def _lot(self, doc_id: str, recipe: str) -> float:
        weight = self.weights.get(recipe, 0.0)
        if weight <= 0.0:
            return math.inf
        digest = hashlib.sha256(
            f"{self.seed}\0{doc_id}\0{recipe}\0mix".encode("utf-8", "surrogatepass")
        ).digest()
        return -math.log((int.from_bytes(digest[:8], "big") + 0.5) / 2**64) / weight


def heuristic_quality(text: str) -> float:
    """Return a quality score of a text in [0, 1], for routing where no classifier's score is at hand.

    The mean of seven tests, each 0 to 1, after the rules of Gopher (Rae et al. 2021, arXiv 2112.11446, A1.1) and C4
    (Raffel et al. 2020, arXiv 1910.10683, 2.2): length, mean word length, share of words with a letter, share of
    lines that end a sentence, different lines, different words, and little markup. It separates prose from menus and
    tables; it does not know what is true or well taught, as a trained classifier may.
    """
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not words or not lines:
        return 0.0
    mean_word = sum(map(len, words)) / len(words)
    characters = sum(map(len, lines))
    ended = sum(len(line) for line in lines if line.endswith(_END_OF_SENTENCE))
    first_words = words[:200]
    tests = (
        min(1.0, len(words) / 100),
        1.0 if 3 <= mean_word <= 10 else max(0.0, 1 - abs(mean_word - 6.5) / 10),
        _ramp(sum(any(map(str.isalpha, word)) for word in words) / len(words), 0.5, 0.8),
        _ramp(ended / characters, 0.1, 0.8),
        _ramp(len(set(lines)) / len(lines), 0.5, 0.9),
        _ramp(len(set(first_words)) / len(first_words), 0.2, 0.5),
        1 - _ramp(len(_MARKUP.findall(text)) / len(words), 0.02, 0.2),
    )
    return sum(tests) / len(tests)


def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 up to `low`, 1 from `high` on, straight in between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))
