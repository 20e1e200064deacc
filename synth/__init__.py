"""From a corpus to rephrased Parquet: documents, chunks, recipes, engines, quality verdicts.

The leftmost package: it also holds what every later package needs to leave trustworthy artefacts behind
(`config`, `storage`, `identity`, `progress`, `errors`). Only `synth.job` imports ray; only `synth.engines.vllm`
imports vllm, and only where an engine starts.
"""
