"""Which runs would shrink the interval of the recommended share most, by how much, and the plan that trains them.

A proposal is a cell (a model size, trained or up to LARGER_SIZE times larger, and a budget, trained or larger) with every
share and seed the plan has, or a new share in every cell of the plan, or a further seed of every run of it. What it would
teach is computed. It is some noisy looks at losses at the target. Of a cell: the loss of mixture g at the target, T, and
in the cell, C, vary together over the resamples of its law; runs there, whose mean has the noise s, leave of the
variance of T what a look at T itself would with the noise variance var(T)^2 (var(C) + s^2) / cov(T, C)^2 - var(T). Of a
further seed to n: a look at every mixture with n var(T). Of a share: a look at it with the variance its neighbours have.
The best share and the losses at all these shares vary together over the draws of the curve; as if they were normal, each
look takes cov(best, loss)^2 / (var(loss) + noise) from the variance of the best share. Proposals are chosen one after the
other, each given those before. The most extreme resamples are drawn in, so that a few do not decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from synth.errors import UserError
from synth.identity import RECIPE_FILE
from synth.storage import read_json
from synth.toml import toml_key, toml_value
from train.config import PretrainConfig
from train.flops import count_parameters, train_flops_6nd
from train.grid import PLAN_FILE, check_budgets, plan_directory, plan_runs
from train.placement import TrainPlacement
from train.record import records_of
from train.sizes import SIZES, model_of
from train.tokens import PackedInfo
from tune.answer import Answer
from tune.at_target import MixtureAtTarget
from tune.laws.law import Floats
from tune.results import NextCell

LARGER_BUDGETS = (2, 4)
"""Budgets beyond the largest trained that are considered, as multiples of it."""
LARGER_SIZE = 4.0
"""Sizes beyond the largest trained are considered up to this many times it."""
DEARER = 4.0
"""A proposal costs at most this many times the dearest cell trained, all its shares and seeds together."""
SHARE_STEP = 0.05
"""New shares are multiples of this, further than BESIDE from every trained one."""
BESIDE = 0.04
TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class _Proposal:
    """What is added to a plan."""

    what: Literal["cell", "share", "seed"]
    num_params: int = 0
    """Of a cell."""
    model: str | None = None
    train_tokens: int | None = None
    share: float | None = None
    seed: int | None = None

    def added_to(self, config: PretrainConfig) -> PretrainConfig:
        """Return the plan with it."""
        alone = self.alone_in(config)
        if self.what == "share":
            return config.model_copy(update={"shares": (*config.shares, *alone.shares)})
        if self.what == "seed":
            return config.model_copy(update={"seeds": (*config.seeds, *alone.seeds)})
        return config.model_copy(update={"axes": (*config.axes, *alone.axes)})

    def alone_in(self, config: PretrainConfig) -> PretrainConfig:
        """Return the plan of the runs it adds, and of none there are unless they belong to it too."""
        if self.what == "share":
            return config.model_copy(update={"shares": (self.share,)})
        if self.what == "seed":
            return config.model_copy(update={"seeds": (self.seed,)})
        axis = type(config.axes[0])(models=(str(self.model),), train_tokens=(int(self.train_tokens or 0),))
        return config.model_copy(update={"axes": (axis,)})


def next_cells(root: str, plan: str, answer: Answer, count: int) -> tuple[NextCell, ...]:
    """Return up to `count` proposals, the most telling first; none when the laws have no resamples to compute with."""
    config, packed = _plan_of(root, plan)
    config = config.model_copy(update={"synthetic": (answer.source,)})
    mixtures, curve = answer.mixtures, answer.curve
    variance = float(curve.minima.var())
    if not count or variance <= 0.0 or any(len(each.losses) < 2 for each in mixtures):
        return ()
    proposals = list(_proposals(config, packed, mixtures))
    cells = [each for each in proposals if each.what == "cell"]
    laws = [_Law(each, cells, len(set(config.seeds))) for each in mixtures]
    shares = [float(each.share) for each in proposals if each.share is not None]
    losses = [curve.losses_at(share) for share in (*(each.share for each in mixtures), *shares)]
    belief = _Belief(np.asarray(np.cov(np.vstack([curve.minima, *losses])), dtype=np.float64))
    chosen: list[NextCell] = []
    while proposals and len(chosen) < count:
        looks = [_looks(each, cells, shares, laws, mixtures) for each in proposals]
        gains = [belief.after(each).variance_gone(belief) for each in looks]
        pick = int(np.argmax(gains))
        if gains[pick] <= 0.0:
            break
        belief = belief.after(looks[pick])
        proposal = proposals.pop(pick)  # the same run again would be the same run
        for law in laws:
            law.learn(proposal, cells)
        runs, flops = _new_runs(_run_ids(config, packed), proposal.alone_in(config), packed)
        config = proposal.added_to(config)
        left = max(0.0, float(belief.covariance[0, 0])) / variance
        chosen.append(
            NextCell(
                what=proposal.what,
                model=proposal.model,
                num_params=proposal.num_params or None,
                train_tokens=proposal.train_tokens,
                share=proposal.share,
                seed=proposal.seed,
                runs=runs,
                flops=flops,
                expected_interval_width=answer.width_when(left),
            )
        )
    return tuple(chosen)


@dataclass(frozen=True)
class _Belief:
    """What is believed of the best share (first) and of losses at the target: their covariance."""

    covariance: Floats

    def after(self, looks: Sequence[tuple[int, float]]) -> _Belief:
        """Return it after looks at some of the losses: (which, noise variance)."""
        covariance = self.covariance
        for which, noise in looks:
            column = covariance[:, which]
            seen = column[which] + noise
            if np.isfinite(noise) and seen > 0.0:
                covariance = covariance - np.outer(column, column) / seen
        return _Belief(covariance)

    def variance_gone(self, before: _Belief) -> float:
        """Return how much smaller the variance of the best share is than it was."""
        return float(before.covariance[0, 0] - self.covariance[0, 0])


class _Law:
    """What is believed of one mixture: covariance of its loss at the target (last) and in the cells."""

    def __init__(self, mixture: MixtureAtTarget, cells: Sequence[_Proposal], seeds: int) -> None:
        law, samples = mixture.fitted.law, mixture.fitted.samples
        rows = {
            "num_params": np.array([float(each.num_params) for each in cells]),
            "train_tokens": np.array([float(each.train_tokens or 0) for each in cells]),
        }
        losses = (
            np.exp(law.bind(law.columns(rows)).log_prediction(law.to_theta(samples)))
            if cells
            else np.empty((len(samples), 0))
        )
        table = _drawn_in(np.column_stack([losses, mixture.losses]))
        self.covariance = np.atleast_2d(np.cov(table, rowvar=False))
        noise = mixture.fitted.record.noise_log or 0.0
        self.noise = (noise * table.mean(axis=0)) ** 2 / seeds
        self.seeds = seeds

    @property
    def variance(self) -> float:
        """Variance of the loss at the target."""
        return float(self.covariance[-1, -1])

    def look_from(self, cell: int) -> float:
        """Return the noise variance of the look at the target that runs in a cell are."""
        shared = float(self.covariance[-1, cell])
        if shared == 0.0:
            return float("inf")
        seen = float(self.covariance[cell, cell] + self.noise[cell])
        return max(self.variance**2 * seen / shared**2 - self.variance, 0.0)

    def learn(self, proposal: _Proposal, cells: Sequence[_Proposal]) -> None:
        """Take away what a proposal will tell."""
        if proposal.what == "cell":
            place = cells.index(proposal)
            column = self.covariance[:, place]
            self.covariance = self.covariance - np.outer(column, column) / (column[place] + self.noise[place])
        elif proposal.what == "seed":
            self.covariance = self.covariance * (self.seeds / (self.seeds + 1))
            self.noise = self.noise * (self.seeds / (self.seeds + 1))
            self.seeds += 1


def _looks(
    proposal: _Proposal,
    cells: Sequence[_Proposal],
    shares: Sequence[float],
    laws: Sequence[_Law],
    mixtures: Sequence[MixtureAtTarget],
) -> list[tuple[int, float]]:
    """Return what a proposal looks at: places in the belief, and noise variances."""
    if proposal.what == "cell":
        place = cells.index(proposal)
        return [(1 + g, law.look_from(place)) for g, law in enumerate(laws)]
    if proposal.what == "seed":
        return [(1 + g, law.seeds * law.variance) for g, law in enumerate(laws)]
    share = float(proposal.share or 0.0)
    above = next(g for g, each in enumerate(mixtures) if each.share > share)
    return [(1 + len(laws) + shares.index(share), (laws[above - 1].variance + laws[above].variance) / 2)]


def _drawn_in(table: Floats) -> Floats:
    low, high = np.quantile(table, TAILS, axis=0)
    return np.asarray(np.clip(table, low, high))


# --- what could be proposed ------------------------------------------------------------------------------------


def _plan_of(root: str, plan: str) -> tuple[PretrainConfig, PackedInfo]:
    recipe: dict[str, Any] = read_json(plan_directory(root, plan) / RECIPE_FILE)["recipe"]
    config = PretrainConfig.model_validate({**recipe, "root": root, "name": plan})
    return config, PackedInfo.read(root, config.packed)


def _proposals(
    config: PretrainConfig, packed: PackedInfo, mixtures: Sequence[MixtureAtTarget]
) -> Iterator[_Proposal]:
    """Yield what the plan has not trained, could, and would not cost too much."""
    one_cell = [
        flops
        for model, tokens in sorted(_trained(config))
        for flops in [
            train_flops_6nd(count_parameters(model_of(model), packed.vocab_size).non_embedding, tokens)
        ]
    ]
    there = _run_ids(config, packed)
    limit = DEARER * max(one_cell) * len(mixtures) * len(set(config.seeds))
    for proposal in _thinkable(config, packed, mixtures):
        try:
            _, flops = _new_runs(there, proposal.alone_in(config), packed)
        except UserError:  # more passes over a source than the plan allows, or a sweep without this size
            continue
        if 0.0 < flops <= limit:
            yield proposal


def _trained(config: PretrainConfig) -> set[tuple[str, int]]:
    return {(model, tokens) for axis in config.axes for model in axis.models for tokens in axis.train_tokens}


def _thinkable(
    config: PretrainConfig, packed: PackedInfo, mixtures: Sequence[MixtureAtTarget]
) -> Iterator[_Proposal]:
    trained = _trained(config)
    sizes = {name: count_parameters(shape, packed.vocab_size).non_embedding for name, shape in SIZES.items()}
    largest = max(sizes[model] for model, _ in trained)
    larger = {model for model, size in sizes.items() if largest < size <= LARGER_SIZE * largest}
    budgets = sorted({tokens for _, tokens in trained})
    for model in sorted({model for model, _ in trained} | larger):
        for tokens in (*budgets, *(times * budgets[-1] for times in LARGER_BUDGETS)):
            cell = _Proposal("cell", num_params=sizes[model], model=model, train_tokens=tokens)
            if (model, tokens) not in trained and all(_answers(each, cell) for each in mixtures):
                yield cell
    shares = [each.share for each in mixtures]
    for step in range(1, round(max(shares) / SHARE_STEP)):
        share = round(step * SHARE_STEP, 2)
        if min(abs(share - each) for each in shares) > BESIDE:
            yield _Proposal("share", share=share)
    yield _Proposal("seed", seed=max(config.seeds) + 1)


def _answers(mixture: MixtureAtTarget, cell: _Proposal) -> bool:
    """Return whether the law of a mixture says anything of a cell: one of a single axis does not beside it."""
    try:
        mixture.fitted.predict(cell.num_params, cell.train_tokens)
    except UserError:
        return False
    return True


def _run_ids(config: PretrainConfig, packed: PackedInfo) -> set[str]:
    return {each.run.run_id for each in plan_runs(config, packed)}


def _new_runs(there: set[str], config: PretrainConfig, packed: PackedInfo) -> tuple[int, float]:
    """Return how many runs of a plan are not there yet and their 6 N D. Raises UserError where it cannot be trained."""
    added = [each for each in plan_runs(config, packed) if each.run.run_id not in there]
    check_budgets(added, packed)
    flops = sum(
        train_flops_6nd(
            count_parameters(each.run.model, packed.vocab_size).non_embedding, each.run.train_tokens
        )
        for each in added
    )
    return len(added), flops


# --- the plan that trains them ---------------------------------------------------------------------------------


def next_plan(root: str, plan: str, cells: Sequence[NextCell], name: str) -> str:
    """Return a `pretrain_models` configuration file: the plan with these proposals added, trained where it was.

    Runs it has are found, not repeated. A null that is no default cannot be written in the file and is a flag beside it.
    """
    config, _ = _plan_of(root, plan)
    config = config.model_copy(update={"root": root, "name": name, "placement": _placement_of(root, plan)})
    for cell in cells:
        config = _of(cell).added_to(config)
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    nulls = [
        f" --run.{field} null"
        for field, about in type(config.run).model_fields.items()
        if getattr(config.run, field) is None and about.default is not None
    ]
    lines = [
        f"# The plan {plan!r} and {len(cells)} proposals more. Train it, then fit again with plan = {name!r}:",
        f"#   python -m rayjobs.pretrain_models --config THIS FILE{''.join(nulls)}",
        f"#   python -m rayjobs.fit_laws --root ROOT --plan {name} --name {name}",
        *(f"{toml_key(key)} = {toml_value(value)}" for key, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def _of(cell: NextCell) -> _Proposal:
    return _Proposal(cell.what, cell.num_params or 0, cell.model, cell.train_tokens, cell.share, cell.seed)


def _placement_of(root: str, plan: str) -> TrainPlacement:
    """Return where the plan was trained, which its records know and its recipe does not: of the run with most lanes beside
    it, because what is left at the end of a plan has fewer."""
    run_ids = [each["run_id"] for each in read_json(plan_directory(root, plan) / PLAN_FILE)["runs"]]
    placements = [record.placement for record in records_of(root, run_ids).values()]
    return max(placements, key=lambda each: each.lanes, default=TrainPlacement())
