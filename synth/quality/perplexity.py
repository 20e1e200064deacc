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


def measure_perplexity(checkpoint: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return tokens, mean loss, perplexity and its quantiles over texts, under a Hugging Face causal model.

    The mean is over tokens, the quantiles over texts. A text of fewer than two tokens has no perplexity and is counted
    in `texts_too_short`. Raises UserError when the checkpoint cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"card.perplexity_model = {checkpoint!r} cannot be loaded ({first_line(error)}): give a Hugging Face checkpoint."
        ) from None
    window = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    nats, tokens, each = 0.0, 0, []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=window, return_tensors="pt").input_ids
            if ids.shape[1] < 2:
                continue
            loss = float(model(ids, labels=ids).loss)
            nats += loss * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
            each.append(math.exp(min(loss, 700.0)))
    ranked = sorted(each)
    return {
        "texts": len(each),
        "texts_too_short": len(texts) - len(each),
        "tokens": tokens,
        "loss_nats_per_token": nats / tokens if tokens else None,
        "perplexity": math.exp(min(nats / tokens, 700.0)) if tokens else None,
        "perplexity_quantiles": {
            f"{quantile:g}": ranked[min(len(ranked) - 1, int(quantile * len(ranked)))]
            for quantile in QUANTILES
        }
        if ranked
        else {},
    }
