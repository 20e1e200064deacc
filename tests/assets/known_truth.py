"""A finished study whose losses follow a truth that is known, and its laws: what `recommend_mixture` should find is known too."""

from __future__ import annotations

import json
import math

import numpy as np

from synth.identity import claim_directory, finish
from synth.storage import study_path, write_json_atomic
from tests.assets.packed_set import write_packed_set
from train.config import PretrainConfig
from train.flops import count_parameters
from train.grid import claim_plan, finish_plan, plan_runs
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation, RunRecord, write_record
from train.tokens import PackedInfo
from tune.config import LawsConfig, RecommendConfig
from tune.fitting import fit_laws
from tune.results import CellOptimum, Interval

MODELS, BUDGETS = ("12k", "25k", "49k", "98k"), (16_384, 32_768, 65_536, 131_072, 262_144)
BEST_SHARE = 0.4
TARGET_N, TARGET_D = 200_000, 1_000_000
PLACEMENT = TrainPlacement(lanes=2, cpus_per_worker=4, gpus_per_worker=0.5, rows_per_microbatch=32)


def true_loss(num_params: float, train_tokens: float, share: float, best: float = BEST_SHARE) -> float:
    """Chinchilla with a data term that is smallest at the best share, as if there were 2.5 times the tokens of 0.4 beside it."""
    gain = 2.5 ** (-0.3 * (1.0 - ((share - best) / BEST_SHARE) ** 2))
    return 2.0 + 20.0 * num_params**-0.3 + 30.0 * gain * train_tokens**-0.3


def write_study(
    root: str, shares: tuple[float, ...] = (0.0, 1 / 3, 2 / 3), best: float = BEST_SHARE, **changes: object
) -> None:
    """Write a finished study: a plan whose losses follow `true_loss` within 0.05 %, its laws, and what made its tokens."""
    write_packed_set(root, sources={"natural": 4000, "hq": 4000})
    # What made the set is written by hand: the generator read 3 and wrote 2 tokens for each training token.
    directory = study_path(root, "synthetic", "rephrased")
    identity = claim_directory(directory, "synthetic", {"engine": {"model": "root:generators/tiny"}}, {})
    num_tokens = PackedInfo.read(root, "tiny").sources["hq"].num_tokens
    counts = {
        "prompt_tokens": 3 * num_tokens,
        "completion_tokens": 2 * num_tokens,
        "accepted_tokens": num_tokens // 2,
    }
    finish(directory, identity, recipes={"hq": counts}, accepted_tokens_per_device_second=50.0, **counts)
    generator = study_path(root, "generators", "tiny")
    finish(generator, claim_directory(generator, "generator", {}, {}), num_params_total=1000)
    recipe = study_path(root, "packed", "tiny", "recipe.json")
    told = json.loads(recipe.read_text())
    told["recipe"]["sources"] = {
        "natural": {"corpus": "natural"},
        "hq": {"synthetic": "rephrased", "recipe": "hq"},
    }
    write_json_atomic(recipe, told)

    config = PretrainConfig(
        root=root, packed="tiny", synthetic=("hq",), shares=shares,
        axes=({"models": ("98k",), "train_tokens": BUDGETS}, {"models": MODELS, "train_tokens": (131_072,)}),
        run={"max_epochs": None},
    )  # fmt: skip
    packed = PackedInfo.read(root, "tiny")
    planned = plan_runs(config, packed)
    records = []
    for each in planned:
        counts_of_model = count_parameters(each.run.model, packed.vocab_size)
        tokens = each.run.num_steps * each.run.tokens_per_step
        noise = 5e-4 * np.random.default_rng(int(each.run.run_id, 16) % 2**32).normal()
        loss = true_loss(counts_of_model.non_embedding, tokens, each.share, best) * math.exp(noise)
        domain = DomainLoss(loss_nats_per_token=loss, bits_per_byte=1.0, tokens=10, bytes=40)
        final = Evaluation(
            train_tokens=tokens, domains={"web": domain}, loss_nats_per_token=loss, macro_loss_nats_per_token=loss,
            bits_per_byte=1.0,
        )  # fmt: skip
        record = RunRecord(
            run_id=each.run.run_id, config=each.run, status="complete", num_params_total=counts_of_model.total,
            num_params_non_embedding=counts_of_model.non_embedding, train_tokens=tokens, train_flops=1.0, sources={},
            train_flops_6nd=6.0 * counts_of_model.non_embedding * tokens, final=final, peak_learning_rate=1e-3,
            wall_seconds=1.0, device_seconds=1.0, tokens_per_second=10_000.0, placement=PLACEMENT, provenance={},
        )  # fmt: skip
        write_record(root, record)
        records.append(record)
    finish_plan(config, claim_plan(config, packed, planned), records)
    fit_laws(
        LawsConfig(root=root, bootstrap_samples=100, objective="mse_log", **{"law": "chinchilla", **changes})
    )


def write_search(
    root: str,
    name: str,
    best: Interval,
    num_params: int,
    train_tokens: int,
    synthetic: str = "hq",
    **more: object,
) -> None:
    directory = study_path(root, "searches", name)
    identity = claim_directory(directory, "search", {}, {})
    optimum = CellOptimum(
        search=name, natural="natural", synthetic=synthetic, model="98k", num_params=num_params, train_tokens=train_tokens,
        trials=(), best_share=best, best_loss=Interval(value=3.0), natural_only_loss=None, curve=(), noise_nats=None, method="",
        **more,
    )  # fmt: skip
    write_json_atomic(directory / "cell" / "best.json", optimum.model_dump(mode="json"))
    finish(directory, identity, cells=["cell"])


def asked(root: str, **changes: object) -> RecommendConfig:
    return RecommendConfig.model_validate(
        {
            "root": root,
            "target_num_params": TARGET_N,
            "target_train_tokens": TARGET_D,
            "next_cells": 0,
            **changes,
        }
    )
