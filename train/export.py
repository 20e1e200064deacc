"""A trained model as a Hugging Face directory: what transformers loads and vLLM serves."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM
from upath import UPath

from synth.storage import is_local
from train.staging import upload_tree


def export_checkpoint(
    llama: LlamaForCausalLM,
    tokenizer_directory: Path,
    out: UPath,
    *,
    max_position: int,
    chat_template: str | None = None,
) -> None:
    """Write weights (safetensors, in the model's own precision), configuration, tokenizer and generation defaults.

    The model stops at the tokenizer's end-of-text token. `max_position` is the longest prompt plus output it will
    accept, tokens; `chat_template` is a Jinja template for servers that speak in messages. `out` may be on an object
    store; files there are overwritten, so write the marker that says the directory is complete after this returns.
    The model itself is left as it was.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.bos_token = tokenizer.eos_token  # training opens every document with it
    tokenizer.model_max_length = max_position
    tokenizer.chat_template = chat_template
    with tempfile.TemporaryDirectory(prefix="synthscale-export-") as staging:
        _served_twin(llama, max_position, tokenizer.eos_token_id).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if is_local(out):
            shutil.copytree(staging, str(out), dirs_exist_ok=True)
        else:
            upload_tree(Path(staging), out)


def _served_twin(llama: LlamaForCausalLM, max_position: int, end_of_text: int) -> LlamaForCausalLM:
    """Return a model that shares the weights and has the configuration of one that is served."""
    config = copy.deepcopy(llama.config)
    config.max_position_embeddings = max_position
    config.use_cache = True
    with torch.device("meta"):
        twin = LlamaForCausalLM(config)
    twin.load_state_dict(llama.state_dict(), assign=True)
    twin.tie_weights()
    twin.generation_config = GenerationConfig(
        bos_token_id=end_of_text, eos_token_id=end_of_text, pad_token_id=end_of_text
    )
    return twin
