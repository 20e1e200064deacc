"""From messages and documents to token ids, with the document always data.

The prompt around the document is rendered and tokenised once per recipe; a document enters as token ids of its
own, made with every special token switched off. So nothing a document contains (template syntax, `<|im_end|>`,
another `{document}`) can act as template or as a turn of the conversation, and prompts of one recipe share their
prefix token by token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from synth.recipe import PLACEHOLDERS, Recipe

_MARK = "@@{name}-f1e0c87a4b6d@@"
"""Stands in for data while a chat template is rendered; ASCII, so that no template's own escaping changes it."""

_MARKS = re.compile("(" + "|".join(re.escape(_MARK.replace("{name}", name)) for name in PLACEHOLDERS) + ")")


class Tokenizer(Protocol):
    """What rephrasing needs of a model's tokenizer."""

    @property
    def prompt_format(self) -> str:
        """`chat_template`, or `plain` where the model has none and messages are joined by blank lines."""

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the conversation as one text, with the model's own marks, up to where its answer begins."""

    def encode_markup(self, text: str) -> list[int]:
        """Tokenise rendered text; special tokens count as such."""

    def encode_data(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts in which nothing is special."""


class ReadableTokenizer(Tokenizer, Protocol):
    """A tokenizer that also leads back from ids to text, as a model's own does and one that only counts does not."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens as they are written."""


def plain_concatenation(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the messages joined by blank lines, for a model that knows no roles."""
    return "\n\n".join(message["content"].strip("\n") for message in messages)


@dataclass(frozen=True)
class PromptTemplate:
    """A recipe's messages, tokenised, with slots for data."""

    pieces: tuple[tuple[int, ...], ...]
    """Token ids around the slots: one more than there are slots."""
    slots: tuple[str, ...]
    """Placeholder names, in order."""
    words: str
    """The prompt's own text, without the model's marks and without data."""

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: Tokenizer) -> PromptTemplate:
        """Render a recipe for a tokenizer."""
        messages, words = [], []
        for message in recipe.messages:
            pieces = message.pieces()
            words.append(" ".join(pieces[::2]))
            marked = [_MARK.replace("{name}", piece) if at % 2 else piece for at, piece in enumerate(pieces)]
            messages.append({"role": message.role, "content": "".join(marked).strip("\n")})
        rendered = _MARKS.split(tokenizer.render(messages))
        names = {_MARK.replace("{name}", name): name for name in PLACEHOLDERS}
        return cls(
            pieces=tuple(tuple(tokenizer.encode_markup(text)) if text else () for text in rendered[::2]),
            slots=tuple(names[mark] for mark in rendered[1::2]),
            words="\n".join(words),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt without any data."""
        return sum(map(len, self.pieces))

    def fill(self, data: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Return the prompt with the data in its slots. Raises KeyError when a slot has no data."""
        ids = list(self.pieces[0])
        for name, piece in zip(self.slots, self.pieces[1:], strict=True):
            ids.extend(data[name])
            ids.extend(piece)
        return tuple(ids)
