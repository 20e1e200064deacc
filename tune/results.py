"""What this package writes for people and later steps to read: fits, optima, recommendations. Plain JSON records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from train.record import Record


class Interval(Record):
    """A number with its uncertainty."""

    value: float
    low: float | None = None
    """Lower end of the interval at the result's confidence level; null when it was not computed."""
    high: float | None = None
    """Upper end."""
    standard_error: float | None = None


class ExcludedRow(Record):
    """A run that was not used, and why."""

    run_id: str
    reason: str


class HeldOutPoint(Record):
    """A run left out of a fit and predicted by it."""

    run_id: str
    num_params: float | None
    """Null when the table of runs does not say (a data law needs only D)."""
    train_tokens: float | None
    loss: float
    predicted_loss: float
    relative_error: float
    """(predicted - measured) / measured."""


class HoldOut(Record):
    """Extrapolation check: the largest scale predicted from the smaller ones."""

    points: tuple[HeldOutPoint, ...]
    mean_absolute_relative_error: float
    """Mean of |relative_error|: our reading of the paper's RMABE."""


class Profile(Record):
    """Profile likelihood of one parameter: how much worse the best fit gets when the parameter is held elsewhere."""

    values: tuple[float, ...]
    """Values it was held at, ascending."""
    deviance: tuple[float, ...]
    """Rise of the objective there, in units in which it follows an F distribution of 1 and n - p degrees of freedom."""
    level: float
    """Deviance at the ends of the interval, at the fit's confidence."""
    low: float | None
    """Lower end; null when no value is too low for the data."""
    high: float | None
    weak: bool
    """Whether very different values fit about equally well."""
    verdict: str
    """The same in words."""


class FrontierPoint(Record):
    """The compute-optimal run of one budget; null where the law has no optimum inside nine decades of sizes."""

    compute_flops: float
    """6 N D, FLOP."""
    num_params: Interval | None
    train_tokens: Interval | None
    tokens_per_param: Interval | None
    loss: Interval | None


class Frontier(Record):
    """Compute-optimal training by a joint law."""

    points: tuple[FrontierPoint, ...]
    num_params_exponent: Interval | None
    """a in N* ~ C^a over the budgets above."""
    train_tokens_exponent: Interval | None
    """1 - a."""


class LawScore(Record):
    """How one law did in a selection."""

    law: str
    num_parameters: int
    in_sample: float | None
    """Objective at the optimum over all rows, added over groups."""
    held_out: dict[str, float | None]
    """Mean absolute relative error by what was held out: num_params, train_tokens, compute; null when not comparable."""
    reason: str | None = None
    """Why it was not compared."""


class Selection(Record):
    """Laws compared by how they extrapolate, best first."""

    law: str
    """The law chosen."""
    scores: tuple[LawScore, ...]
    reason: str


class ShareByLaw(Record):
    """The best share of one (N, D) cell by a law that knows the share."""

    num_params: float
    train_tokens: float
    best_share: Interval


class LawFit(Record):
    """One law fitted to one set of runs."""

    law: str
    formula: str
    """The law written out, with its units."""
    group: str
    """What was fitted apart from the rest: the mixture, or `all`."""
    axis: Literal["tokens", "params", "both", "shares"]
    """Which of D and N varied; `shares` for a law of the mixture alone."""
    shares: tuple[str, ...] = ()
    """Columns of shares the law is written in, for laws of the mixture."""
    fixed: dict[str, float] = Field(default_factory=dict)
    """What was held fixed on a one-axis law: num_params or train_tokens."""
    objective: str
    huber_delta: float | None
    objective_value: float
    """Sum over rows at the optimum, in the objective's own terms."""
    gradient_norm: float
    """Euclidean norm of the objective's gradient at the optimum, in the fit's internal coordinates."""
    converged: bool
    parameters: dict[str, Interval]
    confidence: float
    interval_method: Literal["pairs", "parametric", "none"]
    """`pairs`: whole runs resampled; `parametric`: losses redrawn around the curve (few runs); `none`: no interval."""
    bootstrap_samples: int
    """Resamples behind the intervals, in the order of the fit's entry in `bootstrap.npz`; 0 without intervals."""
    noise_log: float | None = None
    """Run-to-run standard deviation of the log loss taken from residuals; null when no degree of freedom is left."""
    noise_degrees_of_freedom: int = 0
    """How well noise_log is known: rows (runs) minus parameters, added over the fits it was pooled from."""
    ranges: dict[str, tuple[float, float]]
    """Lowest and highest value of each input of the law among the rows used; outside it, the law extrapolates."""
    num_starts: int
    starts_followed: int = 0
    """Starts, spread evenly over the grid, that were carried to the end whatever became of them."""
    starts_at_optimum_fraction: float | None
    """Part of the followed starts whose objective ended within 1e-6 (relative) of the best one: an estimate of the part of
    all starts; null when none were followed."""
    rows_used: tuple[str, ...]
    rows_excluded: tuple[ExcludedRow, ...] = ()
    hold_out: HoldOut | None = None
    profiles: dict[str, Profile] = Field(default_factory=dict)
    """By parameter; empty when nothing says how large the noise is."""
    frontier: Frontier | None = None
    """Compute-optimal sizes and budgets, for laws in N and D alone."""
    best_shares: tuple[ShareByLaw, ...] = ()
    """Of every cell among the rows, by size and budget, for laws in N, D and the share of one source."""
    selection: Selection | None = None
    """How the law was chosen, when it was."""
    warnings: tuple[str, ...] = ()


