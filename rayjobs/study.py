"""A study: all steps of the flow in one file, their order, and the checks that need more than one step to see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from rayjobs import (
    build_corpus,
    fit_laws,
    pack_tokens,
    pretrain_models,
    recommend_mixture,
    rephrase_corpus,
    search_mixture,
    sweep_learning_rates,
    train_generator,
    write_report,
)
from rayjobs.cli import Job
from synth.config import CorpusConfig, JobConfig, Name, RephraseConfig
from synth.errors import UserError
from synth.plan import Plan
from train.config import GeneratorConfig, PackConfig, PretrainConfig, RateSweepConfig
from train.sizes import SIZES
from tune.config import LawsConfig, RecommendConfig, ReportConfig, SearchConfig

GENERATOR_PREFIX = "root:generators/"


class StudyConfig(JobConfig):
    """`run_study`: every step of a study from one file; finished steps are skipped, the rest is resumed."""

    corpora: dict[Name, CorpusConfig] = Field(min_length=1)
    """`build_corpus` for each, by corpus name."""
    generators: dict[Name, GeneratorConfig] = Field(default_factory=dict)
    """`train_generator` for each; a study with a real instruct model has none."""
    rephrase: dict[Name, RephraseConfig] = Field(default_factory=dict)
    """`rephrase_corpus` for each, by name of the synthetic set."""
    pack: dict[Name, PackConfig] = Field(default_factory=dict)
    """`pack_tokens` for each, by name of the packed set."""
    learning_rates: dict[Name, RateSweepConfig] = Field(default_factory=dict)
    """`sweep_learning_rates` for each, by name of the sweep; plans take it with `run.optimizer.learning_rates`."""
    pretrain: dict[Name, PretrainConfig] = Field(default_factory=dict)
    """`pretrain_models` for each, by plan name."""
    search: dict[Name, SearchConfig] = Field(default_factory=dict)
    """`search_mixture` for each, by search name."""
    laws: dict[Name, LawsConfig] = Field(default_factory=dict)
    """`fit_laws` for each, by name of the fit."""
    recommend: dict[Name, RecommendConfig] = Field(default_factory=dict)
    """`recommend_mixture` for each, by name of the recommendation."""
    report: dict[Name, ReportConfig] = Field(default_factory=dict)
    """`write_report` for each, by directory name."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_steps(cls, values: Any) -> Any:
        """Give every step its name (its key in the file) and the study's root."""
        if not isinstance(values, dict):
            return values
        root = values.get("root", cls.model_fields["root"].default)
        return {
            **values,
            **{section: _named(values[section], section, root) for section in SECTIONS if section in values},
        }


SECTIONS: dict[str, Job[Any]] = {
    "corpora": build_corpus.JOB,
    "generators": train_generator.JOB,
    "rephrase": rephrase_corpus.JOB,
    "pack": pack_tokens.JOB,
    "learning_rates": sweep_learning_rates.JOB,
    "pretrain": pretrain_models.JOB,
    "search": search_mixture.JOB,
    "laws": fit_laws.JOB,
    "recommend": recommend_mixture.JOB,
    "report": write_report.JOB,
}
"""Sections of a study file in the order of the flow, and the job each runs."""


def _named(tables: Any, section: str, root: str) -> Any:
    if not isinstance(tables, dict):
        return tables
    for name, table in tables.items():
        if isinstance(table, dict) and (given := {"name", "root"} & table.keys()):
            field = sorted(given)[0]
            raise ValueError(f"{section}.{name}.{field} is set by the study itself: remove it")
    return {
        name: {**table, "name": name, "root": root} if isinstance(table, dict) else table
        for name, table in tables.items()
    }


@dataclass(frozen=True)
class Step:
    """One step of a study: a job and its configuration."""

    job: Job[Any]
    config: Any

    @property
    def title(self) -> str:
        """The step's job and artefact, as it is called in progress lines."""
        return f"{self.job.name} {self.config.name}"

    def plan(self) -> Plan:
        """Return what is left to do. Raises UserError when it cannot be done, IncompleteArtefact when it must wait."""
        plan = self.job.plan(self.config)
        assert isinstance(plan, Plan), "only a whole study has several plans"
        return plan


def steps_of(study: StudyConfig) -> tuple[Step, ...]:
    """Return the steps in the order they run."""
    return tuple(
        Step(job, config) for section, job in SECTIONS.items() for config in getattr(study, section).values()
    )


