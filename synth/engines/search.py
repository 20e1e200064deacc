"""What `tune_engine` is asked: which engine settings to try, and on what."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from synth.config import Config, Fraction, RephraseConfig


class EngineSearch(Config):
    """Where `tune_engine` looks for faster engine settings, and for how long."""

    trials: int = Field(default=16, ge=1)
    """Settings tried, each in an engine of its own."""
    sample_documents: int = Field(default=256, ge=1)
    """Documents of the corpus each trial rephrases, taken evenly from all of it."""
    trial_timeout_seconds: float = Field(default=1800.0, gt=0)
    """A trial that takes longer, engine start included, is given up, seconds."""
    max_num_seqs: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Candidates for placement.max_num_seqs."""
    max_num_batched_tokens: tuple[int, ...] = (4096, 8192, 16384)
    """Candidates for placement.max_num_batched_tokens."""
    gpu_memory_utilization: tuple[float, ...] = (0.85, 0.9, 0.95)
    """Candidates for placement.gpu_memory_utilization; a CPU engine has none."""
    tensor_parallel: tuple[int, ...] = (1,)
    """Candidates for placement.tensor_parallel; rates are compared per GPU, and the best settings are kept for each:
    `rephrase_corpus` takes those of its own placement."""
    speculative: tuple[dict[str, Any] | None, ...] = (None,)
    """Candidates for engine.speculative. The best settings are kept for each, because it is part of a set's identity:
    `rephrase_corpus` never turns it on or off by itself."""
    tolerance: Fraction = 0.02
    """Of settings this close to the fastest, the ones that need least memory are chosen: what just fits in a trial runs
    out of memory in production, [0, 1]."""


class TuneEngineConfig(RephraseConfig):
    """`tune_engine`: a `rephrase_corpus` configuration, and which engine settings to try for it -> `tunings/`."""

    search: EngineSearch = EngineSearch()

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if self.engine.kind == "ray_data_llm":
            raise ValueError(
                "engine.kind = 'ray_data_llm' cannot be tuned, it does not tell its device time: tune kind 'vllm' and set "
                "what was found under placement"
            )
        if self.engine.kind == "http":
            raise ValueError(
                "engine.kind = 'http' cannot be tuned: what is searched are settings of an engine here, and a server has its own; tune "
                "kind 'vllm' on a machine like the server's"
            )
        if self.placement.shares_a_gpu:
            raise ValueError(
                f"placement.gpus_per_engine = {self.placement.gpus_per_engine:g}: a trial has its GPU to itself and would tell the speed "
                "of all of it; tune with gpus_per_engine = 1, and set what engines that share one are to have under placement"
            )
        if self.placement.across_nodes:
            raise ValueError(
                "placement.across_nodes: an engine on several nodes cannot be tuned, a trial is one task: tune settings on one "
                "node and set what was found under placement"
            )
        return self
