"""A finished study simulated from a known law: every artefact a report reads, no training, no engine."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from synth.documents import DOCUMENT_SCHEMA, document_id
from synth.identity import claim_directory, finish
from synth.recipe import load_recipe
from synth.rows import REPHRASED_SCHEMA
from synth.storage import study_path, write_json_atomic, write_parquet_atomic, write_text_atomic
from synth.study_log import StudyLog
from train.config import Axis, PackConfig, PackSource, PretrainConfig
from train.flops import count_parameters, train_flops, train_flops_6nd
from train.grid import PlannedRun, claim_plan, finish_plan, mix, plan_runs, run_of
from train.packed_files import ShardInfo
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation, RunRecord, SourceUse, write_record
from train.run import RunConfig
from train.sizes import model_of
from train.tokens import EvaluationInfo, PackedInfo, SourceInfo
from tune.config import LawsConfig, ReportConfig
from tune.fitting import fit_laws
from tune.optimum import fit_curve
from tune.results import (
    CellOptimum,
    EqualLoss,
    Interval,
    NextCell,
    Recommendation,
    Sensitivity,
    TrialResult,
)

PROVENANCE = {
    "commit": "0123456789ab",
    "argv": ["/somewhere/rayjobs/run_study.py", "--config", "demo.toml"],
    "created_at": "2026-01-02T03:04:05+00:00",
    "python": "3.11.9",
    "machine": "Linux x86_64",
    "packages": {"torch": "2.13.0", "ray": "2.60.0"},
}
STUDY_FILE = '[corpora.natural]\nsources = [{ kind = "docstrings", packages = ["numpy"] }]\n'
DOMAINS = {"numpy": 0.85, "scipy": 0.95, "stdlib": 1.05, "transformers": 1.2}
VALLEY = {"hq": 0.35, "qa": 0.5}
"""Where the simulated loss is lowest, share by source."""
NASTY = "</pre><script>alert(1)</script> {{ 7 * 7 }} <img src=http://example.org/x> |pipe| `tick`\u202e"


# --- a study simulated from a known law ------------------------------------------------------------------------


def true_loss(num_params: float, train_tokens: float, synthetic: str | None, share: float) -> float:
    """Chinchilla with a valley in the share that deepens with D."""
    valley = VALLEY.get(synthetic or "", 0.0)
    helped = 0.35 * (valley**2 - (share - valley) ** 2) if synthetic else 0.0
    return 1.6 + 14 * num_params**-0.22 + 58 * train_tokens**-0.27 * (1 - helped)


def simulated_loss(run: RunConfig, num_params: int, train_tokens: int, noise: float = 0.006) -> float:
    synthetic = next((name for name in run.mixture if name != "natural"), None)
    share = run.mixture.get(synthetic, 0.0) if synthetic else 0.0
    draw = np.random.default_rng(int(run.run_id, 16)).standard_normal()
    return true_loss(num_params, train_tokens, synthetic, share) * (1 + noise * draw / 2)


def evaluation_of(loss: float, train_tokens: int) -> Evaluation:
    domains = {
        name: DomainLoss(
            loss_nats_per_token=loss * factor,
            bits_per_byte=loss * factor / math.log(2) / 3.1,
            tokens=4096,
            bytes=12698,
        )
        for name, factor in DOMAINS.items()
    }
    mean = float(np.mean([each.loss_nats_per_token for each in domains.values()]))
    bits = float(np.mean([each.bits_per_byte for each in domains.values()]))
    return Evaluation(
        train_tokens=train_tokens,
        domains=domains,
        loss_nats_per_token=mean,
        macro_loss_nats_per_token=mean,
        bits_per_byte=bits,
    )


def record_of(
    run: RunConfig, status: str = "complete", reason: str | None = None, factor: float = 1.0
) -> RunRecord:
    parameters = count_parameters(run.model, 2048)
    tokens = run.num_steps * run.tokens_per_step
    loss = factor * simulated_loss(run, parameters.non_embedding, tokens)
    evaluation = evaluation_of(loss, tokens)
    complete = status == "complete"
    in_source = {"natural": 3_000_000, "hq": 900_000, "qa": 1_400_000}
    sources = {
        name: SourceUse(
            tokens=(used := round(share * tokens)),
            unique_tokens=min(used, in_source[name]),
            repeated_tokens=max(0, used - in_source[name]),
            epochs=used / in_source[name],
        )
        for name, share in run.mixture.items()
    }
    speed = 3e9 / parameters.non_embedding
    return RunRecord(
        run_id=run.run_id, config=run, status=status, reason=reason,
        num_params_non_embedding=parameters.non_embedding, num_params_total=parameters.total, train_tokens=tokens,
        train_flops_6nd=train_flops_6nd(parameters.non_embedding, tokens),
        train_flops=train_flops(run.model, 2048, run.sequence_length, tokens), sources=sources,
        final=evaluation if complete else None, evaluations=(evaluation,) if complete else (), peak_learning_rate=3e-3,
        wall_seconds=tokens / speed, device_seconds=tokens / speed, tokens_per_second=speed,
        placement=TrainPlacement(), provenance=PROVENANCE,
    )  # fmt: skip


def write_run(root: str, record: RunRecord) -> None:
    write_record(root, record)
    tokens = record.config.tokens_per_step
    steps = np.unique(np.linspace(1, record.config.num_steps, 40, dtype=int))
    random = np.random.default_rng(int(record.run_id, 16))
    end = simulated_loss(record.config, record.num_params_non_embedding, record.train_tokens)
    lines = [
        {
            "step": int(step), "train_tokens": int(step) * tokens,
            "loss_nats_per_token": end * (record.config.num_steps / step) ** 0.12 + 0.04 * random.standard_normal(),
            "learning_rate": 3e-3, "gradient_norm": 1.0, "tokens_per_second": 9000.0,
            "loss_by_source": {}, "mfu_fraction": None, "memory_bytes": 1 << 30, "wall_seconds": float(step),
        }
        for step in steps
    ]  # fmt: skip
    path = study_path(root, "runs", record.run_id, "metrics.jsonl")
    write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_packed(root: str, parents: dict[str, str] | None = None) -> PackedInfo:
    """Write the manifest of a packed set; other parents make another set of it."""
    shard = ShardInfo(num_tokens=1, sha256="0" * 64)

    def source(tokens: int, documents: int) -> SourceInfo:
        return SourceInfo(
            num_rows=tokens // 256, num_tokens=tokens, num_documents=documents, num_bytes=round(3.1 * tokens),
            num_dropped_tokens=3, num_altered_documents=0, shards=(shard,),
        )  # fmt: skip

    directory = study_path(root, "packed", "packed")
    sources = {
        "natural": PackSource(corpus="natural"),
        "hq": PackSource(synthetic="rephrased", recipe="hq"),
        "qa": PackSource(synthetic="rephrased", recipe="qa"),
    }
    recipe = PackConfig(root=root, sources=sources, evaluate_on=("natural",)).identity()
    identity = claim_directory(directory, "packed", recipe, parents or {})
    info = PackedInfo(
        hash=identity, sequence_length=256, vocab_size=2048, eot_id=0, tokenizer_hash="t" * 16,
        sources={"natural": source(3_000_000, 9_000), "hq": source(900_000, 8_200), "qa": source(1_400_000, 7_900)},
        evaluation={name: EvaluationInfo(num_rows=16, num_tokens=4096, num_bytes=12698, num_documents=40) for name in DOMAINS},
        evaluation_shard=shard, domains_left_out={"tiny": "12 tokens of held-out text, one row takes 257"},
    )  # fmt: skip
    finish(directory, identity, **info.model_dump(mode="json", exclude={"hash"}))
    return info


def write_corpus(root: str) -> list[str]:
    """Write `corpora/natural`; return the texts of its first part."""
    texts = sorted(
        [
            f"The function number {i} returns the sum of its arguments, element by element. {NASTY if i == 0 else ''}"
            for i in range(12)
        ],
        key=document_id,
    )
    directory = study_path(root, "corpora", "natural")
    identity = claim_directory(directory, "corpus", {"sources": []}, {})
    columns = [[document_id(text) for text in texts], texts, ["numpy"] * len(texts), ["test"] * len(texts)]
    write_parquet_atomic(
        directory / "train" / "part-00000-of-00001.parquet", pa.table(columns, schema=DOCUMENT_SCHEMA)
    )
    domains = {
        name: {"documents": 2_000 + 10 * i, "characters": 1_500_000, "bytes": 1_600_000}
        for i, name in enumerate(DOMAINS)
    }
    held = {name: {"documents": 100, "characters": 75_000, "bytes": 80_000} for name in DOMAINS}

    def split(by_domain: dict[str, dict[str, int]]) -> dict[str, object]:
        totals = {
            key: sum(counts[key] for counts in by_domain.values())
            for key in ("documents", "characters", "bytes")
        }
        return {"parts": 1, **totals, "domains": by_domain}

    splits = {"train": split(domains), "held_out": split(held)}
    dropped = {"duplicate": 431, "too_short": 1_204}
    finish(
        directory,
        identity,
        rows_read=10_095,
        documents_kept=8_460,
        dropped=dropped,
        splits=splits,
        sources=[],
    )
    return texts


def write_synthetic(root: str, texts: list[str]) -> None:
    rows = [
        {
            "doc_id": document_id(text), "domain": "numpy", "source": "test", "chunk": 0, "chunk_start": 0, "chunk_end": len(text),
            "recipe": recipe, "sample": 0, "text": f"{recipe}: {text}" if i % 3 else "", "keep": bool(i % 3),
            "verdict": "kept" if i % 3 else "rejected", "reject_reasons": [] if i % 3 else ["too_short"],
            "finish_reason": "stop", "prompt_tokens": 50, "completion_tokens": 30, "input_truncated_tokens": 0,
            "seed": (i * 7919 + len(recipe)) % 1000, "recipe_hash": "r", "prompt_hash": "p", "sampling_hash": "s", "model": "root:generators/tiny",
            "model_hash": "m", "engine_version": "vllm 0.29.0",
        }
        for recipe in ("hq", "qa")
        for i, text in enumerate(texts)
    ]  # fmt: skip
    directory = study_path(root, "synthetic", "rephrased")
    made = {name: load_recipe(name) for name in ("hq", "qa")}
    recipe = {
        "corpus": "natural",
        "engine": {"model": "root:generators/tiny"},
        "recipes": {name: each.identity() | {"hash": each.hash} for name, each in made.items()},
    }
    identity = claim_directory(directory, "synthetic", recipe, {})
    table = pa.Table.from_pylist(rows, schema=REPHRASED_SCHEMA)
    write_parquet_atomic(directory / "part-00000-of-00001.parquet", table)

    def tally(kept: int, rejected: int, quarantined: int) -> dict[str, object]:
        return {
            "rows": kept + rejected + quarantined, "kept": kept, "rejected": rejected, "quarantined": quarantined,
            "reasons": {"too_short": rejected, "engine_death": quarantined}, "completion_tokens": 130 * (kept + rejected),
            "accepted_tokens": 130 * kept, "prompt_tokens": 190 * (kept + rejected), "cached_prompt_tokens": 0, "source_characters": 5_000_000, "kept_characters": 4_100_000,
        }  # fmt: skip

    total = tally(16_100, 803, 1)
    recipes = {"hq": tally(8_200, 252, 1), "qa": tally(7_900, 551, 0)}
    finish(
        directory, identity, parts=1, documents=8_460, recipes=recipes, **total, device_seconds=512.5, engine_start_seconds=41.0,
        accepted_tokens_per_device_second=2_093_000 / 512.5,
        device_hours_per_billion_accepted_tokens=512.5 / 3600 / 2_093_000 * 1e9, engine_versions=["vllm 0.29.0"], prompt_formats=["plain"],
        engine_deaths=1, retries=2,
    )  # fmt: skip


SMALL = {
    "shares": (0.0, 1 / 3),
    "axes": (
        Axis(models=("98k",), train_tokens=(131_072, 262_144, 524_288, 1_048_576)),
        Axis(models=("12k", "25k", "49k"), train_tokens=(524_288,)),
    ),
}
"""What the tests train; a larger grid makes a page worth looking at."""
SEARCHED = (("25k", 524_288), ("98k", 1_048_576))
ENDINGS = {
    ("12k", "qa", 1 / 3): ("diverged", "loss is not finite at step 37"),
    ("49k", "qa", 1 / 3): ("failed", "worker died twice at 131,072 tokens: <out of memory>"),
}
"""Runs without a result."""


def write_generator(root: str) -> None:
    directory = study_path(root, "generators", "tiny")
    identity = claim_directory(directory, "generator", {"model": "780k"}, {})
    finish(directory, identity, num_params_total=1_000_000, num_params_non_embedding=780_000, train_tokens=1_000_000,
           train_flops=6.5e12, device_seconds=80.0)  # fmt: skip


def pretrain_config(root: str, grid: dict[str, Any]) -> PretrainConfig:
    return PretrainConfig(root=root, synthetic=("hq", "qa"), **grid)


def write_plan(config: PretrainConfig, packed: PackedInfo) -> list[PlannedRun]:
    """Train the grid by formula; one run diverges, one fails."""
    planned = list(plan_runs(config, packed))
    identity = claim_plan(config, packed, planned)
    records = []
    for each in planned:
        record = record_of(
            each.run, *ENDINGS.get((each.model, each.synthetic, each.share), ("complete", None))
        )
        write_run(config.root, record)
        records.append(record)
    finish_plan(config, identity, records)
    return planned


def write_search(config: PretrainConfig, packed: PackedInfo, synthetic: str) -> None:
    root = config.root
    name = f"search-{synthetic}"
    directory = study_path(root, "searches", name)
    identity = claim_directory(directory, "search", {"synthetic": synthetic}, {})
    for model, tokens in SEARCHED:
        shape = model_of(model)
        runs = {
            share: run_of(
                config.run,
                "packed",
                packed,
                shape,
                tokens,
                mix("natural", synthetic, share),
                0,
                root=config.root,
            )
            for share in (0.0, 0.2, 1 / 3, 0.5, 2 / 3, 1.0)
        }
        records = {share: record_of(run) for share, run in runs.items()}
        for record in records.values():
            if not study_path(root, "runs", record.run_id, "record.json").exists():
                write_run(root, record)
        losses = {
            share: record.final.loss_nats_per_token for share, record in records.items() if record.final
        }
        curve = fit_curve(list(losses), list(losses.values()))
        optimum = CellOptimum(
            search=name, natural="natural", synthetic=synthetic, model=model, train_tokens=tokens,
            num_params=count_parameters(shape, packed.vocab_size).non_embedding,
            trials=tuple(
                TrialResult(share=share, run_id=runs[share].run_id, status="complete", loss_nats_per_token=losses[share])
                for share in runs
            ),
            best_share=curve.best_share(), best_loss=curve.best_loss(), natural_only_loss=losses[0.0], curve=curve.band(),
            noise_nats=curve.noise_nats(), method="Gaussian process over the share", warnings=("flat optimum",),
        )  # fmt: skip
        write_json_atomic(directory / f"{model}-{tokens}" / "best.json", optimum.model_dump(mode="json"))
    finish(directory, identity, cells=[f"{model}-{tokens}" for model, tokens in SEARCHED])


def write_recommendation(root: str) -> Recommendation:
    recommendation = Recommendation(
        hash="feedfacecafebeef", target_num_params=1_000_000, target_train_tokens=20_000_000,
        best_share=Interval(value=0.34375, low=0.21875, high=0.46875), best_group="hq 33 %",
        predicted_loss=Interval(value=2.912345678, low=2.85, high=2.97),
        natural_only_loss=Interval(value=2.98765, low=2.93, high=3.04),
        synthetic="hq",
        headline="Mix in 34 % of hq: it is predicted to lose 0.0753 nats per token less than natural text alone (0.02 to 0.13).",
        gain=Interval(value=0.075304322, low=0.02, high=0.13),
        equal_loss_at_best_share=EqualLoss(
            group="hq 34 %", tokens=Interval(value=1.39e7, low=1.09e7, high=1.88e7), speed_up=Interval(value=1.44, low=1.06, high=1.83)
        ),
        equal_loss=(
            EqualLoss(group="hq 33 %", tokens=Interval(value=1.4e7, low=1.1e7, high=1.9e7), speed_up=Interval(value=1.43, low=1.05, high=1.8)),
            EqualLoss(group="qa 33 %", tokens=Interval(value=1.6e7, low=1.2e7, high=None), speed_up=Interval(value=1.25, low=None, high=1.7)),
        ),
        synthetic_tokens=6_875_000, training_flops=1.3e14, generation_flops=4.1e13, training_device_hours=0.71,
        generation_device_hours=0.45, cost=None, pays="unclear",
        pays_reason="the interval of the saving includes zero once generation is charged",
        sensitivity=tuple(
            Sensitivity(what=what, synthetic="hq", best_share=Interval(value=share, low=share - 0.1, high=share + 0.1),
                        predicted_loss=Interval(value=2.9), gain_nats=0.08, gain=Interval(value=0.08, low=0.03, high=0.14), pays=pays,
                        natural_cost_ratio=Interval(value=ratio, low=ratio - 0.2, high=ratio + 0.2))
            for what, share, ratio, pays in (
                ("N were 2 times as large", 0.36, 1.31, "yes"), ("generation cost 4 times as much", 0.34, 0.62, "no")
            )
        ),
        next_cells=(
            NextCell(model="197k", num_params=197_000, train_tokens=2_097_152, runs=4, flops=9.9e12, expected_interval_width=0.17),
            NextCell(what="share", share=0.45, runs=7, flops=1.1e12, expected_interval_width=0.15),
            NextCell(what="seed", seed=1, runs=21, flops=3.3e12, expected_interval_width=0.11),
        ),
        evidence=("fit laws", "search search-hq"),
        warnings=("the target has 5 times the parameters and 19 times the tokens of anything measured",), provenance=PROVENANCE,
    )  # fmt: skip
    write_json_atomic(
        study_path(root, "recommendations", "target.json"), recommendation.model_dump(mode="json")
    )
    return recommendation


def simulate_study(root: str, grid: dict[str, Any], bootstrap_samples: int) -> ReportConfig:
    """Write a whole finished study under `root` and return the report's configuration."""
    packed = write_packed(root)
    write_generator(root)
    write_synthetic(root, write_corpus(root))
    config = pretrain_config(root, grid)
    write_plan(config, packed)
    for synthetic in ("hq", "qa"):
        write_search(config, packed, synthetic)
    fit_laws(LawsConfig(root=root, bootstrap_samples=bootstrap_samples))
    write_recommendation(root)
    log = StudyLog(root)
    log.add("build_corpus", "natural", 12.5)
    log.add("fit_laws", "laws", 4.0)
    write_text_atomic(study_path(root, "study.toml"), STUDY_FILE)
    return ReportConfig(
        root=root,
        searches=("search-hq", "search-qa"),
        recommendations=("target",),
        synthetic=("rephrased",),
        corpora=("natural",),
    )
