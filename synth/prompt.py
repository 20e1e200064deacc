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
from typing import Any, Protocol

import jinja2

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
    rendered: tuple[str, ...]
    """Text around the slots as the model's template renders it, marks included; as many as `pieces`."""

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
            rendered=tuple(rendered[::2]),
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


class HuggingFaceTokenizer:
    """A tokenizer from a model directory, with its chat template if it has one."""

    def __init__(self, directory: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)

    @property
    def prompt_format(self) -> str:
        """`chat_template` or `plain`."""
        return "chat_template" if self._tokenizer.chat_template else "plain"

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the conversation as one text; a last message of the assistant is left open."""
        if not self._tokenizer.chat_template:
            return self._beginning() + plain_concatenation(messages)
        try:
            return self._apply_template(messages)
        except jinja2.TemplateError:
            # Some templates refuse a system message in so many words; then it opens the user's.
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise
            opening = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            return self._apply_template([{"role": messages[1]["role"], "content": opening}, *messages[2:]])

    def encode_markup(self, text: str) -> list[int]:
        """Tokenise rendered text; special tokens count as such."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def encode_data(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts in which nothing is special."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return [list(ids) for ids in encoded.input_ids]

    def _apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        goes_on = messages[-1]["role"] == "assistant"
        rendered = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
        return str(rendered)

    def _beginning(self) -> str:
        """Return the begin-of-text mark where the model was trained with one."""
        first = self._tokenizer("x").input_ids[:1]
        return str(self._tokenizer.bos_token) if first and first[0] == self._tokenizer.bos_token_id else ""
