"""Which language a text is in, when it is long enough to tell: py3langid's model of 97 languages, with a margin."""

from __future__ import annotations

import functools
from typing import Any

READ_CHARACTERS = 1000
"""Only so much of a text is read: more changes the answer rarely and costs in proportion."""

MIN_PROBABILITY = 0.9
"""Below this the language is not told. The model is a naive Bayes classifier, whose probabilities are bold."""

_KIN = (
    {"no", "nb", "nn", "da", "sv"},
    {"hr", "bs", "sr", "sl"},
    {"cs", "sk"},
    {"id", "ms", "jv"},
    {"es", "gl", "pt", "ca", "an", "oc"},
    {"af", "nl"},
    {"xh", "zu"},
    {"ru", "be", "uk", "bg", "mk"},
    {"hi", "mr", "ne"},
    {"fa", "ps", "ur", "ar"},
    {"fr", "wa", "oc", "br"},
    {"en", "la"},
)
"""Languages the model takes for one another in short texts; a change within one row of this is no drift."""


def identify(text: str, min_letters: int) -> str | None:
    """Return the ISO 639-1 code of a text's language; None when it has too few letters or the model is not sure."""
    read = text[:READ_CHARACTERS]
    if sum(map(str.isalpha, read)) < min_letters:
        return None
    code, probability = _classified(read)
    return code if probability >= MIN_PROBABILITY else None


def drifted(answer: str | None, source: str | None) -> bool | None:
    """Return whether two languages differ; None when one of them is not known."""
    if answer is None or source is None:
        return None
    return answer != source and not any({answer, source} <= kin for kin in _KIN)


@functools.lru_cache(maxsize=4096)
def _classified(text: str) -> tuple[str, float]:
    """Return language and probability; kept, because a chunk is the source of every recipe and sample in turn."""
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
