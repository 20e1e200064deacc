"""Other words for a sentence, by fixed rules: the same sentence always becomes the same one.

A rule replaces a phrase by one of the same grammar, so that no sentence needs to be understood: what a very small model can
learn from examples, because it is a table. Text in backticks stays as it is.
"""

from __future__ import annotations

import re

_PHRASES = {
    "in order to": "to", "note that": "keep in mind that", "for example": "for instance", "e.g.": "for example",
    "i.e.": "that is", "such as": "like", "is used to": "serves to", "are used to": "serve to", "is used": "is employed",
    "are used": "are employed", "used by": "employed by", "used for": "employed for", "used in": "employed in",
    "used as": "employed as", "must be": "has to be", "should be": "ought to be", "can be": "may be", "need to": "have to",
    "needs to": "has to", "requires": "needs", "required": "needed", "returned": "given back", "contains": "holds",
    "containing": "holding", "a number of": "several", "number of": "count of", "each of": "every one of",
    "each other": "each other", "each": "every", "multiple": "several", "however": "yet", "currently": "at present",
    "ensures": "makes sure", "ensure": "make sure", "by default": "unless told otherwise", "based on": "according to",
    "instead of": "in place of", "otherwise": "if not", "supports": "handles", "supported": "handled", "creates": "makes",
    "create": "make", "created": "made", "obtain": "get", "performs": "carries out", "perform": "carry out",
    "performed": "carried out", "computes": "works out", "computed": "worked out", "calculated": "worked out",
    "calculate": "work out", "calculates": "works out", "determine if": "decide whether", "determines": "decides",
    "determine": "decide", "indicates": "shows", "indicate": "show", "indicating": "showing", "represents": "stands for",
    "represent": "stand for", "representing": "standing for", "corresponding": "matching", "additional": "further",
    "entire": "whole", "various": "different", "within": "inside", "via": "through", "therefore": "so", "thus": "so",
    "automatically": "by itself", "identical": "equal", "previous": "earlier", "existing": "present", "desired": "wanted",
    "usually": "most often", "typically": "most often", "specified": "stated", "specifies": "states", "specify": "state",
    "provided": "supplied", "provides": "offers", "provide": "offer", "passed": "handed", "default is": "default value is",
    "defaults to": "is by default", "allowed": "permitted", "whenever": "every time", "the given": "the supplied",
    "see": "look at", "ignored": "disregarded", "similar to": "much like", "equivalent to": "the same as",
    "one of": "any one of", "at least": "no fewer than", "at most": "no more than", "check if": "check whether",
    "checks if": "checks whether", "decide if": "decide whether", "as if": "as if", "even if": "even if",
    "only if": "only when", "if": "when", "also": "likewise", "not only": "not only", "only": "just", "because": "since",
    "without": "with no", "using": "by means of", "in which case": "in that case", "whose": "whose",
}  # fmt: skip

_PHRASE = re.compile(
    r"`[^`]*`|(?<![\w`.])(" + "|".join(map(re.escape, sorted(_PHRASES, key=len, reverse=True))) + r")(?!\w)",
    re.IGNORECASE,
)

_VERBS = (  # noqa: SIM905
    "return get set create build make generate compute calculate check test find run load save read write convert "
    "apply add remove update initialize register perform parse call use provide plot draw print determine estimate "
    "evaluate define construct transform fit predict select sort split merge join format raise yield iterate wrap "
    "open close start stop send receive fetch store replace extract insert delete append render encode decode "
    "validate verify handle process represent describe specify indicate contain hold implement execute launch invoke "
    "copy move map reduce sum count measure compare normalize scale rotate shift pad crop resize reshape flatten "
    "concatenate stack sample shuffle initialise retrieve produce configure ensure enable disable allow prevent wait "
    "block release acquire lock reset clear flush resolve infer assign attach detach bind display show hide log "
    "record track report collect download upload install export import translate simplify expand factor solve "
    "integrate differentiate multiply divide subtract invert project interpolate approximate truncate round clip mask "
    "filter group aggregate pack unpack dump serialize deserialize compile lower trace schedule dispatch reorder "
    "rewrite optimize quantize prepare setup give take put push pop try turn keep let help support subclass inherit "
    "override extend mark tag label look search scan walk visit traverse enumerate lookup query request answer "
    "respond authenticate authorize modify change adjust tune control limit restrict force cause break trigger emit "
    "publish subscribe notify listen forward propagate backpropagate accumulate average synchronize gather scatter "
    "broadcast"
).split()

_SPECIAL = {
    "do": "does",
    "go": "goes",
    "have": "has",
    "be": "is",
    "try": "tries",
    "setup": "sets up",
    "lookup": "looks up",
}


def third_person(verb: str) -> str:
    """Return the form of a verb after `it`: `compute` -> `computes`."""
    if verb in _SPECIAL:
        return _SPECIAL[verb]
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


_THIRD = {verb: third_person(verb) for verb in _VERBS}
_THIRD |= {third: third for third in list(_THIRD.values())}


def reword(text: str) -> str:
    """Return a sentence in other words, by the table of phrases; what no rule knows stays."""

    def other(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        replaced = _PHRASES[match[1].lower()]
        return replaced[0].upper() + replaced[1:] if match[1][0].isupper() else replaced

    return _PHRASE.sub(other, text)


def verb_phrase(sentence: str) -> str | None:
    """Return a sentence that begins with a verb, `Return the sum.`, as what follows `it`: `returns the sum.`; else None."""
    first, _, rest = sentence.partition(" ")
    third = _THIRD.get(first.lower())
    if third is None or not rest or not first[0].isupper() or rest.startswith(("(", ":", "=", "-")):
        return None
    return f"{third} {rest}"


def lower_first(text: str) -> str:
    """Return a text with a small first letter, unless its first word is a name (`NumPy`, `True`, `A4`)."""
    first = text.split(" ", 1)[0].strip(",.:;")
    if first in {"True", "False", "None"} or (
        len(first) > 1 and not first[1:].replace("'", "").replace("-", "").islower()
    ):
        return text
    return text[:1].lower() + text[1:]


def upper_first(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def close(text: str) -> str:
    """Return a text that ends as a sentence does."""
    text = text.rstrip(" ,;:-")
    return text if text.endswith((".", "!", "?")) else f"{text}."
