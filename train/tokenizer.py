"""The tokenizer of a study: a byte-level BPE, trained on the study's own text or loaded, and used to the byte.

Only byte-level tokenizers are taken (GPT-2, Llama 3, Qwen, OLMo, ...): each of their tokens stands for a known
number of bytes, which makes bits per byte exact. Text never becomes a special token, whatever it contains.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers
from upath import UPath

from synth.errors import UserError, first_line
from synth.identity import content_hash
from synth.storage import (
    MARKER,
    list_names,
    read_bytes,
    read_json,
    study_path,
    write_bytes_atomic,
    write_json_atomic,
)
from train.record import Record
from train.tokens import token_dtype

END_OF_TEXT = "<|endoftext|>"
"""The special token before every document."""

TRAINING_BYTES_PER_TOKEN = 4096
"""Text a tokenizer is trained on at most, for each token of its vocabulary, UTF-8 bytes; split evenly over sources."""

ROOT_PREFIX = "root:"
"""A path that starts with this is relative to the study root."""


class TokenizerInfo(Record):
    """What a packed set knows of its tokenizer; written last into its directory."""

    hash: str
    """Hash of tokenizer.json and of the choice of the end-of-text token."""
    vocab_size: int
    """Ids are below this."""
    eot_token: str
    eot_id: int
    """The token before every document."""
    training_bytes: int | None
    """UTF-8 bytes of text it was trained on; null for one that was loaded."""


class Exchange(NamedTuple):
    """A document that begins with a prompt."""

    ids: NDArray[Any]
    """`[EOT, p1 .. pm, a1 .. an]`."""
    prompt_tokens: int
    """m."""

    @property
    def counted(self) -> NDArray[np.uint8]:
        """1 for each token the loss counts when it is predicted, 0 for those of the prompt. The end-of-text token is
        predicted at the end of the answer before, so it counts: that is how a model learns to stop."""
        flags = np.ones(len(self.ids), np.uint8)
        flags[1 : 1 + self.prompt_tokens] = 0
        return flags


class Encoder:
    """Documents to token ids and back, without a special token ever being read out of text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, info: TokenizerInfo) -> None:
        self.info = info
        self.dtype = token_dtype(info.vocab_size)
        self._tokenizer = tokenizer
        # Otherwise a document that mentions <|endoftext|> would end there.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._normalizes = tokenizer.normalizer is not None
        self.token_bytes: NDArray[np.int64] = _token_bytes(tokenizer, info)
        """UTF-8 bytes each id stands for, int64[vocab_size]; 0 for the end-of-text token."""

    @classmethod
    def read(cls, directory: UPath) -> Encoder:
        """Open the tokenizer of a packed set from its `tokenizer` directory; a worker opens it once."""
        return _opened(directory, TokenizerInfo.model_validate(read_json(directory / MARKER)))

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return `[EOT, t1 .. tn]` of each document, uint16 or uint32."""
        eot = self.info.eot_id
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        documents = [np.array([eot, *each.ids], self.dtype) for each in encoded]
        for text, document in zip(texts, documents, strict=True):
            if np.count_nonzero(document == eot) != 1:
                raise UserError(
                    f"the tokenizer makes its end-of-text token out of a document that begins {text[:40]!r}: "
                    "take one whose end-of-text token is special, or train one."
                )
        return documents

    def encode_exchanges(self, texts: Sequence[str], prompt_characters: Sequence[int]) -> list[Exchange]:
        """Return `[EOT, prompt, answer]` of each document, prompt and answer cut into tokens apart, as a server does it."""
        prompts = self.encode([text[:end] for text, end in zip(texts, prompt_characters, strict=True)])
        answers = self.encode([text[end:] for text, end in zip(texts, prompt_characters, strict=True)])
        return [
            Exchange(np.concatenate([prompt, answer[1:]]), len(prompt) - 1)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def decode(self, document: NDArray[Any]) -> str:
        """Return the text of a document's ids, its end-of-text token left out."""
        ids = document[document != self.info.eot_id].tolist()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def count_altered(self, texts: Sequence[str], documents: Sequence[NDArray[Any]]) -> int:
        """Return how many documents do not decode to their text.

        Without a normalizer byte-level BPE only cuts, so equal length is equality; with one, really decode.
        """
        if self._normalizes:
            return sum(self.decode(ids) != text for text, ids in zip(texts, documents, strict=True))
        return sum(
            int(self.token_bytes[ids].sum()) != len(text.encode())
            for text, ids in zip(texts, documents, strict=True)
        )


