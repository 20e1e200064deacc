"""Job configurations of this package, and the base class of every configuration in synthscale.

A configuration is frozen, refuses unknown keys, and has two halves: the *recipe* (what is computed, hashed into
the artefact's identity) and the *placement* (where and how wide it runs, and the study root: never hashed).
The docstring under a field is its help text and states the unit.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""A name of an artefact: it becomes one path component, so lower-case letters, digits, dot, dash, underscore."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """Base of all configurations: frozen, strict about keys, field docstrings become help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    not_identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where and how wide to run, not what to compute: left out of the artefact's identity."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, as plain JSON-able values, `not_identity` fields left out at every level."""
        return {
            name: _plain(getattr(self, name))
            for name in type(self).model_fields
            if name not in self.not_identity
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


class JobConfig(Config):
    """What every job knows: the study root all artefacts live under, and the name of its own artefact."""

    not_identity = frozenset({"root", "placement", "name"})

    root: str = "study"
    """Study root: a local directory or an s3:// or gs:// prefix; every path in the study is under it."""


# --- build_corpus ----------------------------------------------------------------------------------------------


class DocstringSource(Config):
    """English prose of the docstrings of installed Python packages: always there, no download."""

    kind: Literal["docstrings"] = "docstrings"
    packages: tuple[str, ...]
    """Import names; each becomes one domain. `stdlib` stands for the standard library."""


class FileSource(Config):
    """Parquet, JSON lines (.jsonl, .gz, .zst) or plain text, from any path or URL pyarrow and fsspec can open."""

    kind: Literal["files"] = "files"
    paths: tuple[str, ...]
    """Files, directories or globs; `s3://`, `gs://`, `https://` and local paths. What begins with a dot or an underscore
    below a directory or in a glob is left out."""
    format: Literal["auto", "parquet", "jsonl", "text"] = "auto"
    """`auto` goes by the file ending; `text` makes one document of each file."""
    text_field: str = "text"
    """Column or key that holds the document."""
    domain_field: str | None = None
    """Column or key that holds the domain; without it every document has the domain in `domain`."""
    domain: str = "web"
    """Domain of documents without a domain field."""


class HuggingFaceSource(Config):
    """A dataset of the Hugging Face hub by name; needs a network that reaches it."""

    kind: Literal["huggingface"] = "huggingface"
    dataset: str
    """Repository id, such as `allenai/c4`."""
    subset: str | None = None
    """Configuration name inside the repository."""
    split: str = "train"
    """Split to read; streamed, never downloaded whole."""
    revision: str = "main"
    """Branch, tag or commit; pin a commit for a study that others must repeat."""
    text_field: str = "text"
    """Column that holds the document."""
    domain_field: str | None = None
    """Column that holds the domain; without it every document has the domain in `domain`."""
    domain: str = "web"
    """Domain of documents without a domain field."""


CorpusSource = Annotated[DocstringSource | FileSource | HuggingFaceSource, Field(discriminator="kind")]


class CorpusPlacement(Config):
    """How wide `build_corpus` runs."""

    tasks: int = Field(default=0, ge=0)
    """Parallel reading tasks; 0 takes one per CPU of the cluster."""


class Decontamination(Config):
    """Which training documents are too much like the held-out split."""

    ngram: int = Field(default=13, ge=1)
    """Words in a row that count as shared when a held-out document has them too, lower case, without punctuation."""
    max_fraction: Fraction = 0.2
    """A training document of whose words more than this lie in shared n-grams is dropped and counted, [0, 1]; the recipes
    reject answers at the same bound. 1 drops none."""


class CorpusConfig(JobConfig):
    """`build_corpus`: sources -> `corpora/<name>/{train,held_out}/part-*.parquet`."""

    name: Name = "natural"
    """Name of the corpus: `corpora/<name>`."""
    sources: tuple[CorpusSource, ...] = Field(min_length=1)
    """Where documents come from; duplicates across sources are dropped, the first one stays."""
    held_out_fraction: Fraction = 0.05
    """Fraction of documents held out for evaluation, chosen by the hash of the document, [0, 1]."""
    min_characters: int = Field(default=200, ge=1)
    """Documents shorter than this are dropped and counted, characters."""
    max_documents: int | None = Field(default=None, ge=1)
    """Keep at most this many documents (lowest document hash first, so a larger limit only adds), documents; those that
    decontaminate drops are taken off this number."""
    decontaminate: Decontamination = Decontamination()
    """Drop training documents that share too much of their text with the held-out split."""
    documents_per_part: int = Field(default=256, ge=1)
    """Documents per Parquet part: the unit of commit of everything downstream, documents."""
    disjoint_from: tuple[Name, ...] = ()
    """Corpora under the same root whose documents (train and held-out) must not occur here; dropped and counted."""
    placement: CorpusPlacement = CorpusPlacement()


# --- rephrase_corpus -------------------------------------------------------------------------------------------


DEFAULT_NUM_SEQS = 256

LEAST_ENGINE_DEATHS, ROWS_PER_ENGINE_DEATH = 32, 8
"""What max_engine_deaths_per_part = null stands for."""


class EngineConfig(Config):
    """Which model answers, through which engine. What decides the text is identity; where a server is, is not."""

    not_identity = frozenset({"endpoint", "served_model", "api_key_file"})

    kind: Literal["vllm", "ray_data_llm", "http", "fake"] = "vllm"
    """`vllm` runs the model in-process; `ray_data_llm` hands it to Ray Data LLM, which tells and survives less (see
    docs/engines.md); `http` asks a server that speaks OpenAI's completions API; `fake` is a deterministic stand-in for
    rehearsing a job without a model."""
    model: str
    """Hugging Face repository id, or a directory (local, under the study root as `root:generators/<name>`, or one that comes
    with synthscale as `shipped:docstrings-6m`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null means the directory's own hash or the hub's default."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the weights in the engine."""
    max_model_len: int = Field(default=4096, ge=16)
    """Longest prompt plus output the engine accepts, tokens."""
    speculative: dict[str, Any] | None = None
    """Speculative decoding, as vLLM's `speculative_config`: `{ method = "ngram", num_speculative_tokens = 4 }`.
    The answers' distribution stays, but not the answer to one seed, so it is identity."""
    batch_invariant: bool = False
    """Ask a GPU engine for kernels whose result does not depend on what else is in the batch: a resumed run then
    draws the same text bit by bit, at some cost in speed. A CPU engine in float32 does so anyway."""
    engine_arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed to the engine as they are (vLLM's `AsyncEngineArgs`); these may change numerics, so they are identity."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Of `http`: base address of the server, such as `http://node7:8000/v1`."""
    served_model: str | None = None
    """Of `http`: the model's name on the server; null takes the only one it serves."""
    api_key_file: str | None = None
    """Of `http`: a file that holds the server's API key and nothing else; the key itself goes into no record."""

    @model_validator(mode="after")
    def _needs_an_endpoint(self) -> Self:
        if (self.kind == "http") != (self.endpoint is not None):
            raise ValueError(
                "kind http needs an endpoint, such as http://node7:8000/v1, and the other kinds take none"
            )
        at = urlsplit(self.endpoint or "")
        if at.password or at.query:
            raise ValueError(
                "endpoint carries a credential or a query, which the study's file and its report would show: give the plain "
                "address, and the key in api_key_file"
            )
        return self


SHARED_GPU_MEMORY = 0.9
"""Fraction of its part of a GPU an engine takes where the placement leaves it open."""


class RephrasePlacement(Config):
    """Where the engines run and how much of the machine they take."""

    engines: int = Field(default=1, ge=1)
    """Engine replicas (actors) side by side, at most."""
    min_engines: int | None = Field(default=None, ge=1)
    """Replicas to start with and never go below; the pool grows to `engines` as parts wait and nodes come. null is
    all of them at once."""
    cpus_per_engine: float = Field(default=1.0, ge=0.0)
    """Logical CPUs each replica asks of the cluster."""
    gpus_per_engine: float = Field(default=0.0, ge=0.0)
    """GPUs each replica asks of the cluster; 0 runs the CPU engine, and 0.5 puts two on one GPU, each with half of its
    memory: a small model leaves a GPU waiting for the one process that schedules it."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of a replica each layer is spread over."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """GPUs, or groups of tensor_parallel GPUs, of a replica the layers are dealt out to."""
    across_nodes: bool = False
    """Let the GPUs of one engine lie on several nodes, for a model that none holds: they are reserved together as a placement
    group, close to each other where there is room, and vLLM runs a Ray worker on each."""
    parts_in_flight: int | None = Field(default=None, ge=1)
    """Input parts one replica works on at once; null is as many as keep the engine full while the longest answer of each
    part is waited for, 3 at least."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Sequences the engine decodes together; null is what tune_engine found, else 256."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens the engine computes in one step; null is what tune_engine found, else the engine's own choice."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Fraction of the memory of its GPU, or of its part of one, that the engine takes; null is what tune_engine found, else
    the engine's own choice (0.9 of a part)."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Memory for the KV cache of a CPU engine, GiB; null lets the engine choose."""
    threads: int = Field(default=0, ge=0)
    """Compute threads of a CPU engine; 0 takes all cores of the node."""
    request_timeout_seconds: float = Field(default=900.0, gt=0)
    """A request that has no answer after this long while others are answered is taken back and tried again twice; when
    nobody is answered for this long, the engine hangs and is started again as after a death, seconds."""
    start_timeout_seconds: float = Field(default=1800.0, gt=0)
    """An engine that is not up after this long ends the job with the engine's own last lines; the largest models load for
    many minutes, seconds. Of `http`: how long a server that does not answer is waited for, also when it goes away later."""
    outage_seconds: float = Field(default=3600.0, ge=0)
    """Of `http`: how long a server that is there and fails every request (429, 500, 502, 503, 504) is waited for, and asked now
    and then; no row is blamed meanwhile. After this the job ends and can be started again, seconds."""
    use_tuning: bool = True
    """Take what tune_engine stored for this model, device and recipes, where a field above leaves it open. Engines that
    share a GPU take none: it was found with a whole one."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_engines is not None and self.min_engines > self.engines:
            raise ValueError(f"min_engines = {self.min_engines} is more than engines = {self.engines}")
        devices = self.devices_per_engine
        if 0.5 < self.gpus_per_engine < 1:
            raise ValueError(
                f"gpus_per_engine = {self.gpus_per_engine:g} leaves the rest of a GPU unused, where no second engine fits: give 1, "
                "or 0.5 or less"
            )
        if self.gpus_per_engine not in (0, devices) and not (devices == 1 and self.shares_a_gpu):
            raise ValueError(
                f"tensor_parallel x pipeline_parallel = {devices} needs gpus_per_engine = {devices}, not "
                f"{self.gpus_per_engine:g}: an engine uses so many GPUs, and is paid for what it reserves (more engines of one GPU "
                "each are `engines`)"
            )
        if self.across_nodes and (devices == 1 or self.gpus_per_engine == 0):
            raise ValueError(
                "across_nodes spreads the GPUs of one engine: give tensor_parallel or pipeline_parallel above 1, and "
                "gpus_per_engine"
            )
        if self.across_nodes and self.min_engines is not None:
            raise ValueError(
                "across_nodes keeps the GPUs of every engine until the end: leave min_engines out"
            )
        return self

    @property
    def takes_tunings(self) -> bool:
        """Whether what tune_engine found fills the open settings."""
        return self.use_tuning and not self.shares_a_gpu

    @property
    def shares_a_gpu(self) -> bool:
        """Whether several engines lie on one GPU."""
        return 0 < self.gpus_per_engine < 1

    @property
    def memory_of_a_gpu(self) -> float | None:
        """Fraction of a whole GPU's memory an engine takes; None leaves it to the engine, which then takes nearly all.

        Engines that share a GPU take their parts of it: with what an engine chooses itself the second one does not start.
        """
        if not self.shares_a_gpu:
            return self.gpu_memory_utilization
        return round(self.gpus_per_engine * (self.gpu_memory_utilization or SHARED_GPU_MEMORY), 4)

    @property
    def devices_per_engine(self) -> int:
        """Devices one engine's layers are spread over and dealt out to."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def device_bundle(self) -> dict[str, float]:
        """What one device of an engine takes of its node: a device and its part of the engine's CPUs."""
        devices = self.devices_per_engine
        bundle = {"CPU": self.cpus_per_engine / devices, "GPU": self.gpus_per_engine / devices}
        return {name: amount for name, amount in bundle.items() if amount}

    @property
    def num_seqs(self) -> int:
        """Sequences decoded together once every source of the number has been asked."""
        return self.max_num_seqs or DEFAULT_NUM_SEQS


class RephraseCost(Config):
    """What an estimate is made with; nothing of it is assumed when it is not given."""

    device_hour_price: float | None = Field(default=None, gt=0)
    """Price of one hour of one device, in `currency`; null says no money."""
    currency: str = "USD"
    """Currency of the price, for display only."""
    tokens_per_device_second: float | None = Field(default=None, gt=0)
    """Output tokens one device generates a second, assumed where no earlier run of this model was measured."""


class CardConfig(Config):
    """What the data card looks into beyond what is always there."""

    statistics_words: int = Field(default=200_000, ge=1)
    """Words of each source and of each held-out domain that corpus statistics are taken over."""
    perplexity_model: str | None = None
    """Hugging Face checkpoint (directory or id) under which the perplexity of sampled texts is measured; null does not."""
    perplexity_texts: int = Field(default=200, ge=1)
    """Texts of each source whose perplexity is measured."""


class RephraseConfig(JobConfig):
    """`rephrase_corpus`: a corpus and recipes -> `synthetic/<name>/part-k-of-n.parquet`, ledger, manifest."""

    # Bounds decide when to stop, not what a row says; the recipes' contents stand in the identity in place of overrides.
    not_identity = JobConfig.not_identity | {
        "max_engine_deaths_per_part",
        "retry_quarantined",
        "max_reject_fraction",
        "recipe_overrides",
        "cost",
        "card",
    }

    name: Name = "rephrased"
    """Name of the synthetic set: `synthetic/<name>`."""
    corpus: Name
    """Corpus to rephrase, `corpora/<corpus>`, its train split."""
    recipes: tuple[str, ...] = Field(min_length=1)
    """Recipes by name (shipped, see --list-recipes) or paths of TOML files; each document goes through all of them,
    but for recipes that route by quality, and for a mix (recipe_weights)."""
    recipe_weights: dict[str, float] = Field(default_factory=dict)
    """A style mix: recipe name -> weight. Each document goes through `recipes_per_document` recipes drawn by weight,
    the draw a hash of seed, document and recipe. Empty: no draw."""
    recipes_per_document: int = Field(default=1, ge=1)
    """With recipe_weights: different recipes drawn for each document."""
    quality_scores: str | None = None
    """Directory or URL prefix with quality scores in [0, 1] for recipes that route by quality: for every corpus part a
    Parquet file of the same name, columns `doc_id` and `quality`; null scores by a built-in heuristic."""
    engine: EngineConfig
    recipe_overrides: dict[str, Any] = Field(default_factory=dict)
    """Values that replace those of every recipe, shaped like a recipe file: `{ thresholds = { max_repetition = 1.0 } }`."""
    samples_per_chunk: int = Field(default=1, ge=1)
    """Independent samples of each (document, chunk, recipe)."""
    seed: int = 0
    """Run seed; the seed of a row is a hash of this, the document, the chunk, the recipe and the sample."""
    max_documents: int | None = Field(default=None, ge=1)
    """Rephrase only the first so many documents of the corpus (whole parts first), documents."""
    decontaminate_against: tuple[Name, ...] | None = None
    """Corpora whose held-out split answers are compared with (13-gram overlap, column `held_out_overlap`); null takes the
    corpus that is rephrased, an empty list none."""
    max_engine_deaths_per_part: int | None = Field(default=None, ge=0)
    """Give up on a part after its rows have killed the engine this many times; what it isolated stays recorded. null is one
    death for every 8 rows of the part, at least 32: isolating one row among n in flight takes up to log2(n) + 2 deaths, 11 of
    512, so a part of which one row in a hundred kills takes 0.11 deaths a row, however large it is."""
    retry_quarantined: bool = False
    """Ask again for the rows that were quarantined because the engine was busy, slow or failing (`engine_busy`, `timed_out`,
    `request_failed`); all other rows of their parts stay as they are. Also of a finished set, which is then unfinished until
    these parts are done."""
    max_reject_fraction: Fraction = 1.0
    """Stop with an error if more than this fraction of rows is rejected or quarantined at the end, [0, 1]."""
    cost: RephraseCost = RephraseCost()
    card: CardConfig = CardConfig()
    placement: RephrasePlacement = RephrasePlacement()

    def allowed_engine_deaths(self, rows: int) -> int:
        """Return how often the rows of a part of so many rows may kill the engine."""
        if self.max_engine_deaths_per_part is not None:
            return self.max_engine_deaths_per_part
        return max(LEAST_ENGINE_DEATHS, math.ceil(rows / ROWS_PER_ENGINE_DEATH))

    @model_validator(mode="after")
    def _can_retry(self) -> RephraseConfig:
        if self.retry_quarantined and self.engine.kind == "ray_data_llm":
            raise ValueError(
                "retry_quarantined: kind 'ray_data_llm' makes whole parts only; leave it out, and take kind 'vllm' for a new set"
            )
        return self

    @model_validator(mode="after")
    def _weights_make_sense(self) -> RephraseConfig:
        if any(weight < 0 for weight in self.recipe_weights.values()):
            raise ValueError("recipe_weights: a weight is negative; give 0 to leave a recipe out")
        if self.recipe_weights and not any(self.recipe_weights.values()):
            raise ValueError("recipe_weights are all 0: give one of them weight, or leave them out")
        drawn = sum(weight > 0 for weight in self.recipe_weights.values())
        if self.recipes_per_document > max(1, drawn):
            raise ValueError(
                f"recipes_per_document = {self.recipes_per_document}, and recipe_weights gives {drawn} recipes weight: without weights "
                "every document goes through all recipes; give weights to as many, or lower it"
            )
        return self

    @model_validator(mode="after")
    def _engine_is_where_it_is_placed(self) -> RephraseConfig:
        kind, placement = self.engine.kind, self.placement
        if kind == "http" and placement.gpus_per_engine:
            raise ValueError(
                f"placement.gpus_per_engine = {placement.gpus_per_engine:g}: kind 'http' computes on its server, and would keep GPUs "
                "idle here; leave it out"
            )
        if kind == "ray_data_llm" and placement.shares_a_gpu:
            raise ValueError(
                f"placement.gpus_per_engine = {placement.gpus_per_engine:g}: engines of kind 'ray_data_llm' cannot share a GPU; give 1, "
                "or take kind 'vllm'"
            )
        return self
