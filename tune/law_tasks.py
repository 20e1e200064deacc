"""What `fit_laws` fits: which rows belong together, and which laws compete for them.

Laws that do not know the mixture are fitted to each mixture apart: the data law where N is fixed and D takes the most
values, the model law where D is fixed and N takes the most values, a joint law over all its rows. Laws that do know it are
fitted across mixtures: a law in the share to natural text and all shares of one source, the exponential mixing law to all
mixtures of one (N, D) cell. Wherever rows could follow several laws (`tune.laws.selection.candidates_for`, which
`tune.laws.fit("auto", ...)` asks too), the one that extrapolates best is taken, once for all groups, so that groups compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from synth.errors import UserError
from tune.config import LawsConfig
from tune.laws.estimate import Task
from tune.laws.forms import CHINCHILLA, CHINCHILLA_TIED, DATA, MODEL
from tune.laws.forms_mixture import RATIO_FLOOR, exponential_mixing
from tune.laws.law import Law
from tune.laws.objectives import Objective
from tune.laws.registry import EXPONENTIAL_MIXING, law_named
from tune.laws.rows import check_rows, column, pin_gauge, too_few
from tune.laws.selection import candidates_for, choose_law
from tune.observations import Observation, Observations, columns_of, read_plan
from tune.run_tables import read_table

LEVELS_FOR_JOINT = 3
"""`auto` fits a law in N and D where both take at least this many values."""
SENTENCES = 4
"""Groups that a law has too few runs for are named one by one up to here, and counted beyond."""
_AXES = ("num_params", "train_tokens")


@dataclass(frozen=True, eq=False)
class Family:
    """Fits of one kind, a group each, and the laws that compete for them."""

    kind: str
    """`data`, `model`, `joint`, `share` or `mixture`."""
    tasks: tuple[Task, ...]
    """In the first of the candidates until one is chosen."""
    candidates: tuple[Law, ...]
    plain: tuple[Law, ...] = ()
    """Candidates of which the best is fitted even when another wins: a later step needs no more than N and D to use it."""

    def decided(self, objective: Objective) -> list[Task]:
        """Return the fits to make: in the law that extrapolates best, and where that is not a plain one, in the best of
        these as well."""
        if len(self.candidates) == 1:
            return list(self.tasks)
        selection = choose_law({task.group: task.rows for task in self.tasks}, self.candidates, objective)
        ranked = [score.law for score in selection.scores]
        wanted = [selection.law]
        plain = {law.name for law in self.plain}
        if plain and selection.law not in plain:
            wanted.insert(0, next(name for name in ranked if name in plain))
        laws = {law.name: law for law in self.candidates}
        return [
            replace(task, law=laws[name], selection=selection)
            for name in wanted
            for task in self.tasks
            if not too_few(laws[name], task.rows)
        ]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a job fits, before laws compete."""

    observations: Observations
    """All rows, each in the group of its mixture."""
    families: tuple[Family, ...]
    skipped: tuple[str, ...] = ()
    """A sentence for each law that a group has too few runs for."""
    notes: tuple[str, ...] = ()
    """What was made of the rows, in words."""

    @property
    def num_fits(self) -> int:
        """Fits at least: a law that wins without being plain adds some."""
        return sum(len(family.tasks) for family in self.families)

    @property
    def laws(self) -> str:
        """The laws in words; of several candidates one is chosen when the job runs."""
        return "; ".join(
            f"{family.kind}: {', '.join(law.name for law in family.candidates)}" for family in self.families
        )


def read_observations(config: LawsConfig) -> Observations:
    """Return the rows a job fits. Raises UserError for what cannot be read or trusted, in one sentence."""
    if config.runs is None:
        found = read_plan(config.root, config.plan)
    else:
        if config.law == "auto":
            needed: tuple[str, ...] = () if config.columns.shares else _AXES
        else:
            needed = law_named(config.law, config.columns.shares).columns_needed
        found = read_table(config.runs, config.columns, needed)
    return found.without_highest_losses(config.drop_highest_losses)


