"""What a study will take, from its file alone: tokens, FLOP, device-hours and money before any artefact exists.

What is counted (runs, steps, parameters, FLOP of training) is exact. What only the world can say (how much text there
is, how long answers are, how fast devices are) comes from `[assumptions]`, and every figure that rests on one says so;
where neither is known there is no figure but the name of the field that would give one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rayjobs.study import Step, StudyConfig
from synth.config import CorpusConfig, RephraseConfig
from synth.errors import UserError
from synth.estimate import BYTES_PER_TOKEN
from synth.model_source import shipped_num_params
from synth.percentage import percentage
from synth.recipe import Recipe, load_recipes
from train.branching import tokens_to_train
from train.config import GeneratorConfig, PackConfig, PretrainConfig, RateSweepConfig
from train.flops import count_parameters, train_flops
from train.generator import run_before_packing
from train.grid import check_budgets, check_placement, plan_runs
from train.packed_files import ShardInfo
from train.rate_sweep import missing_runs
from train.run import RunConfig, RunTemplate
from train.tokens import EvaluationInfo, PackedInfo, SourceInfo
from tune.cells import Choice, trial_run
from tune.config import SearchConfig

TOKENS_PER_WORD = 4 / 3
NOT_MADE = "0" * 16
"""Hash of a packed set that does not exist: runs planned with it are counted, never named."""
ENDLESS_ROWS = 1 << 40
"""Rows of a source of which nothing is known: no run repeats it."""


@dataclass(frozen=True)
class Forecast:
    """What one step will take. None: it depends on something that is neither assumed nor measured."""

    generated_tokens: float | None = 0.0
    trained_tokens: float | None = 0.0
    generation_flops: float | None = 0.0
    training_flops: float | None = 0.0
    generation_device_hours: float | None = 0.0
    training_device_hours: float | None = 0.0
    money: float | None = 0.0
    """In the currency of the study's prices."""
    facts: dict[str, object] = field(default_factory=dict)
    """The same for people, with what each figure rests on."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """How much text there will be; `documents` is None for what was not cut into any."""

    tokens: float
    tokens_per_document: float = 0.0


class StudyForecast:
    """Forecasts of all steps of a study, in its order; `of` gives one."""

    def __init__(self, study: StudyConfig, steps: Sequence[Step]) -> None:
        self._study = study
        self._assumed = study.assumptions
        self._corpora: dict[str, _Text | None] = {}
        self._synthetic: dict[str, dict[str, float] | None] = {}
        self._packed: dict[str, PackedInfo | None] = {}
        self._of = {step.key: self._foreseen(step) for step in steps}

    def _foreseen(self, step: Step) -> Forecast | UserError:
        try:
            return _FORECASTS.get(step.section, _nothing)(self, step.config)
        except UserError as error:
            return error

    def of(self, step: Step) -> Forecast:
        """Return the forecast of a step. Raises UserError when it cannot be done, whatever its inputs will be."""
        found = self._of[step.key]
        if isinstance(found, UserError):
            raise found
        return found

    # --- text ---

    def corpus(self, config: CorpusConfig) -> Forecast:
        """Count a corpus: stated documents of a stated length."""
        assumed = self._assumed.corpora.get(config.name)
        documents = assumed.documents or config.max_documents if assumed else None
        self._corpora[config.name] = None
        if assumed is None or documents is None:
            missing = f"assumptions.corpora.{config.name}" + (".documents" if assumed else "")
            return Forecast(facts={"tokens": f"unknown: give {missing}"})
        if config.max_documents is not None:
            documents = min(documents, config.max_documents)
        tokens = documents * assumed.tokens_per_document
        self._corpora[config.name] = _Text(
            tokens * (1 - config.held_out_fraction), assumed.tokens_per_document
        )
        facts: dict[str, object] = {
            "documents, assumed": documents,
            "tokens, assumed": round(tokens),
            "held out of these": round(tokens * config.held_out_fraction),
        }
        return Forecast(facts=facts)

    def rephrase(self, config: RephraseConfig) -> Forecast:
        """Count a synthetic set: chunks of the corpus, answers of the assumed length, at most the longest allowed."""
        self._synthetic[config.name] = None
        text = self._corpora.get(config.corpus)
        if text is None:
            why = f"unknown: the size of corpora.{config.corpus} is not known"
            return Forecast(None, generation_flops=None, generation_device_hours=None, money=None, facts={"output tokens": why})  # fmt: skip
        documents = text.tokens / text.tokens_per_document
        if config.max_documents is not None:
            documents = min(documents, config.max_documents)
        recipes = load_recipes(config.recipes, config.recipe_overrides)
        assumed = self._assumed.rephrase.get(config.name)
        ratio = assumed.answer_tokens_per_source_token if assumed else None
        work = {
            r.name: _work_of(r, documents * _visits(config, r), text.tokens_per_document, ratio)
            for r in recipes
        }
        prompt = config.samples_per_chunk * sum(each[0] for each in work.values())
        output = config.samples_per_chunk * sum(each[1] for each in work.values())
        kept = assumed.accepted_fraction if assumed else 1.0
        self._synthetic[config.name] = {
            name: config.samples_per_chunk * answer * kept for name, (_, answer) in work.items()
        }
        at_most = "" if assumed else " at most"
        facts: dict[str, object] = {
            "documents": round(documents),
            "prompt tokens": round(prompt),
            f"output tokens{at_most}": round(output),
            f"accepted tokens{at_most}": round(output * kept),
            "output tokens rest on": f"assumptions.rephrase.{config.name}, assumed" if assumed
            else f"the longest answers the recipes allow; assumptions.rephrase.{config.name} would say how long they are",
        }  # fmt: skip
        num_params = assumed.generator_num_params if assumed else None
        num_params = num_params or shipped_num_params(config.engine.model)
        flops = None if num_params is None else 2.0 * num_params * (prompt + output)
        return self._generation(config, output, flops, facts)

    def _generation(
        self, config: RephraseConfig, output_tokens: float, flops: float | None, facts: dict[str, object]
    ) -> Forecast:
        rate, price = config.cost.tokens_per_device_second, config.cost.device_hour_price
        hours = None if rate is None else output_tokens / rate / 3600
        money = None if hours is None or price is None else hours * price
        facts["FLOP (2 N a token)"] = _shown(
            flops, f"assumptions.rephrase.{config.name}.generator_num_params"
        )
        facts["device-hours"] = _shown(hours, f"rephrase.{config.name}.cost.tokens_per_device_second, or run tune_engine first")  # fmt: skip
        if hours is not None:
            facts["device-hours rest on"] = (
                f"{rate:,g} output tokens a device-second, assumed (cost.tokens_per_device_second)"
            )
        if price is not None:
            facts[f"price, {config.cost.currency}"] = _shown(money, None)
        return Forecast(
            output_tokens, generation_flops=flops, generation_device_hours=hours, money=money, facts=facts
        )

    # --- tokens ---

    def pack(self, config: PackConfig) -> Forecast:
        """Count the tokens of every source, and describe the packed set as far as plans of runs need it."""
        tokens = {name: self._source_tokens(source.corpus, source.synthetic, source.recipe) for name, source in config.sources.items()}  # fmt: skip
        vocab = (
            config.tokenizer.vocab_size
            if config.tokenizer.kind == "train"
            else self._assumed.training.vocab_size
        )
        facts: dict[str, object] = {
            f"tokens of {name}": "unknown: what it is packed from is not known"
            if each is None
            else f"{each:,.0f}, assumed"
            for name, each in tokens.items()
        }
        self._packed[config.name] = None
        if vocab is None:
            facts["vocabulary"] = "unknown: give assumptions.training.vocab_size"
            return Forecast(facts=facts)
        self._packed[config.name] = _packed_info(config.sequence_length, vocab, tokens)
        return Forecast(facts=facts)

    def _source_tokens(self, corpus: str | None, synthetic: str | None, recipe: str | None) -> float | None:
        if corpus is not None:
            text = self._corpora.get(corpus)
            return None if text is None else text.tokens
        recipes = self._synthetic.get(synthetic or "")
        if recipes is None:
            return None
        return sum(recipes.values()) if recipe is None else recipes.get(recipe)

    # --- training ---

    def generator(self, config: GeneratorConfig) -> Forecast:
        """Count the training of a stand-in generator."""
        run = run_before_packing(config.model_copy(update={"run": _without_sweep(config.run)}))
        tokens = run.num_steps * run.tokens_per_step
        flops = train_flops(run.model, config.vocab_size, config.sequence_length, tokens)
        return self._training(
            tokens, flops, {"parameters": f"{count_parameters(run.model, config.vocab_size).total:,}"}
        )

    def sweep(self, config: RateSweepConfig) -> Forecast:
        """Count the runs a sweep of learning rates starts with; it adds some where the best lies at an edge."""
        packed = self._packed.get(config.packed)
        if packed is None:
            return _unknown_training(config.packed)
        runs = [each.run for each in missing_runs(config, packed, {})]
        check_placement(runs, packed, config.placement)
        tokens = {run.run_id: run.num_steps * run.tokens_per_step for run in runs}
        flops = sum(_flops(run, packed, tokens[run.run_id]) for run in runs)
        return self._training(sum(tokens.values()), flops, {"runs at first": len(runs)})

    def pretrain(self, config: PretrainConfig) -> Forecast:
        """Count every run of a plan; budgets of a trunk share what they have in common."""
        packed = self._packed.get(config.packed)
        if packed is None:
            return _unknown_training(config.packed)
        planned = plan_runs(config.model_copy(update={"run": _without_sweep(config.run)}), packed)
        runs = [each.run for each in planned]
        check_placement(runs, packed, config.placement)
        own = tokens_to_train(runs)
        flops = sum(_flops(run, packed, own[run.run_id]) for run in runs)
        facts: dict[str, object] = {
            "runs": len(runs),
            "steps": sum(own[run.run_id] // run.tokens_per_step for run in runs),
        }
        if any(run.branching for run in runs):
            facts["tokens saved by branching"] = sum(
                run.num_steps * run.tokens_per_step for run in runs
            ) - sum(own.values())
        warnings = _too_many_passes(lambda: check_budgets(planned, packed))
        return replace(self._training(sum(own.values()), flops, facts), warnings=warnings)

    def search(self, config: SearchConfig) -> Forecast:
        """Count every trial of a search; those that a plan has trained already cost nothing, so this is the most."""
        packed = self._packed.get(config.packed)
        if packed is None:
            return _unknown_training(config.packed)
        config = config.model_copy(update={"run": _without_sweep(config.run)})
        natural = Choice((0.0,) * len(config.synthetic))  # what a run takes does not depend on its mixture
        runs = [trial_run(config, packed, cell, natural) for cell in config.cells]
        check_placement(runs, packed, config.placement)
        trials = config.trials_per_cell
        each = {run.run_id: trials * run.num_steps * run.tokens_per_step for run in runs}
        flops = sum(_flops(run, packed, each[run.run_id]) for run in runs)
        tokens, facts = sum(each.values()), {"cells": len(runs), "trials at most": trials * len(runs)}
        if config.max_tokens is not None and config.max_tokens < tokens:
            flops, tokens = flops * config.max_tokens / tokens, config.max_tokens
        return self._training(tokens, flops, dict(facts))

    def _training(self, tokens: float, flops: float, facts: dict[str, object]) -> Forecast:
        assumed, price = self._assumed.training, self._study.prices.training_device_hour
        speed = assumed.flops_per_device_second
        hours = None if speed is None else flops / speed / 3600
        money = None if hours is None or price is None else hours * price
        facts |= {"tokens": round(tokens), "FLOP": float(f"{flops:.3g}")}
        facts["device-hours"] = _shown(hours, "assumptions.training.peak_flops_per_device_second and model_flops_utilization")  # fmt: skip
        if hours is not None:
            assert assumed.model_flops_utilization is not None  # it is part of the speed
            facts["device-hours rest on"] = (
                f"{percentage(assumed.model_flops_utilization)} of {assumed.peak_flops_per_device_second:.3g} FLOP/s a device, assumed"
            )
        if price is not None:
            facts[f"price, {self._study.prices.currency}"] = _shown(money, None)
        return Forecast(
            trained_tokens=tokens, training_flops=flops, training_device_hours=hours, money=money, facts=facts
        )


_FORECASTS: dict[str, Callable[[StudyForecast, Any], Forecast]] = {
    "corpora": StudyForecast.corpus,
    "generators": StudyForecast.generator,
    "rephrase": StudyForecast.rephrase,
    "pack": StudyForecast.pack,
    "learning_rates": StudyForecast.sweep,
    "pretrain": StudyForecast.pretrain,
    "search": StudyForecast.search,
}


def _nothing(study: StudyForecast, config: Any) -> Forecast:
    return Forecast(facts={"device-hours": "none: it runs on the driver, in seconds to minutes"})


# --- pieces ----------------------------------------------------------------------------------------------------


def _shown(value: float | None, give: str | None) -> object:
    if value is not None:
        return float(f"{value:.4g}")
    return f"unknown: give {give}" if give else "unknown"


def _visits(config: RephraseConfig, recipe: Recipe) -> float:
    """Return the fraction of the documents that go through a recipe; routing by quality is not foreseen."""
    total = sum(config.recipe_weights.values())
    if not total:
        return 1.0
    return min(1.0, config.recipes_per_document * config.recipe_weights.get(recipe.name, 0.0) / total)


def _work_of(recipe: Recipe, documents: float, length: float, ratio: float | None) -> tuple[float, float]:
    """Return (prompt tokens, answer tokens) of a recipe over documents of `length` tokens."""
    longest = recipe.chunking.max_length
    per_unit = {"words": TOKENS_PER_WORD, "characters": 1 / BYTES_PER_TOKEN}.get(recipe.chunking.unit, 1.0)
    chunks_each = 1 if longest is None else math.ceil(length / (longest * per_unit))
    chunk, chunks = length / chunks_each, documents * chunks_each
    frame = sum(len(text) for message in recipe.messages for text in message.pieces()[::2]) / BYTES_PER_TOKEN
    data = (
        min(chunk, recipe.max_input_tokens)
        if "document" in recipe.placeholders
        else 2.0 * recipe.num_keywords
    )
    longest_answers = float(chunks * recipe.sampling.max_output_tokens)
    answer = longest_answers if ratio is None else min(longest_answers, documents * length * ratio)
    return chunks * (frame + data), answer


def _packed_info(sequence_length: int, vocab_size: int, tokens: Mapping[str, float | None]) -> PackedInfo:
    def rows(count: float | None) -> int:
        return ENDLESS_ROWS if count is None else max(0, int(count - 1) // sequence_length)

    nothing = ShardInfo(num_tokens=0, sha256="")
    sources = {
        name: SourceInfo(
            num_rows=rows(count), num_tokens=int(count or 0), num_documents=0, num_bytes=0, num_dropped_tokens=0,
            num_altered_documents=0, shards=(),
        )
        for name, count in tokens.items()
    }  # fmt: skip
    evaluation: dict[str, EvaluationInfo] = {}
    return PackedInfo(
        hash=NOT_MADE, sequence_length=sequence_length, vocab_size=vocab_size, eot_id=0, tokenizer_hash=NOT_MADE,
        sources=sources, evaluation=evaluation, evaluation_shard=nothing, domains_left_out={},
    )  # fmt: skip


def _without_sweep(run: RunTemplate) -> RunTemplate:
    """Return a template that asks no sweep for its rate, which is still to be found and changes nothing that is counted."""
    return run.model_copy(update={"optimizer": run.optimizer.model_copy(update={"learning_rates": None})})


def _flops(run: RunConfig, packed: PackedInfo, tokens: int) -> float:
    return train_flops(run.model, packed.vocab_size, run.sequence_length, tokens)


def _unknown_training(packed: str) -> Forecast:
    return Forecast(
        trained_tokens=None, training_flops=None, training_device_hours=None, money=None,
        facts={"tokens": f"unknown: the vocabulary of pack.{packed} is not known"},
    )  # fmt: skip


def _too_many_passes(check: Callable[[], Any]) -> tuple[str, ...]:
    """Return the complaint of a budget that passes over a source too often: a warning, because sizes are assumed."""
    try:
        check()
    except UserError as error:
        return (f"with the assumed sizes, {str(error).rstrip('.')}",)
    return ()