def check_references(study: StudyConfig) -> None:
    """Raise UserError, with one sentence per mistake, when a step refers to something no step of the study makes."""
    mistakes = [*_data_mistakes(study), *_training_mistakes(study), *_result_mistakes(study)]
    if mistakes:
        raise UserError("; ".join(mistakes))


def _unknown(where: str, names: Any, known: Any, section: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            yield f"{where} = {name!r} is not in [{section}] (there: {there})"


def _data_mistakes(study: StudyConfig) -> Iterator[str]:
    for name, corpus in study.corpora.items():
        yield from _unknown(f"corpora.{name}.disjoint_from", corpus.disjoint_from, study.corpora, "corpora")
    for name, generator in study.generators.items():
        yield from _unknown(f"generators.{name}.corpus", [generator.corpus], study.corpora, "corpora")
        yield from _unknown(f"generators.{name}.model", [generator.model], SIZES, "the table of sizes")
    for name, rephrase in study.rephrase.items():
        yield from _unknown(f"rephrase.{name}.corpus", [rephrase.corpus], study.corpora, "corpora")
        model = rephrase.engine.model
        if model.startswith(GENERATOR_PREFIX):
            generator_name = model.removeprefix(GENERATOR_PREFIX)
            yield from _unknown(
                f"rephrase.{name}.engine.model", [generator_name], study.generators, "generators"
            )
    for name, pack in study.pack.items():
        yield from _unknown(f"pack.{name}.evaluate_on", pack.evaluate_on, study.corpora, "corpora")
        for source_name, source in pack.sources.items():
            where = f"pack.{name}.sources.{source_name}"
            yield from _unknown(
                f"{where}.corpus", [source.corpus] if source.corpus else [], study.corpora, "corpora"
            )
            yield from _unknown(
                f"{where}.synthetic",
                [source.synthetic] if source.synthetic else [],
                study.rephrase,
                "rephrase",
            )


def _training_mistakes(study: StudyConfig) -> Iterator[str]:
    for name, sweep in study.learning_rates.items():
        where = f"learning_rates.{name}"
        yield from _unknown(f"{where}.packed", [sweep.packed], study.pack, "pack")
        yield from _unknown(f"{where}.models", sweep.models, SIZES, "the table of sizes")
        if sweep.packed in study.pack:
            sources = study.pack[sweep.packed].sources
            yield from _unknown(f"{where}.mixture", sweep.mixture, sources, f"pack.{sweep.packed}.sources")
    for section, steps in (("pretrain", study.pretrain), ("search", study.search)):
        for name, step in steps.items():
            where = f"{section}.{name}"
            yield from _unknown(f"{where}.packed", [step.packed], study.pack, "pack")
            if (rates := step.run.optimizer.learning_rates) is not None:
                field = f"{where}.run.optimizer.learning_rates"
                yield from _unknown(field, [rates], study.learning_rates, "learning_rates")
            sources = study.pack[step.packed].sources if step.packed in study.pack else {}
            if sources:
                yield from _unknown(
                    f"{where}.natural", [step.natural], sources, f"pack.{step.packed}.sources"
                )
                yield from _unknown(
                    f"{where}.synthetic", step.synthetic, sources, f"pack.{step.packed}.sources"
                )
            blocks = step.axes if isinstance(step, PretrainConfig) else ()
            models = [model for axis in blocks for model in axis.models]
            cells = step.cells if isinstance(step, SearchConfig) else ()
            yield from _unknown(
                f"{where} model", [*models, *(cell.model for cell in cells)], SIZES, "the table of sizes"
            )


def _result_mistakes(study: StudyConfig) -> Iterator[str]:
    for name, laws in study.laws.items():
        if laws.runs is None:
            yield from _unknown(f"laws.{name}.plan", [laws.plan], study.pretrain, "pretrain")
    for name, recommend in study.recommend.items():
        yield from _unknown(f"recommend.{name}.laws", [recommend.laws], study.laws, "laws")
        yield from _unknown(f"recommend.{name}.searches", recommend.searches, study.search, "search")
    for name, report in study.report.items():
        for field, names, known in (
            ("plan", [report.plan], study.pretrain),
            ("laws", [report.laws], study.laws),
            ("searches", report.searches, study.search),
            ("recommendations", report.recommendations, study.recommend),
            ("synthetic", report.synthetic, study.rephrase),
            ("corpora", report.corpora, study.corpora),
        ):
            yield from _unknown(f"report.{name}.{field}", names, known, field)
