"""Job configurations of this package, and `RunConfig`: everything that decides one pre-training run."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from synth.config import Config, Fraction, JobConfig, Name
from synth.identity import content_hash

Mixture = dict[Name, Fraction]
"""Share of the training tokens drawn from each source, by token; the shares sum to 1."""

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


# --- one run ---------------------------------------------------------------------------------------------------


class ModelConfig(Config):
    """Shape of a Llama-3-style decoder. The named sizes are in `train.sizes`."""

    num_layers: int = Field(ge=1)
    """Transformer blocks."""
    hidden_size: int = Field(ge=8)
    """Width of the residual stream."""
    num_heads: int = Field(ge=1)
    """Query heads; the hidden size is divisible by it."""
    num_kv_heads: int = Field(ge=1)
    """Key and value heads (grouped-query attention); divides num_heads."""
    intermediate_size: int = Field(ge=8)
    """Width of the gated feed-forward layer."""
    tie_embeddings: bool = True
    """Share the input embedding with the output projection."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide hidden_size = {self.hidden_size} evenly"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads} must divide num_heads = {self.num_heads}")
        return self


class OptimizerConfig(Config):
    """AdamW with decoupled weight decay on matrices, gradient clipping, and a schedule in tokens."""

    peak_learning_rate: float = Field(default=3e-3, gt=0)
    """Learning rate after warm-up, at `reference_num_params`."""
    reference_num_params: int | None = Field(default=None, ge=1)
    """With it, the rate of a run is scaled by (N / this) ** learning_rate_exponent, N non-embedding parameters."""
    learning_rate_exponent: float = -0.25
    """Exponent of that rule."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; norms and biases are not decayed."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """`wsd`: warm-up, constant, linear decay to zero; `cosine`: warm-up, cosine to a tenth of the peak."""
    warmup_fraction: Fraction = 0.05
    """Part of the run's tokens spent warming up, [0, 1]."""
    warmup_tokens: int | None = Field(default=None, ge=0)
    """Tokens spent warming up, in place of `warmup_fraction`: the same for every budget, as branching needs it."""
    decay_fraction: Fraction = 0.2
    """Part of the run's tokens spent decaying (wsd only), [0, 1]."""


HyperparameterRule = Literal["step_law", "deepseek"]
"""A published rule for learning rate and batch, see `train.hyperparameters`."""


class TemplateOptimizer(OptimizerConfig):
    """The optimizer of a plan: the numbers themselves, or where each run gets its peak learning rate from."""

    learning_rates: Name | None = None
    """Sweep whose best rate every size takes as its peak, `learning_rates/<name>`, in place of `peak_learning_rate`."""
    learning_rate_rule: HyperparameterRule | None = None
    """Published rule of (N, D) that gives the peak, in place of `peak_learning_rate`: `step_law` (Li et al. 2025) or
    `deepseek` (Bi et al. 2024); both were fitted to models far larger than a demo's."""

    @model_validator(mode="after")
    def _one_source_of_the_rate(self) -> TemplateOptimizer:
        named = [name for name in ("learning_rates", "learning_rate_rule") if getattr(self, name) is not None]
        own = ("peak_learning_rate", "reference_num_params")
        changed = [name for name in own if getattr(self, name) != OptimizerConfig.model_fields[name].default]
        both = [*named, *changed] if named else []
        if len(both) > 1:
            raise ValueError(
                f"{both[0]} and {both[1]} both set the peak learning rate: leave one of them out"
            )
        return self


OF_A_BRANCH = frozenset(
    {
        "train_tokens",
        "decay_fraction",
        "warmup_fraction",
        "max_epochs",
        "max_epochs_by_source",
        "evaluations",
        "branching",
    }
)
"""Fields of a run and of its optimizer that runs of one trunk may differ in."""


def check_branching(run: RunConfig | RunTemplate) -> None:
    """Raise ValueError when a run that branches has no trunk that other budgets could share."""
    if not run.branching:
        return
    if run.optimizer.schedule != "wsd":
        raise ValueError(
            f"branching = true needs optimizer.schedule = 'wsd', not {run.optimizer.schedule!r}, whose rate depends on the "
            "budget from the first step on: set one of the two"
        )
    if isinstance(run, RunTemplate):
        ruled = {
            "batch_rule": run.batch_rule,
            "optimizer.learning_rate_rule": run.optimizer.learning_rate_rule,
        }
        for field, rule in ruled.items():
            if rule is not None:
                raise ValueError(
                    f"branching = true with {field} = {rule!r}, which depends on the budget, and branches of one trunk share "
                    "all but that: give a number or a sweep instead"
                )
    if run.optimizer.warmup_tokens is None:
        raise ValueError(
            "branching = true needs optimizer.warmup_tokens, because all budgets share one warm-up: set it, for instance "
            "to a twentieth of the shortest budget"
        )
    if run.evaluations != 1:
        raise ValueError(
            f"branching = true with evaluations = {run.evaluations}: a branch is evaluated at its end alone, since what is "
            "before it belongs to all budgets; set evaluations = 1 and add budgets instead"
        )


