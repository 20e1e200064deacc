"""Counts by formula: exact against instantiated models, and against what a profiler sees torch multiply."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.flops import count_parameters, flops_per_token, train_flops, train_flops_6nd
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


@pytest.mark.parametrize("name", ["1b", "8b"])
def test_flops_of_large_models_equal_those_counted_without_their_weights(name):
    from transformers import LlamaForCausalLM

    shape, rows, length = SIZES[name], 2, 32
    with torch.device("meta"):
        llama = LlamaForCausalLM(llama_config(shape, Vocabulary(512, 0), max_position=length))
        llama.config._attn_implementation = "eager"
        tokens = torch.ones((rows, length + 1), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            Pretrainer(llama, 0)(tokens)[0].backward()
    assert counter.get_total_flops() == train_flops(shape, 512, length, rows * length)


def test_conventions_differ_by_what_they_say_they_count():
    shape, vocabulary, length = SIZES["350m"], 32_768, 2048
    counts, flops = count_parameters(shape, vocabulary), flops_per_token(shape, vocabulary, length)
    norms = (2 * 24 + 1) * 1024
    assert flops["6n_total"] - flops["6n_non_embedding"] == 6 * vocabulary * 1024
    assert flops["kaplan"] - flops["6n_non_embedding"] == 6 * 24 * 2048 * 1024
    # every product: weights without norms, the output projection, attention over the whole row
    assert (
        flops["every_product"]
        == 6 * (counts.non_embedding - norms + vocabulary * 1024) + 12 * 24 * 2048 * 1024
    )
    assert flops["chinchilla"] - flops["every_product"] == 6 * vocabulary * 1024 + 9 * 24 * 16 * 2048


def test_6nd():
    assert train_flops_6nd(1000, 7) == 42_000
