"""The decoder that is pre-trained: a transformers Llama, documents kept apart, and the loss of a row of tokens.

Shapes: B rows, T predicted tokens a row, V vocabulary, H hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from train.attention import attention_options
from train.cross_entropy import cross_entropy, summed_cross_entropy
from train.run import ModelConfig


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of the tokenizer."""

    size: int
    """Tokens in the vocabulary."""
    end_of_text: int
    """Id of the token that separates documents; it opens the document that follows it."""


def llama_config(model: ModelConfig, vocabulary: Vocabulary, max_position: int) -> LlamaConfig:
    """Return the transformers configuration of a model that reads up to `max_position` tokens.

    Weights start from a normal distribution of standard deviation sqrt(2 / (5 H)) (Nguyen and Salazar 2019), which
    follows the width, so one rule serves a hidden size of 32 and of 4096.
    """
    return LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=max_position,
        tie_word_embeddings=model.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        initializer_range=math.sqrt(2 / (5 * model.hidden_size)),
        bos_token_id=vocabulary.end_of_text,
        eos_token_id=vocabulary.end_of_text,
        use_cache=False,
    )


def build_llama(model: ModelConfig, vocabulary: Vocabulary, max_position: int, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised float32 model on the CPU: the same weights for the same arguments, in any process.

    The global random state is left as it was found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama_config(model, vocabulary, max_position))


def compile_layers(llama: LlamaForCausalLM) -> None:
    """Let torch.compile compile the model's layers, when they are first called with rows of a shape.

    They are compiled one by one: one graph serves all of them, so it takes as long as for one.
    """
    # A lane trains models of many shapes, and beyond this many graphs a layer would go back to being slow without a word.
    torch._dynamo.config.recompile_limit = 128
    for layer in llama.model.layers:
        layer.compile()


class Pretrainer(nn.Module):
    """A Llama and its training loss; what the engine wraps.

    `forward` takes rows of T + 1 tokens, int64 [B, T+1], predicts the last T of each, and never lets a position see
    another document than its own.
    """

    def __init__(self, llama: LlamaForCausalLM, end_of_text: int) -> None:
        super().__init__()
        self.llama = llama
        self.end_of_text = end_of_text

    def forward(
        self,
        rows: torch.Tensor,
        *,
        by_row: bool = False,
        counted: torch.Tensor | None = None,
        counted_tokens: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross-entropy, nats per predicted token, float32 scalar, and that of each row summed over its
        tokens, nats, float64 [B], which has no gradient.

        With `by_row` the projection runs row by row, so that a row's loss does not depend on the other rows.

        With `counted`, bool [B, T], only these predictions are in either loss, and the others are not projected at all; the
        first is then their sum over `counted_tokens`, as many as there are here unless told otherwise.
        """
        if counted is not None:
            return self._counted_loss(rows, counted, counted_tokens, by_row)
        hidden, targets = self.hidden_states(rows[:, :-1]), rows[:, 1:]
        weight = self.llama.lm_head.weight
        if by_row:
            pairs = zip(hidden, targets, strict=True)
            sums = torch.stack([summed_cross_entropy(states, weight, wanted) for states, wanted in pairs])
            return sums.mean() / targets.shape[1], sums.detach().double()
        total, nats = cross_entropy(hidden.flatten(0, 1), weight, targets.flatten())
        return total / targets.numel(), nats.view(targets.shape).sum(dim=1, dtype=torch.float64)

    def _counted_loss(
        self, rows: torch.Tensor, counted: torch.Tensor, counted_tokens: float | None, by_row: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, targets = self.hidden_states(rows[:, :-1]), rows[:, 1:]
        weight = self.llama.lm_head.weight
        over = counted_tokens or max(1, int(counted.sum()))
        if by_row:
            each = zip(hidden, targets, counted, strict=True)
            sums = torch.stack(
                [summed_cross_entropy(states[which], weight, wanted[which]) for states, wanted, which in each]
            )
            return sums.sum() / over, sums.detach().double()
        total, nats = cross_entropy(hidden[counted], weight, targets[counted])
        row = counted.nonzero()[:, 0]
        by_rows = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        return total / over, by_rows.index_add_(0, row, nats.double())

    def hidden_states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of rows of tokens, int64 [B, T] -> [B, T, H]."""
        options = attention_options(self.llama, tokens, self.end_of_text)
        states: torch.Tensor = self.llama.model(
            input_ids=tokens, use_cache=False, **options
        ).last_hidden_state
        return states

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of rows of tokens, int64 [B, T] -> [B, T, V]."""
        logits: torch.Tensor = self.llama.lm_head(self.hidden_states(tokens))
        return logits