class RunConfig(Config):
    """Everything that decides one run's weights and losses: its hash is the run's id.

    A run is a pure function of this and of the packed set it names; where it runs is a `TrainPlacement`.
    """

    packed: Name
    """Packed set, `packed/<packed>` under the study root."""
    packed_hash: str
    """Identity of that packed set, so that a run is never resumed on other tokens."""
    model: ModelConfig
    mixture: Mixture
    train_tokens: int = Field(ge=1)
    """Training budget D, tokens; rounded down to whole optimiser steps (`num_steps`)."""
    rows_per_step: int = Field(default=8, ge=1)
    """Rows of the packed sequence length in one optimiser step: the global batch."""
    sequence_length: int = Field(ge=8)
    """Row length of the packed set, tokens."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of weights and activations in the forward and backward pass; the master copy is float32."""
    max_epochs: float | None = Field(default=1.0, gt=0)
    """Most passes over any source; 1 refuses to repeat, null allows any number."""
    max_epochs_by_source: dict[Name, PositiveFloat] = Field(default_factory=dict)
    """Most passes over single sources, in place of max_epochs for them."""
    evaluations: int = Field(default=1, ge=1)
    """Evaluations on every held-out domain, evenly spaced over the run, the last one at its end."""
    branching: bool = False
    """Share the part before the decay with runs that differ only in budget (`train.trunk`): what one of them has
    trained, the next goes on from. Weights and losses are those of a run of its own, bit by bit."""
    seed: int = 0
    """Seed of the initial weights and of the data order; runs that differ only in share see the same order."""

    @model_validator(mode="after")
    def _sensible(self) -> RunConfig:
        check_branching(self)
        total = math.fsum(self.mixture.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"mixture shares sum to {total:.6g}; they must sum to 1")
        if self.train_tokens < self.tokens_per_step:
            raise ValueError(
                f"train_tokens = {self.train_tokens} is less than one step of {self.tokens_per_step} tokens "
                "(rows_per_step x sequence_length): raise train_tokens or lower rows_per_step"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimiser step."""
        return self.rows_per_step * self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the run."""
        return self.train_tokens // self.tokens_per_step

    @property
    def run_id(self) -> str:
        """Identity of the run, 16 hex digits; the name of its directory under `runs/`."""
        return content_hash({"kind": "run", "recipe": self.identity()})

    @property
    def trunk_id(self) -> str | None:
        """Identity of the trunk this run branches off, 16 hex digits; null without branching.

        It is the hash of all that decides the weights before the decay: everything but the budget and the decay.
        """
        if not self.branching:
            return None
        recipe = self.identity()
        optimizer = {name: value for name, value in recipe["optimizer"].items() if name not in OF_A_BRANCH}
        shared = {name: value for name, value in recipe.items() if name not in OF_A_BRANCH}
        return content_hash({"kind": "trunk", "recipe": shared | {"optimizer": optimizer}})


def _one_or_two(workers: Any) -> Any:
    """Return a number, or the least and the most; a flag arrives as a list, whichever it is."""
    numbers = list(workers) if isinstance(workers, (list, tuple)) else [workers]
    try:
        least, most = (int(str(number)) for number in (numbers[0], numbers[-1]))
    except (ValueError, IndexError):
        least = most = 0
    if least < 1 or len(numbers) > 2 or (len(numbers) == 2 and least >= most):
        raise ValueError(
            "give a number of workers from 1, or [least, most] with least below most for groups that may change in size"
        )
    return least if len(numbers) == 1 else (least, most)


Tracker = Literal["tensorboard", "mlflow", "wandb"]


class TrainPlacement(Config):
    """Where and how wide runs are trained; never part of a run's identity, always part of its record."""

    lanes: int = Field(default=1, ge=1)
    """Warm worker groups side by side; each trains one run at a time from the common queue."""
    workers_per_lane: Annotated[int | tuple[int, int], BeforeValidator(_one_or_two)] = 1
    """Data-parallel workers in each group: a number, or `[least, most]` for as many as the cluster has: a group starts again
    smaller when it loses a worker's node, and larger when there is room. Its size is `most` or a divisor of it."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs each worker asks of the cluster."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs each worker asks of the cluster; below 1, small models share a GPU."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Compute threads of a CPU worker."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage."""
    rows_per_microbatch: int = Field(default=8, ge=1)
    """Rows one worker passes forward at once; the rest of a step is gradient accumulation. Halved when the device has
    not the memory for them."""
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)
    """A run that lasts longer than this leaves a checkpoint about this often, seconds."""
    keep_models: bool = False
    """Leave the model of every complete run as a Hugging Face checkpoint, `runs/<run_id>/model`, for vLLM, transformers
    and `evaluate_models`; a run that was finished without it has none."""
    recompute_activations: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: a third more work for a fraction of
    the memory, and the same bits."""
    trackers: tuple[Tracker, ...] = ()
    """Where else a run's metrics go: `tensorboard` (event files beside metrics.jsonl), `mlflow`, `wandb`; the last two
    must be installed, and take addresses and keys from their own settings."""
    peak_flops_per_device: float | None = Field(default=None, gt=0)
    """Peak speed of a worker's device in the run's precision, FLOP/s, for model FLOPs utilisation; null takes the data
    sheet's for a known GPU, and leaves utilisation out on any other device."""
    max_restarts: int = Field(default=3, ge=0)
    """Times a lane may lose a worker and start again before its job stops."""

    @property
    def elastic(self) -> bool:
        """Whether a lane's group may have more or fewer workers."""
        return not isinstance(self.workers_per_lane, int)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Numbers of workers a lane's group may have, ascending: divisors of the most, so that they share a step alike."""
        sizes = range(self.min_workers, self.max_workers + 1)
        return tuple(size for size in sizes if self.max_workers % size == 0)

    @property
    def min_workers(self) -> int:
        """Fewest workers of a lane's group."""
        return self.workers_per_lane if isinstance(self.workers_per_lane, int) else self.workers_per_lane[0]

    @property
    def max_workers(self) -> int:
        """Most workers of a lane's group."""
        return self.workers_per_lane if isinstance(self.workers_per_lane, int) else self.workers_per_lane[1]


