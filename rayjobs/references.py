"""What the steps of a study file refer to: the mistakes in it, and the graph the steps form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth.config import CorpusConfig, RephraseConfig
from synth.errors import UserError
from synth.model_source import GENERATOR_PREFIX
from synth.recipe import load_recipes
from train.config import AssessConfig, GeneratorConfig, PackConfig, PretrainConfig, RateSweepConfig
from train.run import RunTemplate
from train.sizes import SIZES
from tune.config import LawsConfig, RecommendConfig, ReportConfig, SearchConfig
from tune.observations import mixture_label
from tune.surface import MIN_POINTS

Sections = Mapping[str, Mapping[str, Any]]
"""Section of a study file -> name -> configuration of the step; only steps that are valid by themselves."""

PLACES = {
    "corpora": "corpora", "generators": "generators", "rephrase": "synthetic", "pack": "packed", "learning_rates": "learning_rates", "pretrain": "plans",
    "search": "searches", "laws": "laws", "assess": "assessments",
}  # fmt: skip
"""Section -> where its artefacts lie under the root; a report lies at the root itself."""


@dataclass(frozen=True)
class Reference:
    """One name in a step that another step of the study must make."""

    path: tuple[str, ...]
    """Where it stands, such as ("laws", "fit", "plan")."""
    section: str
    """Section it must be in."""
    name: str


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a study file that its step alone cannot see."""

    path: tuple[str | int, ...]
    sentence: str
    """What is wrong and how to mend it, without the path and without a full stop."""


def references_of(section: str, name: str, config: Any) -> Iterator[Reference]:
    """Yield everything a step refers to in other sections."""
    for field, target, names in _FIELDS[section](config):
        for each in names:
            yield Reference((section, name, *field), target, each)


_Named = Iterator[tuple[tuple[str, ...], str, Sequence[str]]]
"""(Field of the step, section, names in it)."""


def _of_corpus(config: CorpusConfig) -> _Named:
    yield ("disjoint_from",), "corpora", config.disjoint_from


def _of_generator(config: GeneratorConfig) -> _Named:
    yield ("corpus",), "corpora", (config.corpus,)
    yield ("synthetic",), "rephrase", (config.synthetic,) if config.synthetic else ()


def _of_rephrase(config: RephraseConfig) -> _Named:
    yield ("corpus",), "corpora", (config.corpus,)
    yield ("decontaminate_against",), "corpora", config.decontaminate_against or ()
    if config.engine.kind != "fake" and config.engine.model.startswith(GENERATOR_PREFIX):
        yield ("engine", "model"), "generators", (config.engine.model.removeprefix(GENERATOR_PREFIX),)


def _of_assessment(config: AssessConfig) -> _Named:
    yield ("generator",), "generators", (config.generator,)
    yield ("synthetic",), "rephrase", (config.synthetic,)


def _of_pack(config: PackConfig) -> _Named:
    yield ("evaluate_on",), "corpora", config.evaluate_on
    for name, source in config.sources.items():
        yield ("sources", name, "corpus"), "corpora", (source.corpus,) if source.corpus else ()
        yield ("sources", name, "synthetic"), "rephrase", (source.synthetic,) if source.synthetic else ()


def _of_sweep(config: RateSweepConfig) -> _Named:
    yield ("packed",), "pack", (config.packed,)


def _of_training(config: PretrainConfig | SearchConfig) -> _Named:
    yield ("packed",), "pack", (config.packed,)
    rates = config.run.optimizer.learning_rates
    yield ("run", "optimizer", "learning_rates"), "learning_rates", (rates,) if rates else ()


def _of_laws(config: LawsConfig) -> _Named:
    yield ("plan",), "pretrain", (config.plan,) if config.runs is None else ()


def _of_recommend(config: RecommendConfig) -> _Named:
    yield ("laws",), "laws", (config.laws,)
    yield ("searches",), "search", config.searches


def _of_report(config: ReportConfig) -> _Named:
    yield ("plan",), "pretrain", (config.plan,)
    yield ("laws",), "laws", (config.laws,)
    yield ("searches",), "search", config.searches
    yield ("recommendations",), "recommend", config.recommendations
    yield ("synthetic",), "rephrase", config.synthetic
    yield ("corpora",), "corpora", config.corpora


