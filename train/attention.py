"""Attention inside the documents of packed rows: by a mask over pairs of positions, or by FlashAttention on their bounds.

The mask is exact everywhere, and a GPU spends most of a long row on the pairs it forbids. FlashAttention of variable lengths
never computes them, and wants a GPU and bfloat16; gradients then differ in their last bits from run to run, because it adds
them up in no fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, LlamaForCausalLM

BY_BOUNDS = "documents_by_bounds"
"""Name under which transformers finds `attend_by_bounds`."""

_LEAST_CAPABILITY = (8, 0)
"""FlashAttention wants an Ampere GPU or a newer one."""


def document_mask(tokens: torch.Tensor, end_of_text: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask [B, 1, T, T]: 0 where a position may look, minus infinity elsewhere.

    A position sees itself and earlier positions of its own document. The end-of-text token belongs to the document
    after it, so a model meets every document as it will be prompted: end-of-text first. Positions are not counted
    anew in each document: the rotary embedding depends on distances alone.
    """
    document = (tokens == end_of_text).cumsum(dim=1)
    same = document[:, :, None] == document[:, None, :]
    length = tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=tokens.device).masked_fill_(
        ~(same & causal), -torch.inf
    )
    return mask[:, None]


def document_bounds(tokens: torch.Tensor, end_of_text: int) -> torch.Tensor:
    """Return where the documents of rows laid end to end begin, and the end of the last: int32 [documents + 1].

    Rows of tokens, int64 [B, T]. A row begins a document of its own, as `document_mask` has it.
    """
    begins = tokens == end_of_text
    begins[:, 0] = True
    starts = begins.flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([tokens.numel()])]).int()


def attend_by_bounds(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of every position to its own document's positions up to it, [B, T, heads, head size].

    query [B, heads, T, head size], key and value [B, kv heads, T, head size]; `cu_seq_lens_q` as `document_bounds` gives it, no
    document longer than `max_length_q`. The signature is that of transformers' attention interface.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, _, length, _ = query.shape
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    causal = (-1, 0)  # as many positions to the left as there are, none to the right
    found = varlen_attn(*flat, *bounds, scale=scaling, window_size=causal, enable_gqa=True)
    assert isinstance(found, torch.Tensor)
    return found.unflatten(0, (rows, length)), None


def choose_attention(llama: LlamaForCausalLM, device: torch.device, precision: str) -> None:
    """Let a model attend by bounds where the device and the precision allow it."""
    if (
        device.type == "cuda"
        and precision == "bf16"
        and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
    ):
        AttentionInterface.register(BY_BOUNDS, attend_by_bounds)
        llama.set_attn_implementation(BY_BOUNDS)


def attention_options(llama: LlamaForCausalLM, tokens: torch.Tensor, end_of_text: int) -> dict[str, Any]:
    """Return what the model must be told of the documents in rows of tokens, int64 [B, T], to attend as it was chosen to."""
    if llama.config._attn_implementation == BY_BOUNDS:
        return {"cu_seq_lens_q": document_bounds(tokens, end_of_text), "max_length_q": tokens.shape[1]}
    return {"attention_mask": document_mask(tokens, end_of_text, llama.dtype)}
