"""What a study file may state of a world that is not there yet, so that its cost is known before anything is made."""

from __future__ import annotations

from pydantic import Field

from synth.config import Config, Fraction, Name


class CorpusAssumption(Config):
    """What a corpus will hold."""

    tokens_per_document: float = Field(gt=0)
    """Mean length of a document, tokens."""
    documents: int | None = Field(default=None, ge=1)
    """Documents that are kept; null takes the corpus's max_documents."""


class SyntheticAssumption(Config):
    """What a generator will write."""

    answer_tokens_per_source_token: float = Field(gt=0)
    """Mean length of an answer over the length of what it is made from, tokens by tokens."""
    accepted_fraction: Fraction
    """Fraction of the answers' tokens that are kept, [0, 1]."""
    generator_num_params: int | None = Field(default=None, ge=1)
    """Parameters of the generator, for its FLOP (2 N a token); null says no FLOP in the plan. A recommendation takes it where
    the model's own configuration is not on the machine."""


class TrainingAssumption(Config):
    """How fast one training device is."""

    peak_flops_per_device_second: float | None = Field(default=None, gt=0)
    """Dense peak of one device in the precision trained in, FLOP/s."""
    model_flops_utilization: float | None = Field(default=None, gt=0, le=1)
    """Part of the peak that training reaches, (0, 1]."""
    vocab_size: int | None = Field(default=None, ge=257)
    """Tokens in the vocabulary of a tokenizer that is loaded, not trained."""

    @property
    def flops_per_device_second(self) -> float | None:
        """Training speed of one device, FLOP/s; None when one of its factors is not stated."""
        if self.peak_flops_per_device_second is None or self.model_flops_utilization is None:
            return None
        return self.peak_flops_per_device_second * self.model_flops_utilization


class Assumptions(Config):
    """What `--dry-run` reckons with where nothing is made or measured yet. No result depends on it but the FLOP of generating
    in a recommendation, where a generator's own configuration is not at hand."""

    corpora: dict[Name, CorpusAssumption] = Field(default_factory=dict)
    """By corpus."""
    rephrase: dict[Name, SyntheticAssumption] = Field(default_factory=dict)
    """By synthetic set."""
    training: TrainingAssumption = TrainingAssumption()
    """One device of those that train."""
