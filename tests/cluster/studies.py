"""Small studies for clusters of a test: real steps, the fake engine in place of vLLM."""

import json

OPEN_THRESHOLDS = {
    "min_words": 1, "reject_truncated": False, "min_length_ratio": 0.0, "max_length_ratio": 50.0, "max_prompt_echo": 1.0,
    "min_source_words": 0.0, "max_source_overlap": 1.0, "max_repetition": 1.0, "format": "free",
    "reject_language_drift": False,
}  # fmt: skip


def _data_sections(gpus, latency_seconds, documents):
    return {
        "corpora": {"natural": {
            "sources": [{"kind": "docstrings", "packages": ["optuna"]}], "max_documents": documents,
            "documents_per_part": 12,
        }},
        "rephrase": {"rephrased": {
            "corpus": "natural", "recipes": ["hq"], "recipe_overrides": {"thresholds": OPEN_THRESHOLDS},
            "engine": {"kind": "fake", "model": "fake", "engine_arguments": {"latency_seconds": latency_seconds}},
            "placement": {"gpus_per_engine": gpus, "max_num_seqs": 2, "parts_in_flight": 2},
        }},
        "pack": {"packed": {
            "tokenizer": {"vocab_size": 512}, "sequence_length": 64, "evaluate_on": ["natural"],
            "sources": {"natural": {"corpus": "natural"}, "hq": {"synthetic": "rephrased"}},
            "max_evaluation_tokens_per_domain": 1024,
        }},
    }  # fmt: skip


def whole_study(root, *, lanes=1, workers=1, latency_seconds=0.02, documents=96):
    """Return a study of every step a fake engine allows: two axes, a search, laws, a recommendation, a report."""
    run = {"rows_per_step": 4, "precision": "fp32", "max_epochs": 100.0}
    placement = {"lanes": lanes, "workers_per_lane": workers, "rows_per_microbatch": 4}
    budgets = [2048, 4096, 8192, 16384, 32768]
    return {
        "root": str(root),
        **_data_sections(0, latency_seconds, documents),
        "pretrain": {"grid": {
            "synthetic": ["hq"], "shares": [0.0, 0.5, 1.0], "run": run, "placement": placement,
            "axes": [
                {"models": ["12k"], "train_tokens": budgets},
                {"models": ["12k", "25k", "49k", "98k", "197k"], "train_tokens": [8192]},
            ],
        }},
        "search": {"share": {
            "synthetic": "hq", "cells": [{"model": "12k", "train_tokens": 4096}], "trials_per_cell": 4,
            "run": run, "placement": placement,
        }},
        "laws": {"laws": {"plan": "grid", "bootstrap_samples": 50}},
        "recommend": {"recommendation": {
            "laws": "laws", "searches": ["share"], "target_num_params": 1_000_000, "target_train_tokens": 20_000_000,
        }},
        "report": {"report": {
            "plan": "grid", "laws": "laws", "searches": ["share"], "recommendations": ["recommendation"],
            "synthetic": ["rephrased"], "corpora": ["natural"],
        }},
    }  # fmt: skip


def data_study(root, *, gpus=0, latency_seconds=0.3, documents=96, beside=False):
    """Return argv of run_study for the steps up to packed tokens; `beside` adds a set that needs nothing of the first."""
    study = {"root": str(root), **_data_sections(gpus, latency_seconds, documents)}
    if beside:
        made = study["rephrase"]["rephrased"]
        study["rephrase"]["beside"] = made | {"placement": made["placement"] | {"gpus_per_engine": 0}}
    return argv_of(study)


def argv_of(study):
    """Return a study as flags of run_study."""
    return [
        word
        for name, value in study.items()
        for word in (f"--{name}", value if name == "root" else json.dumps(value))
    ]