# --- pretrain_models -------------------------------------------------------------------------------------------


class Axis(Config):
    """A block of the plan: every model with every budget. The paper's two axes are two such blocks."""

    models: tuple[str, ...] = Field(min_length=1)
    """Model sizes by name, see `train.sizes`."""
    train_tokens: tuple[int, ...] = Field(min_length=1)
    """Budgets D, tokens."""


class RunTemplate(Config):
    """What all runs of a plan share: the one protocol that makes them comparable."""

    rows_per_step: int = Field(default=8, ge=1)
    """Rows in one optimiser step: the global batch."""
    batch_rule: HyperparameterRule | None = None
    """Published rule of (N, D) that gives the rows of a step, to the nearest power of two, in place of `rows_per_step`."""
    optimizer: TemplateOptimizer = TemplateOptimizer()
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the forward and backward pass."""
    max_epochs: float | None = Field(default=1.0, gt=0)
    """Most passes over any source; 1 refuses to repeat, null allows any number."""
    max_epochs_by_source: dict[Name, PositiveFloat] = Field(default_factory=dict)
    """Most passes over single sources, in place of max_epochs for them."""
    evaluations: int = Field(default=1, ge=1)
    """Evaluations over the run, the last one at its end."""
    branching: bool = False
    """Train budgets of the same model, mixture and seed as branches of one trunk, each with its own decay: the largest
    budget and the decays instead of the sum of all. Needs schedule `wsd`, `optimizer.warmup_tokens`, one evaluation."""

    @model_validator(mode="after")
    def _sensible(self) -> RunTemplate:
        check_branching(self)
        if (
            self.batch_rule is not None
            and self.rows_per_step != RunTemplate.model_fields["rows_per_step"].default
        ):
            raise ValueError(
                "batch_rule and rows_per_step both set the rows of a step: leave one of them out"
            )
        return self


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
    shares: tuple[Fraction, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    """Synthetic shares of the training tokens, [0, 1]; share 0 is trained once for all synthetic sources."""
    axes: tuple[Axis, ...] = Field(min_length=1)
    """Blocks of (model, budget) pairs; a pair in two blocks is trained once."""
    seeds: tuple[int, ...] = (0,)
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
    run: RunTemplate = RunTemplate(max_epochs=None)
    seed: int = 0
    """Seed of weights and data order."""
    placement: TrainPlacement = TrainPlacement()

    @model_validator(mode="after")
    def _fraction_of_what(self) -> GeneratorConfig:
        if (self.synthetic is None) != (self.natural_fraction is None):
            raise ValueError("give natural_fraction exactly when synthetic names a set to learn from")
        return self