def choose_families(config: LawsConfig, observations: Observations) -> Choice:
    """Return what to fit. Raises UserError when a law asked for by name cannot be fitted, or `auto` finds nothing."""
    if not observations.rows:
        raise UserError(
            f"{observations.origin} has no row to fit ({len(observations.left_out)} left out): add complete runs"
        )
    is_plan = config.runs is None
    apart = observations if is_plan else observations.by_share()
    whole = observations.by_source() if is_plan else observations
    if config.law != "auto":
        return _named(config, apart, whole)
    families: list[Family] = []
    skipped: list[str] = []
    everything: list[str] = []
    for family, too_short, counts in (*_apart_families(apart, is_plan), *_whole_families(config, whole)):
        families += [family] if family is not None else []
        everything += too_short
        # Of a table nobody may have meant the law that no group of it allows.
        skipped += too_short if family is not None or counts else []
    if not families:
        raise UserError(
            f"too few runs in {observations.origin} for any law: {'; '.join(_shortened(everything))}"
        )
    notes = (*observations.notes, *_said_of_groups(observations, apart))
    return Choice(apart, tuple(families), tuple(_shortened(skipped)), notes)


def _said_of_groups(observations: Observations, apart: Observations) -> Iterator[str]:
    if apart.groups != observations.groups:
        yield (
            f"the mixture varies in {observations.origin}: laws that do not know it are fitted to each of {len(apart.groups)} "
            "mixtures apart, laws that do to all rows of a group"
        )


def _shortened(said: Sequence[str]) -> list[str]:
    rest = len(said) - SENTENCES
    return (
        list(said)
        if rest <= 1
        else [*said[:SENTENCES], f"{rest} more fits are not made for the same reasons"]
    )


_Found = tuple[Family | None, list[str], bool]
"""A family, or None when no group suffices; sentences on the groups that do not; whether these count without a family."""


def _apart_families(apart: Observations, is_plan: bool) -> Iterator[_Found]:
    """Yield the laws along each axis and the joint laws, over the groups of single mixtures."""
    for kind, law, plain in (
        ("data", DATA, (DATA,)),
        ("model", MODEL, (MODEL,)),
        ("joint", CHINCHILLA, (CHINCHILLA, CHINCHILLA_TIED)),
    ):
        able, too_short = [], []
        for task in _tasks(law, apart):
            if shortage := _shortage(law, task) or (_few_levels(task) if kind == "joint" else None):
                too_short.append(f"no {kind} law for {task.group!r}: {shortage}")
            else:
                able.append(task)
        yield (
            (Family(kind, tuple(able), _common_candidates(able, law), plain) if able else None),
            too_short,
            is_plan,
        )


def _common_candidates(tasks: Sequence[Task], first: Law) -> tuple[Law, ...]:
    """Return the laws that some group could determine and every group has the columns of, the first one first."""
    found: dict[str, Law] = {first.name: first}
    for task in tasks:
        found |= {law.name: law for law in candidates_for(task.rows)}
    return tuple(
        law for law in found.values() if all(set(law.columns_needed) <= set(task.rows) for task in tasks)
    )


def _whole_families(config: LawsConfig, whole: Observations) -> Iterator[_Found]:
    """Yield the laws that know the mixture, over the groups in which it varies."""
    if config.runs is not None and config.columns.shares:
        yield _mixture_family(config.columns.shares, whole)
    else:
        yield _share_family(whole)


def _mixture_family(shares: Sequence[str], whole: Observations) -> _Found:
    law = exponential_mixing(pin_gauge(shares, columns_of(whole.rows)))
    short = {task: _shortage(law, task) for task in _tasks(law, whole)}
    able = tuple(task for task, why in short.items() if not why)
    said = [f"no {law.name} law for {task.group!r}: {why}" for task, why in short.items() if why]
    return (Family("mixture", able, (law,)) if able else None), said, False


