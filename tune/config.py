"""Job configurations of this package."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from synth.config import Config, Fraction, JobConfig, Name
from train.placement import TrainPlacement
from train.run import RunTemplate
from tune.mixture_space import MOST_SOURCES

LawName = Literal[
    "data",
    "model",
    "chinchilla",
    "chinchilla_tied",
    "over_training",
    "rectified",
    "data_constrained",
    "ratio_floor",
    "ratio_data",
    "ratio_full",
    "bivariate_mixing",
    "exponential_mixing",
]
ObjectiveName = Literal["huber_log", "l1_log", "mse", "mse_log"]
Confidence = Annotated[float, Field(gt=0.0, lt=1.0)]


# --- search_mixture --------------------------------------------------------------------------------------------


class Cell(Config):
    """One (N, D) cell of the search."""

    model: str
    """Model size by name, see `train.sizes`."""
    train_tokens: int = Field(ge=1)
    """Budget D, tokens."""


class SearchPlacement(TrainPlacement):
    """Where the runs of a search are trained."""

    concurrent_trials: int = Field(default=2, ge=1)
    """Trials in flight at once; more than the lanes hides the latency between them."""


class SearchConfig(JobConfig):
    """`search_mixture`: the best synthetic share for each (N, D) -> `searches/<name>/<cell>/{trials.jsonl, best.json}`."""

    name: Name = "search"
    """Name of the search: `searches/<name>`."""
    packed: Name = "packed"
    """Packed set to train on."""
    natural: Name = "natural"
    """Source of natural tokens."""
    synthetic: tuple[Name, ...] = Field(min_length=1)
    """Source of synthetic tokens whose share is searched: one name, or a list whose shares are searched together."""
    cells: tuple[Cell, ...] = Field(min_length=1)
    """Where the best share is wanted."""
    trials_per_cell: int = Field(default=6, ge=3)
    """Most runs spent on a cell, those it starts with and repeats with further seeds included."""
    trials_per_round: int = Field(default=2, ge=1)
    """Trials chosen together after the first round: more keeps more lanes busy, fewer uses each loss sooner."""
    method: Literal["adaptive", "grid"] = "adaptive"
    """`adaptive` chooses shares from the losses so far; `grid` spreads all trials evenly, as a reference."""
    share_range: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Lowest and highest share tried, of all synthetic sources together; what the sources can supply may narrow it."""
    steps: int | None = Field(default=None, ge=2)
    """Shares are whole multiples of 1 / steps; null takes 96 for one source, 24, 12, 8 and 6 for two to five."""
    max_seeds: int = Field(default=1, ge=1)
    """Seeds a share may be trained with; above 1, shares that only noise tells apart are repeated, each with the same
    further seeds, so that they differ in nothing but the share."""
    stop_interval_width: Fraction = 0.0
    """Stop a cell early when the interval of every source's best share is narrower than this; 0 spends all trials, [0, 1]."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens trained on in the whole search, what every cell starts with included, tokens; null sets no limit."""
    seed: int = 0
    """Seed of the sampler and of the runs; the k-th further seed of a share is this plus k."""
    run: RunTemplate = RunTemplate()
    placement: SearchPlacement = SearchPlacement()

    @field_validator("synthetic", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and not value.startswith("[") else value

    @model_validator(mode="after")
    def _range_ordered(self) -> SearchConfig:
        low, high = self.share_range
        if low >= high:
            raise ValueError(f"share_range = [{low}, {high}]: the first must be below the second")
        if len(set(self.synthetic)) < len(self.synthetic):
            raise ValueError(f"synthetic = {list(self.synthetic)} names a source twice: name each once")
        if len(self.synthetic) > MOST_SOURCES:
            raise ValueError(
                f"synthetic names {len(self.synthetic)} sources, and a search takes {MOST_SOURCES} at most: search the "
                "most promising ones, or rank mixtures of many with tune.mixture_regression"
            )
        return self

    @property
    def mixed(self) -> str:
        """What is searched in one word: the source, or the sources joined by a plus."""
        return "+".join(self.synthetic)


# --- fit_laws --------------------------------------------------------------------------------------------------


class ColumnMapping(Config):
    """Names of the columns of a table of runs."""

    num_params: str = "num_params"
    """Column of N, parameters."""
    train_tokens: str = "train_tokens"
    """Column of D, tokens."""
    loss: str = "loss"
    """Column of the loss, nats per token."""
    share: str = "share"
    """Column of the synthetic share of the training tokens, [0, 1]; read wherever it is there, and an empty name leaves it
    alone. Where it varies, laws that do not know it are fitted to each share apart."""
    unique_tokens: str = "unique_tokens"
    """Column of the unique training tokens, tokens; read wherever it is there, and an empty name leaves it alone."""
    shares: tuple[str, ...] = ()
    """Columns of shares of several sources, [0, 1], for exponential_mixing; of shares that add up to 1, leave one out. Other
    laws are fitted to each mixture apart."""
    run_id: str | None = None
    """Column that says which rows are checkpoints of one run (the bootstrap keeps them together); null: none are."""
    group: str | None = None
    """Column whose values are fitted apart, such as the mixture; null: all rows together."""


class LawsConfig(JobConfig):
    """`fit_laws`: run records, or any table of runs -> `laws/<name>/fit.json` and figures."""

    not_identity = JobConfig.not_identity | {"runs", "out"}

    name: Name = "laws"
    """Name of the fit: `laws/<name>`."""
    plan: Name = "grid"
    """Plan of `pretrain_models` whose runs are fitted (ignored with `runs`)."""
    runs: str | None = None
    """A .csv or .parquet table of runs instead of a study's records."""
    columns: ColumnMapping = ColumnMapping()
    out: str | None = None
    """Directory to write to instead of `laws/<name>`."""
    law: LawName | Literal["auto"] = "auto"
    """Which law; `auto` fits data and model laws on the axes, the joint law of each mixture and the law in the share that
    extrapolate best, and lists what they were compared with."""
    objective: ObjectiveName = "huber_log"
    """What the fit minimises; optima differ between objectives, so it is part of every result."""
    huber_delta: float = Field(default=1e-3, gt=0)
    """Corner of the Huber function on log residuals."""
    drop_highest_losses: int = Field(default=0, ge=0)
    """Outlier policy: leave out this many rows with the highest losses, and list them."""
    bootstrap_samples: int = Field(default=1000, ge=0)
    """Bootstrap resamples (by run) behind every interval; 0 gives no intervals."""
    confidence: Confidence = 0.95
    """Level of the intervals, (0, 1)."""
    hold_out_largest: bool = True
    """Also fit without the largest N or D and report the relative error of predicting it."""
    seed: int = 42
    """Seed of the bootstrap."""


# --- recommend_mixture -----------------------------------------------------------------------------------------


class Prices(Config):
    """What generation and training cost; what is left out is taken from the study's own measurements."""

    generation_per_device_hour: float | None = Field(default=None, ge=0)
    """Price of one generation device for an hour, in any one currency; null leaves money out."""
    training_per_device_hour: float | None = Field(default=None, ge=0)
    """Price of one training device for an hour, in the same currency."""
    training_flops_per_device_second: float | None = Field(default=None, gt=0)
    """Achieved training speed of one device at the target scale, FLOP/s; null takes the study's own measured speed."""
    generation_tokens_per_device_second: float | None = Field(default=None, gt=0)
    """Accepted output tokens per device second of the generator; null takes the study's own measured speed."""
    generator_num_params: int | None = Field(default=None, ge=1)
    """Parameters of the generator, for its FLOPs (2 N per token); null takes those of the study's own generator, or of the
    model's configuration where that is on this machine. Give the active ones of a mixture of experts."""
    assumed_generator_num_params: dict[Name, int] = Field(default_factory=dict)
    """The same by synthetic set, where nothing else says them; a study takes them from `assumptions.rephrase`."""


class RecommendConfig(JobConfig):
    """`recommend_mixture`: laws and searches -> `recommendations/<name>.json` for a target (N, D)."""

    name: Name = "recommendation"
    """Name of the recommendation: `recommendations/<name>.json`."""
    laws: Name = "laws"
    """Fit to use."""
    searches: tuple[Name, ...] = ()
    """Searches to use beside the laws."""
    target_num_params: int | None = Field(default=None, ge=1)
    """Target N, non-embedding parameters; null: the compute-optimal one, by the law of natural text."""
    target_train_tokens: int | None = Field(default=None, ge=1)
    """Target D, tokens; null: what target_compute_flops leaves for N."""
    target_compute_flops: float | None = Field(default=None, gt=0)
    """Training budget 6 N D, FLOP, instead of N, of D, or of both."""
    natural_tokens_available: int | None = Field(default=None, ge=1)
    """Natural tokens there are; null: as many as the mixture asks for."""
    max_natural_passes: float = Field(default=4.0, gt=0)
    """Passes over the natural tokens that are acceptable; four are nearly as good as fresh ones (arXiv 2305.16264)."""
    next_cells: int = Field(default=3, ge=0)
    """Cells to propose for training next."""
    prices: Prices = Prices()

    @model_validator(mode="after")
    def _one_target(self) -> RecommendConfig:
        given = [self.target_num_params, self.target_train_tokens].count(None)
        if self.target_compute_flops is None and given:
            name = "target_num_params" if self.target_num_params is None else "target_train_tokens"
            raise ValueError(f"{name} is missing: give it, or target_compute_flops")
        if self.target_compute_flops is not None and not given:
            raise ValueError(
                "target_num_params, target_train_tokens and target_compute_flops are all given: leave one out"
            )
        return self

    @property
    def num_params(self) -> int:
        """Target N, once it is known."""
        assert self.target_num_params is not None
        return self.target_num_params

    @property
    def train_tokens(self) -> int:
        """Target D, once it is known."""
        assert self.target_train_tokens is not None
        return self.target_train_tokens


# --- write_report ----------------------------------------------------------------------------------------------


class ReportPrices(Config):
    """What devices cost; without it the report's ledger has no money in it."""

    currency: str = "USD"
    """Currency of the prices, for display only."""
    generation_device_hour: float | None = Field(default=None, ge=0)
    """Price of one hour of one device that generates."""
    training_device_hour: float | None = Field(default=None, ge=0)
    """Price of one hour of one device that trains."""


class ClaimRoles(Config):
    """Which synthetic sources the paper's claims are tested on; what is left out is read off the recipes that made them."""

    rephrased: Name | None = None
    """Source of documents rewritten as clear prose."""
    question_answer: Name | None = None
    """Source of documents turned into questions and answers."""
    textbook: Name | None = None
    """Source of textbook sections written from keywords."""
    generators: tuple[Name, ...] = ()
    """Three sources that differ in the size of their generator alone, small to large."""

    @model_validator(mode="after")
    def _three_generators(self) -> ClaimRoles:
        if self.generators and len(self.generators) != 3:
            raise ValueError(
                f"generators names {len(self.generators)} sources: name a small, a middle and a large one"
            )
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """All names given."""
        parts = (self.rephrased, self.question_answer, self.textbook)
        return tuple(dict.fromkeys((*(name for name in parts if name), *self.generators)))


class ReportConfig(JobConfig):
    """`write_report`: everything above -> `report/{index.html, report.md, *.csv}`."""

    name: Name = "report"
    """Name of the report: the directory it is written to under the root."""
    title: str = "How much synthetic data?"
    """Title of the page."""
    plan: Name = "grid"
    """Plan of `pretrain_models` to show."""
    laws: Name = "laws"
    """Fit to show."""
    searches: tuple[Name, ...] = ()
    """Searches to show."""
    recommendations: tuple[Name, ...] = ()
    """Recommendations to show."""
    synthetic: tuple[Name, ...] = ()
    """Synthetic sets to show."""
    corpora: tuple[Name, ...] = ()
    """Corpora to show."""
    prices: ReportPrices = ReportPrices()
    """Prices of the cost ledger; in a study those of the study."""
    claims: ClaimRoles = ClaimRoles()
    """Which sources the paper's claims are tested on, where the recipes do not tell or tell it wrong."""


# --- compare_studies -------------------------------------------------------------------------------------------


class CompareConfig(JobConfig):
    """`compare_studies`: two studies, or two synthetic sources of one -> paired differences with intervals."""

    root: str = "."
    """Directory or prefix the comparison is written under."""
    name: Name = "comparison"
    """Directory with `index.html`, `comparison.md` and `comparison.json`."""
    study_a: str
    """Root of the first study; `python -m rayjobs.compare_studies A B` gives both."""
    study_b: str
    """Root of the second study; may be the first one again, with `pairs`."""
    plan_a: Name = "grid"
    """Plan of `pretrain_models` of the first study."""
    plan_b: Name = "grid"
    """Plan of the second study."""
    searches_a: tuple[Name, ...] = ()
    """Searches of the first study whose best shares are compared."""
    searches_b: tuple[Name, ...] = ()
    """Searches of the second study."""
    pairs: dict[Name, Name] = Field(default_factory=dict)
    """Synthetic source of the first study -> the one of the second it is compared with; empty: those of the same name."""
    confidence: Confidence = 0.95
    """Level of the intervals, (0, 1)."""
