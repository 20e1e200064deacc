"""Perplexity of texts under a fixed model: one more look at how plain or how varied synthetic text is.

Synthetic text crowds at low perplexities where human text is spread (ToEdit, arXiv 2412.14689), so the quantiles say
more than the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from synth.errors import UserError, first_line

MAX_TOKENS = 512
"""Only so many tokens of a text are read."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class PerplexityModel:
    """A Hugging Face causal model under which texts of several sources are measured."""

    def __init__(self, checkpoint: str) -> None:
        """Load it. Raises UserError when the checkpoint cannot be loaded."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"card.perplexity_model = {checkpoint!r} cannot be loaded ({first_line(error)}): give a Hugging Face checkpoint."
            ) from None
        self._model = model.eval()
        self._window = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))

    def measure(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return tokens, mean loss, perplexity and its quantiles over texts.

        The mean is over tokens, the quantiles over texts. A text of fewer than two tokens has no perplexity and is counted
        in `texts_too_short`.
        """
        losses = [(loss, tokens) for loss, tokens in map(self._loss, texts) if tokens]
        nats, tokens = sum(loss * count for loss, count in losses), sum(count for _, count in losses)
        ranked = sorted(_perplexity(loss) for loss, _ in losses)
        return {
            "texts": len(losses),
            "texts_too_short": len(texts) - len(losses),
            "tokens": tokens,
            "loss_nats_per_token": nats / tokens if tokens else None,
            "perplexity": _perplexity(nats / tokens) if tokens else None,
            "perplexity_quantiles": {
                f"{quantile:g}": ranked[min(len(ranked) - 1, int(quantile * len(ranked)))]
                for quantile in QUANTILES
                if ranked
            },
        }

    def _loss(self, text: str) -> tuple[float, int]:
        """Return the mean loss of a text, nats per predicted token, and how many tokens were predicted."""
        import torch

        ids = self._tokenizer(text, truncation=True, max_length=self._window, return_tensors="pt").input_ids
        if ids.shape[1] < 2:
            return 0.0, 0
        with torch.inference_mode():
            return float(self._model(ids, labels=ids).loss), ids.shape[1] - 1


def _perplexity(loss_nats: float) -> float:
    return math.exp(min(loss_nats, 700.0))  # the largest a float holds