_FIELDS: dict[str, Any] = {
    "corpora": _of_corpus,
    "generators": _of_generator,
    "rephrase": _of_rephrase,
    "assess": _of_assessment,
    "pack": _of_pack,
    "learning_rates": _of_sweep,
    "pretrain": _of_training,
    "search": _of_training,
    "laws": _of_laws,
    "recommend": _of_recommend,
    "report": _of_report,
}


# --- mistakes --------------------------------------------------------------------------------------------------


def mistakes_in(sections: Sections, known: Mapping[str, Collection[str]]) -> list[Mistake]:
    """Return all mistakes between steps. `known` names every step of the file, those that are invalid too."""
    found: list[Mistake] = []
    for section, steps in sections.items():
        for name, config in steps.items():
            for reference in references_of(section, name, config):
                there = known.get(reference.section, ())
                found += _unknown(reference.path, reference.name, there, f"[{reference.section}]")
            found += _CHECKS.get(section, _nothing)(sections, name, config)
    return [*found, *_cycles(sections)]


def _unknown(path: tuple[str | int, ...], name: str, there: Collection[str], where: str) -> list[Mistake]:
    if name in there:
        return []
    return [Mistake(path, f"{name!r} is not in {where} (there: {', '.join(sorted(there)) or 'none'})")]


def _nothing(sections: Sections, name: str, config: Any) -> list[Mistake]:
    return []


def _check_generator(sections: Sections, name: str, config: GeneratorConfig) -> list[Mistake]:
    return _unknown(("generators", name, "model"), config.model, list(SIZES), "the table of sizes")


def _check_rephrase(sections: Sections, name: str, config: RephraseConfig) -> list[Mistake]:
    try:
        load_recipes(config.recipes, config.recipe_overrides)
    except UserError as error:
        return [Mistake(("rephrase", name, "recipes"), str(error).removeprefix("recipes: ").rstrip("."))]
    return []


def _check_pack(sections: Sections, name: str, config: PackConfig) -> list[Mistake]:
    found = [
        each
        for source in config.tokenizer.train_on
        for each in _unknown(("pack", name, "tokenizer", "train_on"), source, config.sources, f"[pack.{name}.sources]")
    ]  # fmt: skip
    evaluated = [sections.get("corpora", {}).get(corpus) for corpus in config.evaluate_on]
    if all(corpus is not None and corpus.held_out_fraction == 0 for corpus in evaluated):
        sentence = f"held_out_fraction of {', '.join(config.evaluate_on)} is 0, so there is no text to evaluate on: hold some out"
        found.append(Mistake(("pack", name, "evaluate_on"), sentence))
    for source_name, source in config.sources.items():
        made_by = sections.get("rephrase", {}).get(source.synthetic or "")
        if made_by is None or source.recipe is None:
            continue
        recipes = _recipe_names(made_by)
        if recipes is not None and source.recipe not in recipes:
            path = ("pack", name, "sources", source_name, "recipe")
            found += _unknown(path, source.recipe, recipes, f"rephrase.{source.synthetic}.recipes")
    return found


def _recipe_names(config: RephraseConfig) -> list[str] | None:
    try:
        return [recipe.name for recipe in load_recipes(config.recipes, config.recipe_overrides)]
    except UserError:
        return None  # said already, of the step itself


def _check_sweep(sections: Sections, name: str, config: RateSweepConfig) -> list[Mistake]:
    path = ("learning_rates", name)
    found = [
        each for model in config.models for each in _unknown((*path, "models"), model, list(SIZES), "the table of sizes")
    ]  # fmt: skip
    if (pack := sections.get("pack", {}).get(config.packed)) is not None:
        for source in config.mixture:
            found += _unknown((*path, "mixture"), source, pack.sources, f"[pack.{config.packed}.sources]")
    return found + _short_budgets(
        sections, (*path, "train_tokens"), config.packed, config.run, config.train_tokens
    )


