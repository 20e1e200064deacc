"""Which engine settings make most accepted tokens per second and device: trials on a real sample, and what they taught.

A trial rephrases the same few documents on an engine of its own, exactly as `rephrase_corpus` would, verdicts and
Parquet included. What was found is kept under `tunings/` by model, device, recipes and the lengths of the documents,
and `rephrase_corpus` takes it where its own configuration leaves a setting open.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from upath import UPath

from synth.config import RephrasePlacement
from synth.engines.search import EngineSearch, TuneEngineConfig
from synth.engines.tunings import (
    TUNINGS,
    EngineSettings,
    Trial,
    Tuning,
    engine_identity,
    length_histogram,
    recipe_hashes,
)
from synth.errors import UserError, first_line
from synth.identity import content_hash, provenance
from synth.ledger import LedgerEntry, Tally, summarise
from synth.plan import Plan
from synth.rephrase import RephraseWork, open_work
from synth.storage import list_names, study_path
from synth.worker import RephraseWorker

SAMPLE_PARTS = 8
"""Parts a sample is divided into, so that a trial crosses part boundaries as a job does."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|low on memory|No available memory|free memory|KV cache (?:memory|blocks)"
    r"|larger than the available",
    re.IGNORECASE,
)


# --- the sample ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleWork(RephraseWork):
    """Some documents of some parts of a work, written to a directory of its own."""

    scratch: str = ""

    @property
    def directory(self) -> UPath:
        """The scratch directory."""
        return UPath(self.scratch)

    def read_part(self, part: int) -> pa.Table:
        """Return the first documents of an input part."""
        return super().read_part(part).slice(0, self.documents_per_part)


