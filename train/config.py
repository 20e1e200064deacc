"""Job configurations of this package. What decides a run is in `train.run`, where it is trained in `train.placement`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from synth.config import Config, Fraction, JobConfig, Name
from synth.recipe import Task
from train.placement import TrainPlacement
from train.run import Mixture, RunTemplate

# --- pack_tokens -----------------------------------------------------------------------------------------------


class TokenizerConfig(Config):
    """The tokenizer of a study: trained on its own natural text, or loaded by name or path."""

    kind: Literal["train", "load"] = "train"
    """`train` makes a byte-level BPE of the sources in `train_on`; `load` takes one that exists."""
    vocab_size: int = Field(default=2048, ge=257)
    """Tokens in a trained vocabulary, special tokens included."""
    train_on: tuple[Name, ...] = ()
    """Sources (names in `sources`) whose text trains the tokenizer; empty takes all of them."""
    path: str | None = None
    """Repository id or directory of a tokenizer to load (`root:...` is relative to the study root)."""

    @model_validator(mode="after")
    def _path_when_loaded(self) -> TokenizerConfig:
        if (self.kind == "load") != (self.path is not None):
            raise ValueError("give path exactly when kind is 'load'")
        return self


class PackSource(Config):
    """One source of training tokens: the train split of a corpus, or the kept rows of a synthetic set."""

    corpus: Name | None = None
    """`corpora/<corpus>`."""
    synthetic: Name | None = None
    """`synthetic/<synthetic>`; its rows with keep = true."""
    recipe: str | None = None
    """Only the rows this recipe made; null takes all recipes of the set."""

    @model_validator(mode="after")
    def _one_origin(self) -> PackSource:
        if (self.corpus is None) == (self.synthetic is None):
            raise ValueError("give exactly one of corpus and synthetic")
        if self.recipe is not None and self.synthetic is None:
            raise ValueError("recipe selects rows of a synthetic set: give synthetic, not corpus")
        return self


class PackPlacement(Config):
    """How wide `pack_tokens` runs."""

    tasks: int = Field(default=0, ge=0)
    """Parallel tokenising tasks; 0 takes one per CPU of the cluster."""


class PackConfig(JobConfig):
    """`pack_tokens`: corpora and synthetic sets -> `packed/<name>/`: token shards, index, tokenizer, manifest."""

    name: Name = "packed"
    """Name of the packed set: `packed/<name>`."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    sources: dict[Name, PackSource] = Field(min_length=1)
    """Training sources by name; a mixture refers to these names."""
    evaluate_on: tuple[Name, ...] = Field(min_length=1)
    """Corpora whose held-out split becomes the evaluation sets, one per domain."""
    sequence_length: int = Field(default=256, ge=8)
    """Length of a training row, tokens."""
    max_evaluation_tokens_per_domain: int = Field(default=16_384, ge=256)
    """Cap on each evaluation set, tokens (whole rows, lowest document hash first)."""
    placement: PackPlacement = PackPlacement()


# --- pretrain_models -------------------------------------------------------------------------------------------


class Axis(Config):
    """A block of the plan: every model with every budget. The paper's two axes are two such blocks."""

    models: tuple[str, ...] = Field(min_length=1)
    """Model sizes by name, see `train.sizes`."""
    train_tokens: tuple[int, ...] = Field(min_length=1)
    """Budgets D, tokens."""


class PretrainConfig(JobConfig):
    """`pretrain_models`: a packed set and a plan -> one `runs/<run_id>/record.json` for each (N, D, mixture, seed)."""

    name: Name = "grid"
    """Name of the plan: `plans/<name>.json` lists its runs."""
    packed: Name = "packed"
    """Packed set to train on."""
    natural: Name = "natural"
    """Source of natural tokens in the packed set."""
    synthetic: tuple[Name, ...] = ()
    """Sources of synthetic tokens; each is mixed with the natural source on its own."""
    shares: tuple[Fraction, ...] = Field(default=(0.0, 1 / 3, 2 / 3, 1.0), min_length=1)
    """Synthetic shares of the training tokens, [0, 1]; share 0 is trained once for all synthetic sources."""
    axes: tuple[Axis, ...] = Field(min_length=1)
    """Blocks of (model, budget) pairs; a pair in two blocks is trained once."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every run is repeated with each of these seeds."""
    run: RunTemplate = RunTemplate()
    placement: TrainPlacement = TrainPlacement()


# --- sweep_learning_rates --------------------------------------------------------------------------------------


class RateSweepConfig(JobConfig):
    """`sweep_learning_rates`: short runs of every size at several peak rates -> `learning_rates/<name>/`, the best of each.

    A plan or a search uses them with `run.optimizer.learning_rates = "<name>"`.
    """

    name: Name = "rates"
    """Name of the sweep: `learning_rates/<name>`."""
    packed: Name = "packed"
    """Packed set to train on."""
    mixture: Mixture = Field(default_factory=lambda: {"natural": 1.0})
    """Share of the training tokens from each source; one rate then serves all mixtures of a study."""
    models: tuple[str, ...] = Field(min_length=1)
    """Model sizes by name, see `train.sizes`."""
    train_tokens: int = Field(ge=1)
    """Budget of each run, tokens. The best rate falls as budgets grow, so take one near those it is for."""
    rates_per_size: int = Field(default=5, ge=3)
    """Peak rates tried at first, around the one that `run.optimizer` gives the size; an odd number."""
    rate_ratio: float = Field(default=2.0, gt=1)
    """Each rate is the one below times this."""
    max_rates_per_size: int = Field(default=11, ge=3)
    """Most rates tried when the best lies at the edge and the grid is extended past it."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every rate is trained with each of these seeds."""
    run: RunTemplate = RunTemplate()
    """Everything else of the runs: use that of the plan the rates are for."""
    placement: TrainPlacement = TrainPlacement()

    @model_validator(mode="after")
    def _sensible(self) -> RateSweepConfig:
        if self.rates_per_size % 2 == 0:
            raise ValueError(
                f"rates_per_size = {self.rates_per_size}: take an odd number, so that one is the middle"
            )
        if self.max_rates_per_size < self.rates_per_size:
            raise ValueError(
                f"max_rates_per_size = {self.max_rates_per_size} is below rates_per_size = {self.rates_per_size}: raise it"
            )
        if self.run.optimizer.learning_rates is not None:
            raise ValueError(
                "run.optimizer.learning_rates names a sweep, and this is one: give the rate to start from"
            )
        return self