class FitFile(Record):
    """`laws/<name>/fit.json`: all fits of one job."""

    hash: str
    recipe: dict[str, Any]
    fits: tuple[LawFit, ...]
    rows: tuple[dict[str, Any], ...]
    """Every row considered: run_id, group, num_params, train_tokens, loss, share, synthetic, used."""
    warnings: tuple[str, ...] = ()
    """What holds for the job as a whole: laws that could not be fitted to a group, and why."""
    notes: tuple[str, ...] = ()
    """What was made of the rows where they left a choice, and what to know of them."""
    provenance: dict[str, Any]


class TrialResult(Record):
    """One trial of a search: it points to a run, the score is read from the run's record."""

    share: float
    """Synthetic share, of all sources together."""
    shares: dict[str, float] = Field(default_factory=dict)
    """By synthetic source, when several are searched."""
    replicate: int = 0
    """0 for the search's seed, k for the k-th further one."""
    run_id: str
    status: Literal["complete", "diverged", "failed"]
    loss_nats_per_token: float | None
    reason: str | None = None


class OneSource(Record):
    """The best of natural text and one synthetic source, of the mixtures a search of several sources had to choose from."""

    synthetic: str | None
    """Null when that is natural text alone."""
    share: float
    excess: Interval
    """How much more it loses than the best mixture of all, nats per token, surface by surface."""


class CellOptimum(Record):
    """`searches/<name>/<cell>/best.json`: the best share of one (N, D) cell."""

    search: str
    natural: str
    synthetic: str
    """The source searched; of several, their names joined by a plus."""
    model: str
    num_params: int
    train_tokens: int
    trials: tuple[TrialResult, ...]
    best_share: Interval
    """Synthetic share at the minimum of the smooth fit through the losses, not of the best single run."""
    best_shares: dict[str, Interval] = Field(default_factory=dict)
    """The same by source, when several were searched."""
    region: tuple[tuple[float, ...], ...] = ()
    """Of several sources: the mixtures (a share a source, in the order of best_shares) one of which is the best, at the
    confidence of the intervals."""
    gain: Interval | None = None
    """Of several sources: how much less the best mixture loses than natural text alone, nats per token, surface by surface;
    null when the search was not allowed natural text alone."""
    one_source: OneSource | None = None
    """Of several sources: what a mixture of one loses more; null when share_range or the caps allow none."""
    share_caps: dict[str, float] = Field(default_factory=dict)
    """By source, natural text included: the highest share its tokens allow in this cell; only where that is below 1."""
    best_loss: Interval
    """Loss of the smooth fit at the best share, nats per token."""
    natural_only_loss: float | None
    """Loss of the share 0 run, nats per token."""
    curve: tuple[tuple[float, float, float, float], ...]
    """Points (share, loss, low, high) of the smooth fit, for drawing; of several sources, at the best split of each share."""
    noise_nats: float | None
    """Residual standard deviation of the smooth fit, nats per token."""
    method: str
    """How the fit and the interval were made."""
    warnings: tuple[str, ...] = ()


ClaimVerdict = Literal["supported", "not supported", "not testable with these runs"]


class ClaimPart(Record):
    """One statistic of a claim: a claim that says two things has two."""

    statistic: str
    """What was computed, and where the claim says it lies."""
    value: Interval | None
    """Null when it could not be computed."""
    verdict: ClaimVerdict
    reason: str
    """What the statistic is of, or why there is none."""


class ClaimResult(Record):
    """One finding of the paper, tested on the runs of a study."""

    number: int
    claim: str
    verdict: ClaimVerdict
    """Of all parts together."""
    parts: tuple[ClaimPart, ...]


class EqualLoss(Record):
    """Tokens a mixture needs to reach the loss natural data alone reaches with the target's tokens."""

    group: str
    tokens: Interval
    speed_up: Interval
    """Target tokens / tokens: above 1, the mixture needs fewer."""


