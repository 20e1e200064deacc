"""Which runs would shrink the interval of the best share most, by how much, and the plan that trains them.

A candidate is a cell: one model size and one budget, trained with every share and seed the plan has, so that its runs
are paired. What it would teach is computed from the resamples of the laws. The loss of mixture g at the target, T, and at
the candidate, C, vary together over the resamples; runs there, whose mean has the noise s, leave the target's variance at
var(T) - cov(T, C)^2 / (var(C) + s^2). The best share depends on T as the curves through the mixtures' losses do: over
their draws, the part of its variance that goes with T is cov(best, T)^2 / var(T). Cells are chosen one after the
other, each given those before. The most extreme resamples are drawn in, so that a few do not decide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synth.errors import UserError
from synth.identity import RECIPE_FILE
from synth.storage import read_json
from train.config import PretrainConfig
from train.flops import count_parameters, train_flops_6nd
from train.grid import check_budgets, plan_directory, plan_runs
from train.sizes import model_of
from train.tokens import PackedInfo
from tune.at_target import MixtureAtTarget
from tune.laws.law import Floats
from tune.optimum import Curve
from tune.results import NextCell

LARGER_BUDGETS = (2, 4)
"""Budgets beyond the largest trained that are considered, as multiples of it."""
DEARER = 4.0
"""A candidate run costs at most this many times the dearest one trained."""
TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class _Candidate:
    model: str
    num_params: int
    train_tokens: int


def next_cells(
    root: str, plan: str, mixtures: Sequence[MixtureAtTarget], curve: Curve, count: int
) -> tuple[NextCell, ...]:
    """Return up to `count` cells, the most telling first; none when the laws have no resamples to compute with."""
    config, packed = _plan_of(root, plan)
    candidates = list(_candidates(config, packed))
    if not candidates or any(len(each.losses) < 2 for each in mixtures):
        return ()
    seeds = len(set(config.seeds))
    beliefs = [_Belief(each, candidates, curve, seeds) for each in mixtures]
    before = float(curve.minima.var())
    best = curve.best_share()
    width = (best.high or 0.0) - (best.low or 0.0)
    chosen: list[NextCell] = []
    explained = 0.0
    open_cells = np.ones(len(candidates), dtype=bool)
    for _ in range(min(count, len(candidates))):
        gains = np.where(open_cells, np.sum([belief.gains() for belief in beliefs], axis=0), 0.0)
        pick = int(gains.argmax())
        if before <= 0.0 or gains[pick] <= 0.0:
            break
        explained += float(gains[pick])
        open_cells[pick] = False  # the same run again would be the same run
        for belief in beliefs:
            belief.learn(pick)
        cell = candidates[pick]
        left = max(0.0, 1.0 - explained / before)
        chosen.append(
            NextCell(
                model=cell.model,
                num_params=cell.num_params,
                train_tokens=cell.train_tokens,
                runs=seeds * len(mixtures),
                flops=seeds * len(mixtures) * train_flops_6nd(cell.num_params, cell.train_tokens),
                expected_interval_width=width * left**0.5,
            )
        )
    return tuple(chosen)


class _Belief:
    """What is believed of one mixture: covariance of its loss at the target (last) and at the candidates."""

    def __init__(
        self, mixture: MixtureAtTarget, candidates: Sequence[_Candidate], curve: Curve, seeds: int
    ) -> None:
        law, samples = mixture.fitted.law, mixture.fitted.samples
        rows = {
            "num_params": np.array([float(each.num_params) for each in candidates]),
            "train_tokens": np.array([float(each.train_tokens) for each in candidates]),
        }
        losses = np.exp(law.bind(law.columns(rows)).log_prediction(law.to_theta(samples)))
        table = _drawn_in(np.column_stack([losses, mixture.losses]))
        self.covariance = np.cov(table, rowvar=False)
        noise = mixture.fitted.record.noise_log or 0.0
        self.noise = (noise * table.mean(axis=0)) ** 2 / seeds
        draws = curve.draws[:, int(np.abs(curve.shares - mixture.share).argmin())]
        shared = float(np.cov(curve.minima, draws)[0, 1])
        variance = float(draws.var())
        target = float(self.covariance[-1, -1])
        # Of the best share's variance, what goes with this loss; per unit of the loss's own variance.
        self.weight = (
            min(shared**2 / variance, float(curve.minima.var())) / target
            if variance > 0 and target > 0
            else 0.0
        )

    def gains(self) -> Floats:
        """Return how much of the best share's variance each candidate would explain."""
        with_target = self.covariance[:-1, -1]
        own = np.diag(self.covariance)[:-1] + self.noise[:-1]
        return np.asarray(self.weight * with_target**2 / np.maximum(own, 1e-300))

    def learn(self, index: int) -> None:
        """Take away what a run at this candidate will tell."""
        column = self.covariance[:, index]
        self.covariance = self.covariance - np.outer(column, column) / (column[index] + self.noise[index])


def _drawn_in(table: Floats) -> Floats:
    low, high = np.quantile(table, TAILS, axis=0)
    return np.asarray(np.clip(table, low, high))


def _plan_of(root: str, plan: str) -> tuple[PretrainConfig, PackedInfo]:
    recipe: dict[str, Any] = read_json(plan_directory(root, plan) / RECIPE_FILE)["recipe"]
    config = PretrainConfig.model_validate({**recipe, "root": root, "name": plan})
    return config, PackedInfo.read(root, config.packed)


def _candidates(config: PretrainConfig, packed: PackedInfo) -> Iterator[_Candidate]:
    """Yield cells of the plan's sizes and of its or somewhat larger budgets that it has not trained and could."""
    trained = {
        (model, tokens) for axis in config.axes for model in axis.models for tokens in axis.train_tokens
    }
    models = sorted({model for model, _ in trained})
    budgets = sorted({tokens for _, tokens in trained})
    sizes = {model: count_parameters(model_of(model), packed.vocab_size).non_embedding for model in models}
    dearest = max(sizes[model] * tokens for model, tokens in trained)
    for model in models:
        for tokens in (*budgets, *(times * budgets[-1] for times in LARGER_BUDGETS)):
            if (model, tokens) in trained or sizes[model] * tokens > DEARER * dearest:
                continue
            alone = config.model_copy(
                update={"axes": (type(config.axes[0])(models=(model,), train_tokens=(tokens,)),)}
            )
            try:
                check_budgets(plan_runs(alone, packed), packed)
            except UserError:  # more passes over a source than the plan allows
                continue
            yield _Candidate(model, sizes[model], tokens)


# --- the plan that trains them ---------------------------------------------------------------------------------


def next_plan(root: str, plan: str, cells: Sequence[NextCell], name: str) -> str:
    """Return a `pretrain_models` configuration file: the plan with these cells added; runs it has are found, not repeated."""
    config, _ = _plan_of(root, plan)
    values: dict[str, Any] = config.model_dump(mode="json", exclude={"placement"}, exclude_none=True)
    values |= {"root": root, "name": name}
    values["axes"] += [{"models": [cell.model], "train_tokens": [cell.train_tokens]} for cell in cells]
    lines = [
        f"# The plan {plan!r} and {len(cells)} cells more. Train them, then fit again with plan = {name!r}:",
        "#   python -m rayjobs.pretrain_models --config THIS FILE",
        f"#   python -m rayjobs.fit_laws --root ROOT --plan {name} --name {name}",
        *(f"{key} = {_toml(value)}" for key, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Return a JSON-like value without nulls as TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