@functools.lru_cache(maxsize=2)
def _opened(directory: UPath, info: TokenizerInfo) -> Encoder:
    definition = read_bytes(directory / "tokenizer.json").decode()
    return Encoder(tokenizers.Tokenizer.from_str(definition), info)


def train_tokenizer(texts: Sequence[str], vocab_size: int, directory: UPath) -> TokenizerInfo:
    """Train a byte-level BPE on some text and save it; the same text gives the same file, byte for byte."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    import transformers

    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT)
    return _save(wrapped, END_OF_TEXT, sum(len(text.encode()) for text in texts), directory)


def load_tokenizer(root: str, path: str, directory: UPath) -> TokenizerInfo:
    """Load a tokenizer by hub name or path, without running any code of its repository, and save a copy.

    Raises UserError when it cannot be loaded, is not byte-level, or has no end-of-text token.
    """
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        source = (
            _fetched(study_path(root, path.removeprefix(ROOT_PREFIX)), scratch)
            if path.startswith(ROOT_PREFIX)
            else path
        )
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer.path = {path!r} cannot be loaded: {first_line(error)}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None or "ByteLevel" not in str(backend.decoder):
        raise UserError(
            f"tokenizer.path = {path!r} is not a byte-level tokenizer, so its tokens have no exact number of bytes: "
            "take one that is (GPT-2, Llama 3, Qwen, OLMo), or train one."
        )
    eot = END_OF_TEXT if END_OF_TEXT in loaded.get_vocab() else loaded.eos_token
    if eot is None:
        raise UserError(
            f"tokenizer.path = {path!r} has neither {END_OF_TEXT} nor an eos_token: take one that has."
        )
    return _save(loaded, eot, None, directory)


def _save(tokenizer: Any, eot: str, training_bytes: int | None, directory: UPath) -> TokenizerInfo:
    tokenizer.add_special_tokens({"eos_token": eot})  # special in any case, so that text is never read as it
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        files = sorted(file for file in Path(scratch).rglob("*") if file.is_file())
        for file in files:
            write_bytes_atomic(directory / file.relative_to(scratch).as_posix(), file.read_bytes())
        definition = (Path(scratch) / "tokenizer.json").read_bytes()
    info = TokenizerInfo(
        hash=content_hash({"tokenizer.json": hashlib.sha256(definition).hexdigest(), "eot": eot}),
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        eot_token=eot,
        eot_id=tokenizer.convert_tokens_to_ids(eot),
        training_bytes=training_bytes,
    )
    write_json_atomic(directory / MARKER, info.model_dump(mode="json"))
    return info


def _fetched(directory: UPath, scratch: str) -> str:
    names = list_names(directory, ".json") + list_names(directory, ".txt")
    for name in names:
        (Path(scratch) / name).write_bytes(read_bytes(directory / name))
    return scratch


@functools.cache
def _byte_alphabet() -> frozenset[str]:
    return frozenset(pre_tokenizers.ByteLevel.alphabet())


def _token_bytes(tokenizer: tokenizers.Tokenizer, info: TokenizerInfo) -> NDArray[np.int64]:
    """A character of a byte-level token is one byte; a token added by hand is text as it stands."""
    alphabet = _byte_alphabet()
    lengths = np.zeros(info.vocab_size, np.int64)
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        lengths[token_id] = len(token) if alphabet.issuperset(token) else len(token.encode())
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        lengths[token_id] = len(added.content.encode())
    lengths[info.eot_id] = 0
    return lengths
