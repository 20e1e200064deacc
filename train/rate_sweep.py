"""A sweep of learning rates: which runs it takes, when it is done, and what it found. No Ray, no torch.

Every size starts with the same few rates, each a fixed multiple of the one below, around the rate its template gives it.
While the lowest loss lies at one end, the grid is extended past that end. What is tried depends on nothing but the
records of the runs, so a sweep that was killed asks for the same runs again, finds their records, and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish, is_finished
from synth.plan import Plan
from synth.storage import exists, write_json_atomic
from train.config import RateSweepConfig
from train.flops import count_parameters, train_flops
from train.grid import PlannedRun, check_budgets, check_placement, count_statuses, device_hours, run_of
from train.hyperparameters import middle_rate
from train.rate_fit import CONFIDENCE, edge_of, fit_best_rate, losses_of
from train.rates import MADE_BY, RATES_FILE, BestRate, RateLaw, RateTrial, SweptRates, rates_directory
from train.record import RunRecord, records_of
from train.run import RunTemplate, TemplateOptimizer
from train.sizes import model_of
from train.tokens import PackedInfo
from train.trackers import check_trackers

KIND = "learning_rates"

EXTENSION = 2
"""Rates added at once past the end that the lowest loss lies at."""


def plan_sweep(config: RateSweepConfig) -> Plan:
    """Return what `sweep_learning_rates` would do; nothing is written.

    Raises UserError for an unknown size or source, a budget below one step or beyond the corpus, or runs that do not fit
    their placement; IncompleteArtefact without a packed set; IdentityMismatch when the name is taken by another sweep.
    """
    packed = PackedInfo.read(config.root, config.packed)
    first = [each for model in dict.fromkeys(config.models) for each in _first_runs(config, packed, model)]
    check_placement([each.run for each in first], packed, config.placement)
    check_trackers(config.root, config.placement)
    check_budgets(first, packed)
    directory = rates_directory(config.root, config.name)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, config.identity(), {"packed": packed.hash})
    records = read_sweep_records(config, packed)
    missing = missing_runs(config, packed, records)
    tokens = {each.run.run_id: each.run.num_steps * each.run.tokens_per_step for each in missing}
    flops = sum(
        train_flops(each.run.model, packed.vocab_size, each.run.sequence_length, tokens[each.run.run_id])
        for each in missing
    )
    facts: dict[str, object] = {
        "runs missing": len(missing),
        "runs at most": len(dict.fromkeys(config.models)) * config.max_rates_per_size * len(config.seeds),
        "tokens missing": sum(tokens.values()),
        "FLOP missing": float(f"{flops:.3g}"),
    }
    for model in dict.fromkeys(config.models):
        rates = [each.run.optimizer.peak_learning_rate for each in first if each.model == model]
        facts[f"first rates of {model}"] = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(rates))
    facts |= count_statuses(records.values())
    if missing:
        facts["device-hours, estimated"] = device_hours(missing, tokens, config.root, config.placement)
    finished = is_finished(directory) and not missing
    return Plan(MADE_BY, str(directory), finished, facts, tuple(_warnings(config)))


def claim_sweep(config: RateSweepConfig, packed: PackedInfo) -> str:
    """Make `learning_rates/<name>` this sweep's own and return its identity. Raises IdentityMismatch."""
    directory = rates_directory(config.root, config.name)
    return claim_directory(directory, KIND, config.identity(), {"packed": packed.hash})


def read_sweep_records(config: RateSweepConfig, packed: PackedInfo) -> dict[str, RunRecord]:
    """Return the records there are of the runs a sweep could take, by run id."""
    found: dict[str, RunRecord] = {}
    while asked := missing_runs(config, packed, found):
        new = records_of(config.root, (each.run.run_id for each in asked))
        found |= new
        if len(new) < len(asked):
            break
    return found


def missing_runs(
    config: RateSweepConfig, packed: PackedInfo, records: Mapping[str, RunRecord]
) -> list[PlannedRun]:
    """Return the runs without a record that every size needs next; none when the sweep is done."""
    return [
        each
        for model in dict.fromkeys(config.models)
        for each in _runs(config, packed, model, records)
        if each.run.run_id not in records
    ]


def finish_sweep(
    config: RateSweepConfig, packed: PackedInfo, identity: str, records: Mapping[str, RunRecord]
) -> SweptRates:
    """Write what was found, then the manifest. Raises UserError when a size has no rate that trained to its end."""
    sizes = tuple(_best_rate(config, packed, model, records) for model in dict.fromkeys(config.models))
    rates = SweptRates(
        name=config.name,
        hash=identity,
        train_tokens=config.train_tokens,
        template=config.run,
        sizes=sizes,
        law=fit_rate_law(sizes),
    )
    directory = rates_directory(config.root, config.name)
    write_json_atomic(directory / RATES_FILE, rates.model_dump(mode="json"))
    finish(directory, identity, rates={each.model: each.learning_rate for each in sizes})
    return rates


