"""A study: all steps of the flow in one file, the graph they form, and every mistake in it at once."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from rayjobs import (
    assess_generator,
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
from rayjobs.assumptions import Assumptions
from rayjobs.cli import BETWEEN_STEPS, JOB_OF_STEP, Job
from rayjobs.mending import VARIANTS, Mended, Path, mend
from rayjobs.references import Mistake, ancestors_of, descendants_of, in_order, mistakes_in, parents_of
from rayjobs.rounds import as_written, left_over, unrolled
from synth.config import CorpusConfig, FileSource, JobConfig, Name, RephraseConfig
from synth.errors import UserError
from synth.model_source import STUDY_PREFIX
from synth.plan import Plan
from train.config import AssessConfig, GeneratorConfig, PackConfig, PretrainConfig, RateSweepConfig
from tune.config import LawsConfig, Prices, RecommendConfig, ReportConfig, ReportPrices, SearchConfig

SECTIONS: dict[str, Job[Any]] = {
    "corpora": build_corpus.JOB,
    "generators": train_generator.JOB,
    "rephrase": rephrase_corpus.JOB,
    "assess": assess_generator.JOB,
    "pack": pack_tokens.JOB,
    "learning_rates": sweep_learning_rates.JOB,
    "pretrain": pretrain_models.JOB,
    "search": search_mixture.JOB,
    "laws": fit_laws.JOB,
    "recommend": recommend_mixture.JOB,
    "report": write_report.JOB,
}
"""Sections of a study file in the order of the flow, and the job each runs."""


MOST_ROUNDS = 100


class StudyConfig(JobConfig):
    """`run_study`: every step of a study from one file; finished steps are skipped, the rest is resumed."""

    share_with: tuple[str, ...] = ()
    """Roots of other studies. A step that is finished there under the same name, from the same recipe and the same
    parents, is taken over instead of made again; so is every run that a plan, or the beginning of a search or a sweep,
    wants and one of them has."""
    rounds: int | None = Field(default=None, ge=1, le=MOST_ROUNDS)
    """Rounds of a chain in which each generator writes what the next one reads: tables and list items with `{round}` or
    `{previous}` in their names are spelled out for rounds 1 to this one; null: the study has no rounds."""
    assumptions: Assumptions = Assumptions()
    """What is reckoned with before anything is measured."""
    prices: ReportPrices = ReportPrices()
    """What devices cost: for the plan, the status, recommendations and the report's ledger. A step's own price comes before
    it."""
    corpora: dict[Name, CorpusConfig] = Field(min_length=1)
    """`build_corpus` for each, by corpus name."""
    generators: dict[Name, GeneratorConfig] = Field(default_factory=dict)
    """`train_generator` for each; a study with a real instruct model has none."""
    rephrase: dict[Name, RephraseConfig] = Field(default_factory=dict)
    """`rephrase_corpus` for each, by name of the synthetic set."""
    assess: dict[Name, AssessConfig] = Field(default_factory=dict)
    """`assess_generator` for each, by name of the assessment."""
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

    @model_validator(mode="wrap")
    @classmethod
    def _all_mistakes_at_once(
        cls, values: Any, handler: ModelWrapValidatorHandler[StudyConfig]
    ) -> StudyConfig:
        """Name the steps, then raise one ValidationError with the mistakes of all of them and between them."""
        if not isinstance(values, dict):
            return handler(values)
        written, rounds = values, _rounds_of(values)
        values = unrolled(values, rounds)
        values, mistakes = _with_names(values, cls.model_fields["root"].default)
        try:
            study = handler(values)
        except pydantic.ValidationError as error:
            mistakes += [
                _mistake(each["loc"], each["msg"], each["input"], kind=each["type"])
                for each in error.errors(include_url=False)
                if not _is_set_here(each["loc"])
            ]
        known = {
            name: table for name, table in values.items() if name in SECTIONS and isinstance(table, dict)
        }
        mistakes += [_mistake(path, sentence, None) for path, sentence in _hidden_mistakes(values, known)]
        if written.get("rounds") is None and (first := next(left_over(written), None)):
            sentence = (
                f"is missing, and {'.'.join(map(str, first))} stands for every round: give how many there are"
            )
            mistakes.append(_mistake(("rounds",), sentence, None))
        # What is wrong in every round is one mistake.
        mistakes = [each | {"loc": as_written(written, each["loc"], rounds)} for each in mistakes]
        mistakes = list({(each["loc"], str(each["type"])): each for each in mistakes}.values())
        if mistakes:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, mistakes)
        return study


def _rounds_of(values: dict[str, Any]) -> int:
    """Return how many rounds to spell out; one, to find what else is wrong, where that is missing or no number."""
    stated = str(values.get("rounds"))
    return max(1, min(int(stated), MOST_ROUNDS)) if stated.isdecimal() else 1


def _with_names(values: dict[str, Any], default_root: str) -> tuple[dict[str, Any], list[InitErrorDetails]]:
    """Give every step its name (its key in the file) and the study's root."""
    root = values.get("root", default_root)
    mistakes: list[InitErrorDetails] = []
    named = dict(values)
    for section in SECTIONS.keys() & values.keys():
        if not isinstance(values[section], dict):
            continue
        tables = {}
        for name, table in values[section].items():
            if isinstance(table, dict):
                mistakes += [
                    _mistake((section, name, field), "is set by the study itself: remove it", table[field])
                    for field in sorted({"name", "root"} & table.keys())
                ]
                table = {**table, "name": name, "root": root}
            tables[name] = table
        named[section] = tables
    return named, mistakes