def _check_pretrain(sections: Sections, name: str, config: PretrainConfig) -> list[Mistake]:
    found = _check_sources(sections, ("pretrain", name), config.packed, config.natural, config.synthetic)
    for number, axis in enumerate(config.axes):
        for model in axis.models:
            found += _unknown(
                ("pretrain", name, "axes", number, "models"), model, list(SIZES), "the table of sizes"
            )
        path = ("pretrain", name, "axes", number, "train_tokens")
        found += _short_budgets(sections, path, config.packed, config.run, min(axis.train_tokens))
    if not config.synthetic and 0.0 not in config.shares:
        found.append(
            Mistake(("pretrain", name, "shares"), "holds no 0 and synthetic is empty: name a source, or add share 0")
        )  # fmt: skip
    return found


def _check_search(sections: Sections, name: str, config: SearchConfig) -> list[Mistake]:
    found = _check_sources(sections, ("search", name), config.packed, config.natural, config.synthetic)
    for number, cell in enumerate(config.cells):
        path = ("search", name, "cells", number)
        found += _unknown((*path, "model"), cell.model, list(SIZES), "the table of sizes")
        if cell in config.cells[:number]:
            found.append(Mistake(path, "is the cell of an earlier one: give each cell once"))
        found += _short_budgets(
            sections, (*path, "train_tokens"), config.packed, config.run, cell.train_tokens
        )
    return found


OTHER_DIRECTORIES = frozenset((
    *PLACES.values(), "runs", "trunks", "evaluations", "recommendations", "tunings", "log", "running", "aside",
))  # fmt: skip
"""What lies beside a report under the root: `--force` would move all of it aside with a report of such a name."""


def _check_report(sections: Sections, name: str, config: ReportConfig) -> list[Mistake]:
    """Claims are tested on the sources of the plan, and on those of searches that mix in one alone."""
    users: dict[str, Any] = {
        f"pretrain.{config.plan}.synthetic": sections.get("pretrain", {}).get(config.plan)
    }
    users |= {f"search.{each}.synthetic": sections.get("search", {}).get(each) for each in config.searches}
    found = []
    if name in OTHER_DIRECTORIES:
        found.append(
            Mistake(
                ("report", name), "is where other things of a study are kept: give the report another name"
            )
        )
    if None in users.values():  # said already, of the name or of that step itself
        return found
    plan, *searches = users.values()
    sources = {*plan.synthetic, *(each.synthetic[0] for each in searches if len(each.synthetic) == 1)}
    for part in type(config.claims).model_fields:
        given = getattr(config.claims, part)
        for source in given if isinstance(given, tuple) else (given,) if given else ():
            found += _unknown(("report", name, "claims", part), source, sources, " or ".join(users))
    return found


def _check_laws(sections: Sections, name: str, config: LawsConfig) -> list[Mistake]:
    plan = sections.get("pretrain", {}).get(config.plan)
    if plan is None or config.runs is not None:
        return []
    found = _shares_of_one_name(config.plan, plan)
    runs = _most_runs_of(plan)
    if config.drop_highest_losses >= runs:
        path = ("laws", name, "drop_highest_losses")
        found.append(Mistake(path, f"{config.drop_highest_losses:,} leaves none of the {runs:,} runs of pretrain.{config.plan}: lower it"))  # fmt: skip
    return found


def _check_recommend(sections: Sections, name: str, config: RecommendConfig) -> list[Mistake]:
    laws = sections.get("laws", {}).get(config.laws)
    if laws is None or laws.runs is not None:
        return []
    plan = sections.get("pretrain", {}).get(laws.plan)
    if plan is None or not plan.synthetic:
        return []
    path, found = ("pretrain", laws.plan, "shares"), []
    if 0.0 not in plan.shares:
        found.append(
            Mistake(path, f"0 is not among them, and recommend.{name} compares with natural text: add 0")
        )
    if len({0.0, *plan.shares}) < MIN_POINTS and not config.searches:
        found.append(Mistake(path, f"a best share, which recommend.{name} looks for, needs {MIN_POINTS} shares with 0: add one"))  # fmt: skip
    return found


