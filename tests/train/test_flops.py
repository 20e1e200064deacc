"""Counts by formula: exact against instantiated models, and against what a profiler sees torch multiply."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.flops import count_parameters, train_flops, train_flops_6nd
from train.model import Pretrainer, Vocabulary, build_llama, llama_config
from train.sizes import SIZES


@pytest.mark.parametrize("name", SIZES)
def test_counts_equal_the_instantiated_model(name):
    from transformers import LlamaForCausalLM

    shape = SIZES[name]
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(shape, Vocabulary(2048, 0), max_position=256))
    counts = count_parameters(shape, vocab_size=2048)
    names = dict(model.named_parameters())
    assert sum(parameter.numel() for parameter in names.values()) == counts.total
    outside = {name for name in names if "embed_tokens" in name or "lm_head" in name}
    assert len(outside) == (1 if shape.tie_embeddings else 2)
    assert (
        sum(parameter.numel() for name, parameter in names.items() if name not in outside)
        == counts.non_embedding
    )


@pytest.mark.parametrize("name", ["12k", "330k"])
def test_flops_equal_those_counted_while_training(name):
    shape, vocabulary, rows, length = SIZES[name], Vocabulary(512, 0), 3, 64
    llama = build_llama(shape, vocabulary, length, seed=0)
    # Attention written out as two products: the fused kernel's backward pass repeats one of them to save memory.
    llama.config._attn_implementation = "eager"
    tokens = torch.randint(1, 512, (rows, length + 1))
    with FlopCounterMode(display=False) as counter:
        Pretrainer(llama, vocabulary.end_of_text)(tokens)[0].backward()
    assert counter.get_total_flops() == train_flops(shape, 512, length, rows * length)


def test_6nd():
    assert train_flops_6nd(1000, 7) == 42_000
