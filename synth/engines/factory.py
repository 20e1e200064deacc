"""Which engine a configuration asks for, and what it would compute on; engines are imported where they are picked."""

from __future__ import annotations

from synth.config import EngineConfig, RephrasePlacement
from synth.engines.protocol import Engine
from synth.model_source import ModelSource


def open_engine(config: EngineConfig, placement: RephrasePlacement, model: ModelSource) -> Engine:
    """Return the engine a configuration asks for, not yet started."""
    if config.kind == "fake":
        from synth.engines.fake import FakeEngine

        return FakeEngine.from_config(config)
    if config.kind == "http":
        from synth.engines.http import HttpEngine

        return HttpEngine(config, placement, model)
    from synth.engines.vllm import VllmEngine

    return VllmEngine(config, placement, model)


def device_name(config: EngineConfig, placement: RephrasePlacement) -> str:
    """Return what an engine would compute on here: a GPU's name, a CPU's with its number of threads."""
    if config.kind in ("fake", "http"):
        return config.kind
    from synth.engines.vllm import device_name as name_of_device

    return name_of_device(placement)