def _share_family(whole: Observations) -> _Found:
    tasks: list[Task] = []
    laws: dict[str, Law] = {}
    said: list[str] = []
    for task in _tasks(RATIO_FLOOR, whole):
        shares = len(set(column(task.rows, "share").tolist())) if "share" in task.rows else 0
        if shares < 2:
            continue
        able = [law for law in candidates_for(task.rows) if not _shortage(law, task)]
        if not able or ("num_params" in able[0].inputs and _few_levels(task)):
            said.append(f"no law in the share for {task.group!r}: {_why_none(task, shares)}")
            continue
        tasks.append(replace(task, law=able[0]))
        laws |= {law.name: law for law in able}
    common = tuple(law for law in laws.values() if not any(_shortage(law, task) for task in tasks))
    kept = tuple(replace(task, law=common[0]) for task in tasks) if common else tuple(tasks[:1])
    return (Family("share", kept, common or (kept[0].law,)) if kept else None), said, False


def _why_none(task: Task, shares: int) -> str:
    if shares < 3:
        return f"the share takes {shares} values and a curve over it needs 3"
    return _few_levels(task) or _shortage(RATIO_FLOOR, task) or "its rows fit no law of N, D and the share"


def _named(config: LawsConfig, apart: Observations, whole: Observations) -> Choice:
    """Return the fits of a law asked for by name. Raises UserError where a group cannot be fitted."""
    rows = columns_of(whole.rows)
    shares = pin_gauge(config.columns.shares, rows) if config.law == EXPONENTIAL_MIXING and whole.rows else ()
    law = law_named(config.law, shares or config.columns.shares)
    across = bool(law.shares) or "share" in law.columns_needed
    tasks = _tasks(law, whole if across else apart)
    if not tasks:
        raise UserError(
            f"{whole.origin} has no group for the {law.name} law: add runs with a synthetic source"
        )
    for task in tasks:
        check_rows(law, task.rows, task.group)
    notes = [*whole.notes]
    if not across:
        notes += _said_of_groups(whole, apart) if config.runs is not None else ()
    elif (unused := len(whole.rows) - sum(len(column(task.rows, "loss")) for task in tasks)) > 0:
        at = ", ".join(f"{name} = {value:g}" for name, value in tasks[0].fixed.items())
        notes.append(f"the {law.name} law is fitted at {at}: {unused} rows elsewhere are not in it")
    return Choice(apart, (Family(law.name, tuple(tasks), (law,)),), (), tuple(notes))


def _shortage(law: Law, task: Task) -> str | None:
    """Return what the rows lack for a law, as half a sentence; None when they suffice."""
    missing = [name for name in law.columns_needed if name not in task.rows]
    return f"not every row has {missing[0]}" if missing else too_few(law, task.rows)


def _tasks(law: Law, observations: Observations) -> list[Task]:
    fixed = _fixed(law, observations.rows)
    return [_task(law, fixed, group, observations) for group in observations.groups]


def _fixed(law: Law, rows: Sequence[Observation]) -> dict[str, float]:
    """Return what the law's rows must have in common: of N and D those it does not know, where its own inputs take the
    most values (the larger one at a tie)."""
    held = [
        name for name in _AXES if name not in law.inputs and any(row.value(name) is not None for row in rows)
    ]
    levels: dict[tuple[float, ...], set[tuple[float | None, ...]]] = defaultdict(set)
    for row in rows:
        place = tuple(value for name in held if (value := row.value(name)) is not None)
        inputs = tuple(row.value(name) for name in law.columns_needed)
        if len(place) == len(held) and None not in inputs:
            levels[place].add(inputs)
    if not levels:
        return {}
    best = max(levels, key=lambda place: (len(levels[place]), place))
    return dict(zip(held, best, strict=True))


def _task(law: Law, fixed: dict[str, float], group: str, observations: Observations) -> Task:
    rows = [
        row
        for row in observations.of(group)
        if all(row.value(name) == value for name, value in fixed.items())
    ]
    return Task(law, columns_of(rows), group, fixed, observations.excluded_of(group))


def _few_levels(task: Task) -> str | None:
    for name in (name for name in _AXES if name in task.rows):
        levels = len(set(column(task.rows, name).tolist()))
        if levels < LEVELS_FOR_JOINT:
            return f"{name} takes {levels} different values and auto asks for {LEVELS_FOR_JOINT}"
    return None