def fit_rate_law(sizes: Sequence[BestRate]) -> RateLaw | None:
    """Return the straight line of ln(best rate) in ln(N) through the enclosed optima; None with fewer than two."""
    enclosed = sorted(
        (each for each in sizes if each.edge is None), key=lambda each: each.num_params_non_embedding
    )
    if len(enclosed) < 2:
        return None
    x = np.log([each.num_params_non_embedding for each in enclosed])
    y = np.log([each.learning_rate for each in enclosed])
    deviation = x - x.mean()
    exponent = float(deviation @ y / (deviation @ deviation))
    level = float(y.mean() - exponent * x.mean())
    low = high = None
    if (degrees := len(x) - 2) > 0:
        residual = y - level - exponent * x
        error = math.sqrt(float(residual @ residual) / degrees / float(deviation @ deviation))
        half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
        low, high = exponent - half, exponent + half
    return RateLaw(
        coefficient=math.exp(level),
        exponent=exponent,
        exponent_low=low,
        exponent_high=high,
        sizes=tuple(each.model for each in enclosed),
    )


def sentences(rates: SweptRates) -> Iterator[str]:
    """Say what a sweep found, one sentence for each size, and what to make of an optimum that is not enclosed."""
    for best in rates.sizes:
        interval = f"[{best.low:.3g}, {best.high:.3g}]" if best.low and best.high else "no interval"
        yield f"{best.model}: best learning rate {best.learning_rate:.3g} ({interval}), loss {best.loss_nats_per_token:.4f}"
        if best.edge is not None:
            yield (
                f"warning: the best rate of {best.model} is the {best.edge} of the {len(losses_of(best.trials))} that trained to "
                "their end, so the best may lie beyond: raise max_rates_per_size under another name"
            )
    if rates.law is not None:
        yield f"across sizes: {rates.law.coefficient:.3g} N^{rates.law.exponent:.3f}"


# --- one size --------------------------------------------------------------------------------------------------


def _first_runs(config: RateSweepConfig, packed: PackedInfo, model: str) -> list[PlannedRun]:
    half = config.rates_per_size // 2
    return [
        _run(config, packed, model, offset, seed)
        for offset in range(-half, half + 1)
        for seed in config.seeds
    ]


def _runs(
    config: RateSweepConfig, packed: PackedInfo, model: str, records: Mapping[str, RunRecord]
) -> list[PlannedRun]:
    """Return the runs of a size as far as the records tell: the first ones, then each extension they call for."""
    low, high = -(config.rates_per_size // 2), config.rates_per_size // 2
    runs = _first_runs(config, packed, model)
    while all(each.run.run_id in records for each in runs):
        room = min(EXTENSION, config.max_rates_per_size - (high - low + 1))
        trials = [_trial(records[each.run.run_id]) for each in runs]
        edge = edge_of(trials)
        if not losses_of(trials) and any(each.status == "diverged" for each in trials):
            edge = "lowest"  # all rates are too high
        if edge is None or room < 1:
            return runs
        more = range(low - room, low) if edge == "lowest" else range(high + 1, high + room + 1)
        low, high = min(low, more[0]), max(high, more[-1])
        runs += [_run(config, packed, model, offset, seed) for offset in more for seed in config.seeds]
    return runs


def _run(config: RateSweepConfig, packed: PackedInfo, model: str, offset: int, seed: int) -> PlannedRun:
    shape = model_of(model)
    num_params = count_parameters(shape, packed.vocab_size).non_embedding
    rate = middle_rate(config.run, num_params, config.train_tokens) * config.rate_ratio**offset
    template = _with_rate(config.run, float(f"{rate:.4g}"))
    run = run_of(
        template, config.packed, packed, shape, config.train_tokens, config.mixture, seed, root=config.root
    )
    return PlannedRun(run, model, None, 0.0)


def _with_rate(template: RunTemplate, rate: float) -> RunTemplate:
    optimizer = template.optimizer.model_dump() | {
        "peak_learning_rate": rate,
        "reference_num_params": None,
        "learning_rate_rule": None,
    }
    return template.model_copy(update={"optimizer": TemplateOptimizer(**optimizer)})


def _trial(record: RunRecord) -> RateTrial:
    whole = record.status == "complete" and record.final is not None
    return RateTrial(
        learning_rate=record.config.optimizer.peak_learning_rate,
        seed=record.config.seed,
        run_id=record.run_id,
        status=record.status,
        loss_nats_per_token=record.final.loss_nats_per_token if whole and record.final else None,
        reason=record.reason,
    )


def _best_rate(
    config: RateSweepConfig, packed: PackedInfo, model: str, records: Mapping[str, RunRecord]
) -> BestRate:
    trials = tuple(_trial(records[each.run.run_id]) for each in _runs(config, packed, model, records))
    trials = tuple(sorted(trials, key=lambda each: (each.learning_rate, each.seed)))
    fit = fit_best_rate(trials)
    if fit is None:
        reasons = "; ".join(f"{each.learning_rate:.3g}: {each.reason}" for each in trials if each.reason)
        raise UserError(
            f"no learning rate of {model} trained to its end with every seed ({reasons}): mend what stopped them, delete their "
            "records under runs/, and sweep again."
        )
    fields: dict[str, Any] = vars(fit)
    return BestRate(
        model=model,
        num_params_non_embedding=count_parameters(model_of(model), packed.vocab_size).non_embedding,
        confidence=CONFIDENCE,
        trials=trials,
        **fields,
    )


def _warnings(config: RateSweepConfig) -> Iterator[str]:
    if len(config.seeds) == 1:
        yield "one seed: the interval of a best rate is that of the parabola, and says nothing of other seeds"
    if config.rates_per_size == 3:
        yield "rates_per_size = 3: a parabola goes through three losses exactly, so no best rate will have an interval"
