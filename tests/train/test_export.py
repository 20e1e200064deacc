"""An exported model is the trained model: for transformers, and for vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from upath import UPath

from train.export import export_checkpoint
from train.model import Vocabulary, build_llama
from train.sizes import SIZES
from train.tokenizer import train_tokenizer

TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}A:"


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    text = Path(__file__).read_text()
    return directory, train_tokenizer([text], 300, UPath(directory))


def exported(tmp_path, tokenizer_directory, dtype=torch.float32, name="25k"):
    directory, info = tokenizer_directory
    llama = build_llama(SIZES[name], Vocabulary(info.vocab_size, info.eot_id), 64, seed=3)
    for parameter in llama.parameters():
        parameter.data = parameter.data.to(dtype)
    out = tmp_path / "exported"
    export_checkpoint(llama, directory, UPath(out), max_position=512, chat_template=TEMPLATE)
    return llama, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_same_model(tmp_path, tokenizer_directory, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama, out = exported(tmp_path, tokenizer_directory, dtype)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    end_of_text = tokenizer_directory[1].eot_id
    tokens = torch.tensor([[end_of_text, *tokenizer.encode("An exported model is")]])
    assert loaded.dtype == dtype
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, llama(tokens).logits)
    assert loaded.config.max_position_embeddings == tokenizer.model_max_length == 512
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == end_of_text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == tokenizer.eos_token + "hello\nA:"


def test_exporting_leaves_the_model_as_it_was_and_gives_the_same_bytes(tmp_path, tokenizer_directory):
    llama, out = exported(tmp_path, tokenizer_directory)
    assert llama.config.max_position_embeddings == 64
    assert llama.lm_head.weight.device.type == "cpu"
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert names <= {path.name for path in out.iterdir()}
    _, again = exported(tmp_path / "again", tokenizer_directory)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


def test_export_to_an_object_store(tmp_path, tokenizer_directory):
    directory, info = tokenizer_directory
    llama = build_llama(SIZES["12k"], Vocabulary(info.vocab_size, info.eot_id), 64, seed=3)
    remote = UPath("memory://export-test/generators/tiny")
    export_checkpoint(llama, directory, remote, max_position=64)
    assert json.loads((remote / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (remote / "model.safetensors").stat().st_size > 4 * 12_000


SERVE = """
import json, sys
import vllm

if __name__ == "__main__":
    engine = vllm.LLM(sys.argv[1], max_model_len=128, enforce_eager=True, enable_chunked_prefill=False,
                      max_num_batched_tokens=256, dtype="float32")
    sampling = vllm.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    answer = engine.chat([{"role": "user", "content": "hello"}], sampling)[0]
    with open(sys.argv[2], "w") as out:
        json.dump({"prompt": answer.prompt_token_ids, "tokens": list(answer.outputs[0].token_ids)}, out)
"""


@pytest.mark.drill
def test_vllm_serves_the_same_model(tmp_path, tokenizer_directory):
    llama, out = exported(tmp_path, tokenizer_directory)
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run(
        [sys.executable, script, out, tmp_path / "answer.json"],
        check=True,
        timeout=400,
        cwd=tmp_path,
        env=environment,
    )
    answer = json.loads((tmp_path / "answer.json").read_text())
    with torch.no_grad():
        tokens = answer["prompt"]
        for token in answer["tokens"]:
            logits = llama(torch.tensor([tokens])).logits[0, -1]
            # Greedy decoding of a random model meets near-ties: the served token must be one of the best, exactly.
            assert logits[token] >= logits.max() - 1e-4
            tokens = [*tokens, token]