def _is_set_here(path: Path) -> bool:
    """Return whether a place holds what the study has given the step: what is wrong with it is said of the study's own."""
    return len(path) == 3 and path[0] in SECTIONS and path[2] in ("name", "root")


def _mistake(
    path: Iterable[str | int], sentence: str, value: Any, kind: str = BETWEEN_STEPS
) -> InitErrorDetails:
    path = tuple(path)
    step = {JOB_OF_STEP: SECTIONS[path[0]].name} if len(path) > 2 and path[0] in SECTIONS else {}
    error = PydanticCustomError(kind, "{sentence}", {"sentence": sentence, **step})
    return InitErrorDetails(type=error, loc=path, input=value)


def _hidden_mistakes(values: dict[str, Any], known: dict[str, Any]) -> list[tuple[Path, str]]:
    """Return what is wrong between steps, and within a step beside what validation stopped at.

    Wrong values hide nothing: others stand in for them, and what is said whichever of several does is true of the file.
    """
    mended = {
        (section, name): variants
        for section, job in SECTIONS.items()
        for name, table in known.get(section, {}).items()
        if (variants := [each for number in range(VARIANTS) if (each := mend(job.config, table, number))])
    }
    said = [_said_of(values, known, mended, number) for number in range(VARIANTS)]
    return [each for each in dict.fromkeys(said[0]) if all(each in others for others in said[1:])]


def _said_of(
    values: dict[str, Any],
    known: dict[str, Any],
    mended: Mapping[tuple[str, str], Sequence[Mended]],
    number: int,
) -> list[tuple[Path, str]]:
    """Return all (path, sentence) with one variant of every mended step."""
    chosen = {key: variants[number % len(variants)] for key, variants in mended.items()}
    steps: dict[str, dict[str, Any]] = {}
    said: list[tuple[Path, str]] = []
    for (section, name), each in chosen.items():
        steps.setdefault(section, {})[name] = each.config
        said += [((section, name, *path), message) for path, message in sorted(each.found, key=str)]
    between = [
        *mistakes_in(steps, known),
        *_other_currencies(values, steps.get("rephrase", {})),
        *(each for section in ("corpora", "rephrase") for each in _unknown_assumptions(values, section, known.get(section, {}))),
    ]  # fmt: skip
    for mistake in between:
        step = chosen.get((str(mistake.path[0]), str(mistake.path[1])))
        if step is None or not step.is_of_a_stand_in(mistake.path[2:]):
            said.append((mistake.path, mistake.sentence))
    return said


def _unknown_assumptions(values: dict[str, Any], section: str, there: Iterable[str]) -> list[Mistake]:
    assumed = values.get("assumptions")
    stated = assumed.get(section) if isinstance(assumed, dict) else None
    return [
        Mistake(("assumptions", section, name), f"{name!r} is not in [{section}]: correct the name")
        for name in (stated if isinstance(stated, dict) else {})
        if name not in there
    ]


def _other_currencies(values: dict[str, Any], steps: dict[str, RephraseConfig]) -> list[Mistake]:
    """A study's plan, status and report add up what its steps cost."""
    prices = values.get("prices")
    default = ReportPrices.model_fields["currency"].default
    currency = prices.get("currency", default) if isinstance(prices, dict) else default
    return [
        Mistake(
            ("rephrase", name, "cost", "currency"),
            f"{step.cost.currency!r} is not prices.currency, {currency!r}: give both in one, they are added up",
        )
        for name, step in steps.items()
        if step.cost.device_hour_price is not None and step.cost.currency != currency
    ]


