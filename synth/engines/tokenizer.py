"""A model's own tokenizer, with its chat template: `synth.prompt.ReadableTokenizer` by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from synth.config import EngineConfig
from synth.engines.protocol import EngineStartFailed
from synth.errors import first_line
from synth.model_source import ModelSource
from synth.prompt import plain_concatenation


def load_tokenizer(config: EngineConfig, model: ModelSource) -> HuggingFaceTokenizer:
    """Load the tokenizer of a model's own directory. Raises EngineStartFailed when there is none that loads."""
    try:
        return HuggingFaceTokenizer(str(model.local_directory()))
    except (OSError, ValueError) as error:
        raise EngineStartFailed(
            f"engine.model = {config.model!r} has no tokenizer that loads: {first_line(error)}"
        ) from error


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

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens as they are written."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

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