def sample_of(work: RephraseWork, num_documents: int) -> SampleWork:
    """Return about `num_documents` documents of a work, taken evenly from its parts; it has nowhere to write yet."""
    count = min(SAMPLE_PARTS, work.num_parts, num_documents)
    chosen = tuple(work.sources[number * work.num_parts // count] for number in range(count))
    return SampleWork(
        work.config, work.recipes, work.model, work.corpus_hash, chosen, None, -(-num_documents // count), work.held_out,
        work.other_parents,
    )  # fmt: skip


# --- one trial ----------------------------------------------------------------------------------------------------


def placement_with(placement: RephrasePlacement, settings: EngineSettings) -> RephrasePlacement:
    """Return a placement with a trial's settings in it."""
    gpus = float(settings.tensor_parallel * placement.pipeline_parallel)
    return placement.model_copy(
        update={
            "max_num_seqs": settings.max_num_seqs, "max_num_batched_tokens": settings.max_num_batched_tokens,
            "gpu_memory_utilization": settings.gpu_memory_utilization, "tensor_parallel": settings.tensor_parallel,
            "gpus_per_engine": gpus if placement.gpus_per_engine >= 1 else placement.gpus_per_engine, "use_tuning": False,
        }
    )  # fmt: skip


def run_trial(work: SampleWork, settings: EngineSettings, timeout_seconds: float) -> Trial:
    """Rephrase the sample under these settings, in this process. What can go wrong is in the trial's status."""
    config = work.config.model_copy(
        update={
            "placement": placement_with(work.config.placement, settings),
            "engine": work.config.engine.model_copy(update={"speculative": settings.speculative}),
        }
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            trial_work = dataclasses.replace(work, config=config, scratch=scratch)
            entries, seconds, last_words = asyncio.run(_make_sample(trial_work, timeout_seconds))
    except TimeoutError:
        return failed_trial(settings, f"not done within {timeout_seconds:g} s")
    except (UserError, OSError) as error:
        return failed_trial(settings, first_line(error))
    if last_words:  # it was started again and went on, and a job must not count on that
        return failed_trial(settings, f"the engine died at work: {last_words}")
    return _measured(work, settings, config.placement, entries, seconds)


def failed_trial(settings: EngineSettings, why: str) -> Trial:
    """Return the trial of settings that do not work; running out of memory, which larger ones would too, is told from the
    rest by the words for it."""
    status: Literal["out_of_memory", "failed"] = "out_of_memory" if _OUT_OF_MEMORY.search(why) else "failed"
    return Trial(settings=settings, status=status, detail=why)


async def _make_sample(work: SampleWork, timeout_seconds: float) -> tuple[list[LedgerEntry], float, str]:
    worker = RephraseWorker(work)
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            entries = await worker.make_parts(range(work.num_parts))
        return entries, time.monotonic() - began, worker.last_words
    finally:
        await worker.close()


def _measured(
    work: SampleWork,
    settings: EngineSettings,
    placement: RephrasePlacement,
    entries: Sequence[LedgerEntry],
    seconds: float,
) -> Trial:
    devices = placement.gpus_per_engine or 1.0
    summary = summarise(entries)
    started = summary["engine_start_seconds"] / devices
    at_work = seconds - started
    hashes = {recipe.name: recipe.hash for recipe in work.recipes}
    return Trial(
        settings=settings, status="measured", engine_start_seconds=round(started, 3), seconds=round(at_work, 3),
        accepted_tokens_per_device_second=summary["accepted_tokens"] / at_work / devices,
        output_tokens_per_device_second=summary["completion_tokens"] / at_work / devices,
        recipes={hashes[name]: Tally.model_validate(tally) for name, tally in summary["recipes"].items()},
    )  # fmt: skip


# --- the search ---------------------------------------------------------------------------------------------------

SUGGESTIONS = 32
"""Times Optuna is asked for settings nobody has tried, before the first untried ones in order are taken."""


class SettingsSearch:
    """Optuna over the candidates: ask for settings, tell what they did; what must run out of memory is not tried."""

    def __init__(self, search: EngineSearch, placement: RephrasePlacement, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._candidates: dict[str, Sequence[Any]] = {
            "max_num_seqs": search.max_num_seqs, "max_num_batched_tokens": search.max_num_batched_tokens,
            "gpu_memory_utilization": search.gpu_memory_utilization if placement.gpus_per_engine else (None,),
            "tensor_parallel": search.tensor_parallel, "speculative": search.speculative,
        }  # fmt: skip
        self._choices = {
            name: optuna.distributions.CategoricalDistribution(tuple(range(len(values))))
            for name, values in self._candidates.items()
        }
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=6)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        # The middle of every range first, with each way to speculate: what is found is compared with the usual.
        middle = {name: len(values) // 2 for name, values in self._candidates.items()}
        self._first = [middle | {"speculative": number} for number in range(len(search.speculative))]
        self._tried: dict[tuple[int, ...], Trial] = {}
        self.left = min(search.trials, math.prod(map(len, self._candidates.values())))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials so far, in order."""
        return tuple(self._tried.values())

    def ask(self) -> EngineSettings | None:
        """Return settings to try next, None when there are no more."""
        while self.left:
            chosen = self._suggest()
            settings = EngineSettings(
                **{
                    name: self._candidates[name][at]
                    for name, at in zip(self._candidates, chosen, strict=True)
                }
            )
            hopeless = [trial for trial in self.trials if trial.status == "out_of_memory"]
            if not any(settings.needs_at_least(trial.settings) for trial in hopeless):
                self._asked = chosen
                return settings
            self._asked = chosen
            self.tell(
                Trial(settings=settings, status="skipped", detail="settings that need less ran out of memory")
            )
        return None

    def tell(self, trial: Trial) -> None:
        """Record what the settings asked for last did."""
        self.left -= 1
        self._tried[self._asked] = trial
        value = trial.accepted_tokens_per_device_second
        state = self._optuna.trial.TrialState
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state.PRUNED if value is None else state.COMPLETE, value=value,
                params=dict(zip(self._candidates, self._asked, strict=True)), distributions=self._choices,
            )
        )  # fmt: skip

    def _suggest(self) -> tuple[int, ...]:
        """Return positions of candidates that have not been tried."""
        if self._first:
            first = self._first.pop(0)
            return tuple(first[name] for name in self._candidates)
        for _ in range(SUGGESTIONS):
            asked = self._study.ask(self._choices)
            chosen = tuple(asked.params[name] for name in self._candidates)
            self._study.tell(
                asked, state=self._optuna.trial.TrialState.FAIL
            )  # the result comes in by add_trial
            if chosen not in self._tried:
                return chosen
        everything = itertools.product(*(range(len(values)) for values in self._candidates.values()))
        return next(chosen for chosen in everything if chosen not in self._tried)


def choose(trials: Iterable[Trial], tolerance: float) -> tuple[Trial, Trial] | None:
    """Return (the trial to keep, the fastest trial): within `tolerance` of the fastest, the least memory wins."""
    measured = [trial for trial in trials if trial.accepted_tokens_per_device_second]
    if not measured:
        return None
    fastest = max(measured, key=_rate)
    close = [trial for trial in measured if _rate(trial) >= _rate(fastest) * (1 - tolerance)]
    return min(close, key=lambda trial: (trial.settings.memory_demand(), -_rate(trial))), fastest


def _rate(trial: Trial) -> float:
    return trial.accepted_tokens_per_device_second or 0.0


# --- what it taught -----------------------------------------------------------------------------------------------


def make_tunings(work: RephraseWork, device: str, trials: Sequence[Trial], tolerance: float) -> list[Tuning]:
    """Return the best settings for every way to speculate and every number of GPUs a layer was spread over, fastest first.

    Raises UserError when no trial was measured, with the engine's words.
    """
    tunings = []
    histogram = length_histogram(work.sources[0])
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        kind = content_hash([trial.settings.speculative, trial.settings.tensor_parallel])
        groups.setdefault(kind, []).append(trial)
    for group in groups.values():
        best = choose(group, tolerance)
        if best is None:
            continue
        chosen, fastest = best
        engine = work.config.engine.model_copy(update={"speculative": chosen.settings.speculative})
        tunings.append(
            Tuning(
                model_hash=work.model.hash, device=device, engine=engine_identity(engine), recipes=recipe_hashes(work.recipes),
                length_histogram=histogram, settings=chosen.settings, accepted_tokens_per_device_second=_rate(chosen),
                fastest_accepted_tokens_per_device_second=_rate(fastest), trials=tuple(trials), provenance=provenance(),
            )
        )  # fmt: skip
    if not tunings:
        tried = [trial.detail for trial in trials if trial.detail and trial.status != "skipped"]
        said = tried[-1] if tried else "no answer was accepted"
        raise UserError(
            f"tune_engine: none of {len(trials)} settings worked ({said}): widen search's candidates towards less memory, or "
            "look at the recipe's thresholds if every answer was rejected."
        )
    return sorted(tunings, key=lambda tuning: -tuning.accepted_tokens_per_device_second)


def plan_tuning(config: TuneEngineConfig) -> Plan:
    """Return what `tune_engine` would do. Raises what `open_work` raises."""
    work = open_work(config)
    search = SettingsSearch(config.search, config.placement, config.seed)
    return Plan(
        "tune_engine", str(study_path(config.root, TUNINGS)), False,
        {"trials": search.left, "documents per trial": config.search.sample_documents, "model": config.engine.model,
         "recipes": ", ".join(recipe.name for recipe in work.recipes),
         "settings known": len(list_names(study_path(config.root, TUNINGS), ".json"))},
    )  # fmt: skip