def _shares_of_one_name(name: str, plan: PretrainConfig) -> list[Mistake]:
    """Return the complaint of `tune.observations`, which sees the plan when all of it is trained."""
    named: dict[str, float] = {}
    found = []
    for share in plan.shares if plan.synthetic else ():
        label = mixture_label("", share).strip()
        first = named.setdefault(label, share)
        if first != share:
            sentence = f"{first:.6g} and {share:.6g} are both {label}, which laws would take for one mixture: leave one out"
            found.append(Mistake(("pretrain", name, "shares"), sentence))
    return found


def _most_runs_of(plan: PretrainConfig) -> int:
    """Return the runs of a plan, budgets that come to the same steps counted apart."""
    cells = {(model, tokens) for axis in plan.axes for model in axis.models for tokens in axis.train_tokens}
    shares = set(plan.shares) if plan.synthetic else {0.0}
    mixtures = (0.0 in shares) + len(shares - {0.0}) * len(set(plan.synthetic))
    return len(cells) * mixtures * len(set(plan.seeds))


def _check_sources(
    sections: Sections, path: tuple[str, str], packed: str, natural: str, synthetic: Sequence[str]
) -> list[Mistake]:
    pack = sections.get("pack", {}).get(packed)
    if pack is None:
        return []
    where = f"[pack.{packed}.sources]"
    found = _unknown((*path, "natural"), natural, pack.sources, where)
    for name in synthetic:
        found += _unknown((*path, "synthetic"), name, pack.sources, where)
        if name == natural:
            found.append(Mistake((*path, "synthetic"), f"{name!r} is the natural source: take it out"))
    return found


def _short_budgets(
    sections: Sections, path: tuple[str | int, ...], packed: str, run: RunTemplate, train_tokens: int
) -> list[Mistake]:
    pack, rows_per_step = sections.get("pack", {}).get(packed), run.rows_per_step
    if pack is None or run.batch_rule is not None:  # a rule takes the size and the vocabulary into account
        return []
    if train_tokens >= (per_step := rows_per_step * pack.sequence_length):
        return []
    return [
        Mistake(
            path,
            f"{train_tokens:,} is less than one step of {per_step:,} tokens (run.rows_per_step = {rows_per_step} x "
            f"pack.{packed}.sequence_length = {pack.sequence_length}): raise it or lower run.rows_per_step",
        )
    ]


_CHECKS: dict[str, Any] = {
    "generators": _check_generator,
    "rephrase": _check_rephrase,
    "pack": _check_pack,
    "learning_rates": _check_sweep,
    "pretrain": _check_pretrain,
    "search": _check_search,
    "report": _check_report,
    "laws": _check_laws,
    "recommend": _check_recommend,
}


# --- the graph -------------------------------------------------------------------------------------------------


def parents_of(sections: Sections) -> dict[str, tuple[str, ...]]:
    """Return the steps each step needs, both as `section.name`, in the order of the file."""
    return {
        f"{section}.{name}": tuple(
            dict.fromkeys(f"{each.section}.{each.name}" for each in references_of(section, name, config))
        )
        for section, steps in sections.items()
        for name, config in steps.items()
    }


def in_order(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the steps so that each comes after those it needs, otherwise as given; those in a cycle are left out."""
    ordered: dict[str, None] = {}
    waiting = list(parents)
    while ready := next((step for step in waiting if all(p in ordered for p in parents[step])), None):
        ordered[ready] = None
        waiting.remove(ready)
    return list(ordered)


def _cycles(sections: Sections) -> list[Mistake]:
    parents = parents_of(sections)
    within = {step: [parent for parent in needed if parent in parents] for step, needed in parents.items()}
    ordered = set(in_order(within))
    stuck = [step for step in within if step not in ordered]
    circular = [step for step in stuck if step in ancestors_of(step, within)]
    if not circular:
        return []
    return [Mistake(tuple(circular[0].split(".", 1)), f"needs itself, through {' and '.join(circular)}: break the circle")]  # fmt: skip


def ancestors_of(step: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """Return every step that a step needs, directly or not."""
    found: set[str] = set()
    open_steps = list(parents[step])
    while open_steps:
        parent = open_steps.pop()
        if parent not in found:
            found.add(parent)
            open_steps += parents[parent]
    return found


def descendants_of(step: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """Return every step that needs a step, directly or not."""
    return {other for other in parents if step in ancestors_of(other, parents)}