class NextCell(Record):
    """What is worth training next: a cell with every share and seed of the plan, a new share or a further seed in every cell."""

    what: Literal["cell", "share", "seed"] = "cell"
    model: str | None = None
    """Of a cell, like its N and D."""
    num_params: int | None = None
    train_tokens: int | None = None
    share: float | None = None
    """A new share."""
    seed: int | None = None
    """A further seed."""
    runs: int
    """Runs of the recommended source and natural text that the plan gains, after the proposals before."""
    flops: float
    """6 N D of these runs, FLOP."""
    expected_interval_width: float
    """Expected width of the best share's interval after this proposal and those before it."""


class Sensitivity(Record):
    """What the answer would be had one thing been different."""

    what: str
    synthetic: str
    best_share: Interval
    predicted_loss: Interval
    gain_nats: float
    """Loss of natural text alone less the predicted loss, nats per token."""
    gain: Interval | None = None
    """The same with its interval."""
    pays: Literal["yes", "no", "unclear"]
    natural_cost_ratio: Interval | None = None
    """As in the recommendation."""


class Split(Record):
    """Several synthetic sources together at the target, by one search."""

    search: str
    headline: str
    """It all in one sentence, or two."""
    shares: dict[str, Interval]
    """By source; natural text is the rest."""
    gain: Interval | None
    """Of the searched cell nearest to the target: how much less its best mixture loses than natural text alone, nats per token."""
    one_source: OneSource | None
    """Of the same cell."""

    @property
    def is_shown(self) -> bool:
        """Whether several sources lose less than any one of them, at the confidence of the intervals."""
        return self.one_source is not None and (self.one_source.excess.low or 0.0) > 0.0


class Recommendation(Record):
    """`recommendations/<name>.json`."""

    hash: str
    recipe: dict[str, Any] = Field(default_factory=dict)
    """The configuration it was made with."""
    parents: dict[str, str] = Field(default_factory=dict)
    """Hashes of the laws and searches it was made from, by role."""
    target_num_params: int
    target_train_tokens: int
    best_share: Interval
    """Share of the training tokens that are synthetic, [0, 1]."""
    best_group: str
    """The mixture trained in the study that is nearest to the best share. No number is taken from it alone."""
    synthetic: str | None = None
    """Source of the synthetic tokens."""
    headline: str = ""
    """The answer in one sentence."""
    predicted_loss: Interval
    """Loss of the best share by the curve over the shares at the target, nats per token."""
    natural_only_loss: Interval
    """Loss of natural text alone by the same curve, nats per token."""
    gain: Interval | None = None
    """natural_only_loss less predicted_loss, nats per token, with an interval of its own: the curve's draws, one by one."""
    least_share: float | None = None
    """Lowest share with which the natural tokens there are suffice; null where they do without any synthetic ones."""
    equally_good_shares: tuple[float, float] | None = None
    """Lowest and highest share that may lose as little as the best one, at the confidence of the intervals, least_share or more."""
    equal_loss: tuple[EqualLoss, ...]
    """Of the trained mixtures that get there, by their laws."""
    equal_loss_at_best_share: EqualLoss | None = None
    """The same of the best share itself, by the curve and the laws on either side; null where it never gets there."""
    synthetic_tokens: float
    """Synthetic tokens the recommended mixture needs (unique), tokens."""
    training_flops: float
    generation_flops: float | None
    training_device_hours: float | None
    generation_device_hours: float | None
    cost: float | None
    """Generation and training at the given prices; null without prices."""
    pays: Literal["yes", "no", "unclear"]
    """Whether the best share still wins when the generation compute is charged to it."""
    pays_reason: str
    natural_cost_ratio: Interval | None = None
    """What natural text alone costs to lose as little as the best share, over what that costs with its generation; null
    where a cost is not known or natural text never gets there."""
    natural_passes: float | None = None
    """Passes over the available natural tokens that the mixture needs; null when it was not said how many there are."""
    splits: tuple[Split, ...] = ()
    """What searches of several sources together say at the target. All else in this record is of one source."""
    sensitivity: tuple[Sensitivity, ...] = ()
    next_cells: tuple[NextCell, ...] = ()
    """What to train next, the most telling first; `recommendations/<name>.next.toml` is the plan for it."""
    evidence: tuple[str, ...]
    """Fits, searches and runs behind the numbers."""
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def gain_is_shown(self) -> bool:
        """Whether the whole interval of the gain is above 0; without an interval, whether the gain is."""
        if self.gain is None:
            return self.best_share.value > 0.0
        return (self.gain.value if self.gain.low is None else self.gain.low) > 0.0

    @property
    def natural_text_may_do(self) -> bool:
        """Whether natural text alone would suffice and is not shown to lose more than the best share."""
        return self.best_share.value > 0.0 and self.least_share is None and not self.gain_is_shown
