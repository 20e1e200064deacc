"""A trained generator as a release: weights in bfloat16 in files of bounded size, everything a server wants, and a card with
the hash of each file.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM
from upath import UPath

from synth.identity import RECIPE_FILE
from synth.model_source import ModelSource, write_card
from synth.storage import MARKER, read_bytes, write_bytes_atomic


def write_release(
    generator: ModelSource, out: UPath, card: str, *, num_params_total: int, max_shard_megabytes: float
) -> dict[str, dict[str, Any]]:
    """Write the release of a finished generator; return its files by name, each with `bytes` and `sha256`."""
    directory = generator.local_directory()
    with tempfile.TemporaryDirectory(prefix="synthscale-release-") as temporary:
        staging = Path(temporary)
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        model.save_pretrained(staging, max_shard_size=int(max_shard_megabytes * 1e6))
        for file in sorted(directory.iterdir()):
            made = file.suffix == ".safetensors" or file.name in (RECIPE_FILE, MARKER)
            if file.is_file() and not made and not (staging / file.name).exists():
                shutil.copyfile(file, staging / file.name)
        (staging / "README.md").write_text(card, encoding="utf-8")
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(staging.iterdir()):
            write_bytes_atomic(out / file.name, read_bytes(UPath(file)))
    return write_card(out, num_params_total=num_params_total)