# --- evaluate_models -------------------------------------------------------------------------------------------


class EvaluatePlacement(Config):
    """How wide `evaluate_models` runs."""

    tasks: int = Field(default=1, ge=1)
    """Models evaluated at once."""
    cpus_per_task: float = Field(default=1.0, gt=0)
    """CPUs each asks of the cluster."""
    gpus_per_task: float = Field(default=0.0, ge=0)
    """GPUs each asks of the cluster; with none a model runs on the CPU."""
    batch_size: int = Field(default=16, ge=1)
    """Requests a model answers at once."""


class EvaluateConfig(JobConfig):
    """`evaluate_models`: the kept models of a plan -> `evaluations/<name>/`, scores of lm-evaluation-harness.

    Needs the package lm_eval, and models trained with `placement.keep_models = true`.
    """

    name: Name = "evaluation"
    """Name of the evaluation: `evaluations/<name>`."""
    plan: Name = "grid"
    """Finished plan of `pretrain_models` whose complete runs are evaluated."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks or groups of lm-evaluation-harness by name, such as `arc_easy`; the harness fetches their data."""
    include_path: str | None = None
    """Directory with task files of your own, on every worker."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question; null takes each task's own number."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many questions of each task; null takes all of them."""
    seed: int = 0
    """Seed of the harness: which examples go before a question."""
    placement: EvaluatePlacement = EvaluatePlacement()


# --- train_generator -------------------------------------------------------------------------------------------


class GeneratorTemplate(RunTemplate):
    """What a generator's run is told besides size and budget. Its exchanges are few, so it may repeat them."""

    max_epochs: float | None = Field(default=None, gt=0)
    """Most passes over its exchanges; null allows any number."""


class GeneratorConfig(JobConfig):
    """`train_generator`: a corpus -> `generators/<name>/`, a Hugging Face checkpoint any engine can serve.

    A small stand-in for the instruct model that a real study names in `[rephrase.engine]`.
    """

    name: Name = "tiny"
    """Name of the generator: `generators/<name>`."""
    corpus: Name
    """Corpus to learn from; keep it disjoint from the study's natural corpus."""
    synthetic: Name | None = None
    """Synthetic set whose kept rows it learns from too: the next round of a chain in which each generator writes what
    the next one reads. null: the corpus alone."""
    natural_fraction: Fraction | None = None
    """With `synthetic`: part of its training tokens that comes from the corpus, [0, 1]."""
    recipes: dict[str, Task] = Field(default_factory=dict)
    """Recipes it learns to answer, by shipped name or path of a TOML file, each with what rules answer it by: `rewrite`, `ask`,
    `summarise`, `continue` or `section` (docs/generator.md). Empty: it learns to continue its documents."""
    model: str = "780k"
    """Model size by name, see `train.sizes`."""
    vocab_size: int = Field(default=2048, ge=257)
    """Tokens in its vocabulary."""
    train_tokens: int = Field(default=1_000_000, ge=1)
    """Training budget, tokens."""
    sequence_length: int = Field(default=256, ge=8)
    """Row length, tokens."""
    max_position: int = Field(default=1024, ge=16)
    """Longest prompt plus output of the exported model, tokens."""
    run: GeneratorTemplate = GeneratorTemplate()
    seed: int = 0
    """Seed of weights and data order."""
    placement: TrainPlacement = TrainPlacement()

    @model_validator(mode="after")
    def _sensible(self) -> GeneratorConfig:
        if self.sequence_length > self.max_position:
            raise ValueError(
                f"sequence_length = {self.sequence_length} is longer than the model's max_position = {self.max_position}: "
                "lower the one or raise the other"
            )
        if self.recipes and self.synthetic is not None:
            raise ValueError("recipes are learnt from the corpus alone: leave out synthetic, or recipes")
        if (self.synthetic is None) != (self.natural_fraction is None):
            raise ValueError("give natural_fraction exactly when synthetic names a set to learn from")
        if self.run.optimizer.learning_rates is not None:
            raise ValueError(
                "run.optimizer.learning_rates names a sweep, and sweeps are of a study's packed set, not of a generator's own: "
                "give peak_learning_rate"
            )
        return self


# --- assess_generator ------------------------------------------------------------------------------------------


class AssessConfig(JobConfig):
    """`assess_generator`: a generator and what it wrote about documents it never saw -> `assessments/<name>/`: measures, model
    card, and a release that others can serve.
    """

    name: Name = "assessment"
    """Name of the assessment: `assessments/<name>`."""
    generator: Name
    """Finished generator that learnt `recipes`, `generators/<generator>`."""
    synthetic: Name
    """Finished synthetic set that this generator wrote with the recipes it learnt, from a corpus of packages it never read."""
    title: str = "A small generator that rephrases docstrings"
    """Heading of the card."""
    examples: int = Field(default=20, ge=0)
    """Rows shown in the card: the first of the set, whatever they are; documents are in the order of a hash."""
    max_shard_megabytes: float = Field(default=25.0, gt=0)
    """Largest file of weights in the release, 10^6 bytes."""
