"""How many parameters a generator has, by its own configuration: nothing is downloaded and no weight is read."""

from __future__ import annotations

from pathlib import Path


def num_params_of(model: str, revision: str | None) -> int | None:
    """Return all parameters of a model directory or of a hub model in the local cache, a tied matrix once.

    None when its configuration is not on this machine, or describes a model that only code of its own could build: such
    code is not run. Of a mixture of experts all experts count, though a token passes through few.
    """
    directory = _directory_of(model, revision)
    if directory is None:
        return None
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError):
        return None
    return int(sum(parameter.numel() for parameter in skeleton.parameters()))


def _directory_of(model: str, revision: str | None) -> Path | None:
    """Return the directory on this machine that holds a model's config.json."""
    if (Path(model) / "config.json").is_file():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # a directory elsewhere, not a repository
        return None
    return Path(found).parent if isinstance(found, str) else None
