"""How many parameters a model has and what training it costs, by formula: nothing is instantiated.

Every convention has its own name, because laws fitted with one of them are wrong with another.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.run import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model by what they do."""

    non_embedding: int
    """Everything but the embedding and output matrices: the N of Kaplan et al. 2020 and of our laws."""
    embedding: int
    """Input embedding and output projection, a tied matrix counted once."""

    @property
    def total(self) -> int:
        """All parameters, a tied matrix counted once."""
        return self.non_embedding + self.embedding


def count_parameters(model: ModelConfig, vocab_size: int) -> ParameterCounts:
    """Count the parameters of a Llama-style decoder with a vocabulary of `vocab_size` tokens."""
    norms = 2 * model.num_layers * model.hidden_size + model.hidden_size
    matrices = 1 if model.tie_embeddings else 2
    return ParameterCounts(
        non_embedding=model.num_layers * _matrix_weights_per_layer(model) + norms,
        embedding=matrices * vocab_size * model.hidden_size,
    )


def train_flops_6nd(num_params_non_embedding: int, train_tokens: int) -> float:
    """Return 6 N D: forward 2 N and backward 4 N per token (Kaplan et al. 2020, section 2.1), FLOP."""
    return 6.0 * num_params_non_embedding * train_tokens


def train_flops(model: ModelConfig, vocab_size: int, sequence_length: int, train_tokens: int) -> float:
    """Return the FLOP of every matrix product of training on `train_tokens`: the backward pass costs two forward ones.

    A product with a weight matrix is 2 FLOP per weight and token. Attention is 4 x sequence_length x hidden_size per
    token and layer (scores and weighted values over the whole row, the causal half not deducted: Chowdhery et al.
    2022, appendix B). The output projection counts; norms, softmax and the embedding look-up do not.
    """
    weights = model.num_layers * _matrix_weights_per_layer(model) + vocab_size * model.hidden_size
    attention = 4 * model.num_layers * sequence_length * model.hidden_size
    return 3.0 * (2 * weights + attention) * train_tokens


def flops_per_token(model: ModelConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
    """Return the FLOP of training on one token by every convention in use, forward and backward.

    `6n_non_embedding` and `6n_total`: six times the parameters, without the embedding and output matrices (Kaplan et al.
    2020, section 2.1) and with them (as in 6 N D with the N of Hoffmann et al. 2022). `kaplan`: the first and 6 x layers x
    context x width for attention (Kaplan et al. 2020, equation 2.2). `every_product`: `train_flops`. `chinchilla`: that, the
    softmax of attention, and the embedding as if it were a product (Hoffmann et al. 2022, appendix F, with the projections
    of this architecture).
    """
    counts = count_parameters(model, vocab_size)
    every_product = train_flops(model, vocab_size, sequence_length, train_tokens=1)
    softmax = 3 * model.num_layers * model.num_heads * sequence_length
    return {
        "6n_non_embedding": 6.0 * counts.non_embedding,
        "6n_total": 6.0 * counts.total,
        "kaplan": 6.0 * counts.non_embedding + 6.0 * model.num_layers * sequence_length * model.hidden_size,
        "every_product": every_product,
        "chinchilla": every_product + 3.0 * (2 * vocab_size * model.hidden_size + softmax),
    }


def _matrix_weights_per_layer(model: ModelConfig) -> int:
    kv_size = model.hidden_size // model.num_heads * model.num_kv_heads
    attention = 2 * model.hidden_size * model.hidden_size + 2 * model.hidden_size * kv_size
    return attention + 3 * model.hidden_size * model.intermediate_size