# --- steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of a study: a job, its configuration, and the steps it needs."""

    section: str
    job: Job[Any]
    config: Any
    parents: tuple[str, ...] = ()
    """Keys of the steps whose artefacts it reads."""

    @property
    def key(self) -> str:
        """Its place in the study file, such as `pretrain.grid`; `--only`, `--until` and `--force` take it."""
        return f"{self.section}.{self.config.name}"

    @property
    def title(self) -> str:
        """The step's job and artefact, as it is called in progress lines."""
        return f"{self.job.name} {self.config.name}"

    @property
    def reads_elsewhere(self) -> bool:
        """Whether all it reads is in buckets or on the hub: a machine that only plans need not reach these."""
        if not isinstance(self.config, CorpusConfig):
            return False
        return all(
            source.kind == "huggingface"
            if not isinstance(source, FileSource)
            else any("://" in path for path in source.paths)
            for source in self.config.sources
        )

    def plan(self) -> Plan:
        """Return what is left to do. Raises UserError when it cannot be done, IncompleteArtefact when it must wait."""
        plan = self.job.plan(self.config)
        assert isinstance(plan, Plan), "only a whole study has several plans"
        return plan


def steps_of(study: StudyConfig) -> tuple[Step, ...]:
    """Return the steps, each after those it needs and otherwise in the order of the flow."""
    sections = {section: getattr(study, section) for section in SECTIONS}
    parents = parents_of(sections)
    steps = {
        f"{section}.{name}": Step(
            section, SECTIONS[section], _priced(config, study, f"{section}.{name}", parents), parents[f"{section}.{name}"]
        )
        for section, configs in sections.items()
        for name, config in configs.items()
    }  # fmt: skip
    return tuple(steps[key] for key in in_order(parents))


def _priced(config: Any, study: StudyConfig, key: str, parents: Mapping[str, tuple[str, ...]]) -> Any:
    """Give a rephrasing step, a recommendation and a report the study's prices where they have none of their own."""
    prices = study.prices
    if isinstance(config, ReportConfig) and config.prices == ReportPrices():
        return config.model_copy(update={"prices": prices})
    if isinstance(config, RecommendConfig):
        return config.model_copy(
            update={"prices": _of_devices(config.prices, study, ancestors_of(key, parents))}
        )
    if (
        not isinstance(config, RephraseConfig)
        or config.cost.device_hour_price
        or not prices.generation_device_hour
    ):
        return config
    update = {"device_hour_price": prices.generation_device_hour, "currency": prices.currency}
    return config.model_copy(update={"cost": config.cost.model_copy(update=update)})


def _of_devices(own: Prices, study: StudyConfig, ancestors: Collection[str]) -> Prices:
    """Return the prices of a recommendation, completed from the study.

    Sizes are assumed of the sets it is made from alone, and of no generator the study trains: those are counted. So what is
    assumed of another step does not make this one another.
    """
    assumed = {
        name: stated.generator_num_params
        for name, stated in study.assumptions.rephrase.items()
        if stated.generator_num_params
        and f"rephrase.{name}" in ancestors
        and not study.rephrase[name].engine.model.startswith(STUDY_PREFIX)
    }
    per_hour = {
        "generation_per_device_hour": study.prices.generation_device_hour,
        "training_per_device_hour": study.prices.training_device_hour,
    }
    return own.model_copy(
        update={
            **{field: price for field, price in per_hour.items() if getattr(own, field) is None},
            "assumed_generator_num_params": assumed | own.assumed_generator_num_params,
        }
    )


@dataclass(frozen=True)
class Selection:
    """Which steps are run, and which of them are done again although they are finished."""

    steps: tuple[Step, ...]
    """In the order they run."""
    redone: tuple[Step, ...] = ()
    """Steps asked for by `--force` and those of `steps` that are made from them."""


def select(
    study: StudyConfig, only: tuple[str, ...] = (), until: tuple[str, ...] = (), force: tuple[str, ...] = ()
) -> Selection:
    """Return what to run: all steps, or those named by `only`, or those named by `until` and all they need.

    Raises UserError for a name that is no step, and for a step to force that is not to be run.
    """
    steps = steps_of(study)
    parents = {step.key: step.parents for step in steps}
    chosen = {key for word in only for key in _named(word, "--only", steps)}
    for word in until:
        for key in _named(word, "--until", steps):
            chosen |= {key, *ancestors_of(key, parents)}
    if not only and not until:
        chosen = set(parents)
    forced: set[str] = set()
    for word in force:
        for key in _named(word, "--force", steps):
            if key not in chosen:
                raise UserError(f"--force {key}: --only and --until leave this step out; name it there too.")
            forced |= {key, *descendants_of(key, parents)} & chosen
    return Selection(
        tuple(step for step in steps if step.key in chosen),
        tuple(step for step in steps if step.key in forced),
    )


def _named(word: str, flag: str, steps: tuple[Step, ...]) -> list[str]:
    """Return the steps a word stands for: a key, or a section for all its steps."""
    keys = [step.key for step in steps]
    found = [step.key for step in steps if word in (step.key, step.section)]
    if not found:
        near = difflib.get_close_matches(word, [*keys, *{step.section for step in steps}], n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}."
        raise UserError(f"{flag} {word} is no step of this study; {hint}")
    return found
