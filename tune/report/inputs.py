"""What a report is made of: every record and manifest it names, read once, with a hash of each file's bytes.

The hashes are the report's parents: when none of them and nothing of the renderer has changed, the report on disk is
the report that would be written.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from synth.errors import IncompleteArtefact, UserError
from synth.identity import RECIPE_FILE
from synth.model_source import GENERATOR_PREFIX
from synth.parts import part_name
from synth.storage import MARKER, read_bytes, study_path
from synth.study_log import LOG, read_log
from train.grid import PLAN_FILE
from train.metrics import METRICS_FILE, StepMetrics
from train.rates import RATES_FILE, SweptRates
from train.record import RECORD_FILE, RunRecord
from tune.claim_roles import SourceMade, size_in_name
from tune.config import ReportConfig
from tune.laws.saved import FIT_FILE, SAMPLES_FILE, SavedLaws, load_fit
from tune.observations import mixture_label
from tune.results import CellOptimum, Recommendation
from tune.search import BEST_FILE

STUDY_FILE = "study.toml"
"""What `run_study` leaves under the root: the study file with every value it ran with."""
NUM_EXAMPLES = 5
EXAMPLE_CHARACTERS = 1200
"""Longest text of an example shown, characters."""
_EXAMPLE_COLUMNS = [
    "doc_id",
    "chunk_start",
    "chunk_end",
    "recipe",
    "text",
    "verdict",
    "reject_reasons",
    "seed",
]


@dataclass(frozen=True)
class StudyRun:
    """One run of the plan and, when it has ended one way or another, its record."""

    run_id: str
    model: str
    num_params: int
    train_tokens: int
    synthetic: str | None
    share: float
    seed: int
    record: RunRecord | None

    @property
    def loss(self) -> float | None:
        """Held-out loss at the end, nats per token; None unless the run is complete."""
        return self.record.final.loss_nats_per_token if self.record and self.record.final else None

    @property
    def synthetic_sources(self) -> tuple[str, ...]:
        """Names of its synthetic sources; a search of several joins them by a plus."""
        return tuple(self.synthetic.split("+")) if self.synthetic else ()

    @property
    def mixture(self) -> str:
        """The mixture in words."""
        return mixture_label(self.synthetic, self.share)


@dataclass(frozen=True)
class Example:
    """One row of a synthetic set beside what it was made from, for a reader to judge."""

    synthetic: str
    """Name of the set."""
    doc_id: str
    recipe: str
    verdict: str
    """`kept`, or why not."""
    source_text: str
    output_text: str


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic set: its manifest, and some of its rows."""

    manifest: dict[str, Any]
    examples: tuple[Example, ...]

    @property
    def generator(self) -> str | None:
        """The generator of this study that wrote it; None for a model from elsewhere."""
        model: str = self.manifest["recipe"]["engine"]["model"]
        return model.removeprefix(GENERATOR_PREFIX) if model.startswith(GENERATOR_PREFIX) else None


@dataclass(frozen=True)
class Study:
    """Everything a report shows."""

    config: ReportConfig
    runs: tuple[StudyRun, ...]
    trial_records: dict[str, RunRecord]
    """Records of the searches' trials, by run id; some are runs of the plan too."""
    sweeps: dict[str, tuple[RunRecord, ...]]
    """Runs of the sweeps whose learning rates the plan and the searches took, by the sweep's name."""
    training: dict[str, tuple[StepMetrics, ...]]
    """Training metrics of the plan's runs, by run id."""
    laws: SavedLaws
    optima: tuple[CellOptimum, ...]
    recommendations: dict[str, Recommendation]
    corpora: dict[str, dict[str, Any]]
    synthetic: dict[str, SyntheticSet]
    packed: dict[str, dict[str, Any]]
    made: dict[str, SourceMade]
    """How the text of each synthetic source was made, by source."""
    study_file: str | None
    """The resolved study file of the last `run_study`; None when there is none."""
    generators: dict[str, dict[str, Any]]
    steps: tuple[dict[str, Any], ...]
    """Wall-clock seconds by step, from the study's own log; empty without one."""
    manifests: dict[str, dict[str, Any]]
    """Every manifest read, by its directory under the root."""
    inputs: dict[str, str] = field(repr=False)
    """Path under the root -> SHA-256 of the file's bytes, 16 hex digits."""

    @functools.cached_property
    def records(self) -> dict[str, RunRecord]:
        """Every run of the plan and of the searches that has a record, by run id."""
        planned = {run.run_id: run.record for run in self.runs if run.record is not None}
        return dict(sorted((self.trial_records | planned).items()))


# --- reading ---------------------------------------------------------------------------------------------------


class _Reader:
    """Reads files under a root and remembers the hash of each."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}
        self.manifests: dict[str, dict[str, Any]] = {}

    def read(self, *parts: str) -> bytes | None:
        """Return a file's bytes, or None when it is not there."""
        try:
            data = read_bytes(study_path(self.root, *parts))
        except (FileNotFoundError, NotADirectoryError):
            return None
        self.hashes["/".join(parts)] = hashlib.sha256(data).hexdigest()[:16]
        return data

    def manifest(self, made_by: str, *parts: str) -> dict[str, Any]:
        """Return a finished artefact's manifest. Raises IncompleteArtefact, naming the job that makes it."""
        data = self.read(*parts, MARKER)
        if data is None:
            raise IncompleteArtefact(str(study_path(self.root, *parts)), made_by)
        manifest: dict[str, Any] = json.loads(data)
        self.manifests["/".join(parts)] = manifest
        return manifest

    def manifest_if_any(self, *parts: str) -> dict[str, Any] | None:
        """Return a manifest, or None when the artefact is not finished or not under this root."""
        try:
            return self.manifest("", *parts)
        except IncompleteArtefact:
            return None


def read_runs(root: str, plan: str) -> tuple[StudyRun, ...]:
    """Return the runs of a plan with their records. Raises IncompleteArtefact when there is no such plan."""
    reader = _Reader(root)
    return tuple(_read_run(reader, entry) for entry in _read_plan(reader, plan)["runs"])


def read_optima(root: str, searches: Iterable[str]) -> list[CellOptimum]:
    """Return the best share of every cell of some finished searches. Raises IncompleteArtefact for one that is not."""
    reader = _Reader(root)
    return [optimum for name in searches for optimum in _read_search(reader, name)]


def read_study(config: ReportConfig) -> Study:
    """Read everything a report names. Raises IncompleteArtefact for the first named thing that is not finished."""
    reader = _Reader(config.root)
    plan = _read_plan(reader, config.plan)
    reader.manifest("fit_laws", "laws", config.laws)
    for file in (FIT_FILE, SAMPLES_FILE):
        reader.read("laws", config.laws, file)
    optima = tuple(optimum for name in config.searches for optimum in _read_search(reader, name))
    recommendations = {name: _read_recommendation(reader, name) for name in config.recommendations}
    runs = tuple(_read_run(reader, entry) for entry in plan["runs"])
    trials = sorted({trial.run_id for optimum in optima for trial in optimum.trials})
    sweeps = _read_sweeps(reader, config)
    trial_records = {
        run_id: record for run_id in trials if (record := _read_record(reader, run_id)) is not None
    }
    records = [*(run.record for run in runs if run.record is not None), *trial_records.values()]
    packed = _read_all(reader, "packed", {record.config.packed for record in records})
    synthetic = {name: _read_synthetic(reader, name) for name in config.synthetic}
    study = Study(
        config=config,
        runs=runs,
        trial_records=trial_records,
        sweeps=sweeps,
        training={run.run_id: _read_metrics(reader, run.run_id) for run in runs},
        laws=load_fit(config.root, config.laws),
        optima=optima,
        recommendations=recommendations,
        corpora={name: reader.manifest("build_corpus", "corpora", name) for name in config.corpora},
        synthetic=synthetic,
        packed=packed,
        made=_read_made(reader, packed.values()),
        study_file=_read_text(reader, STUDY_FILE),
        generators=_read_all(
            reader, "generators", {name for each in synthetic.values() if (name := each.generator)}
        ),
        steps=_read_steps(reader),
        manifests=reader.manifests,
        inputs={},
    )
    return replace(study, inputs=dict(sorted(reader.hashes.items())))


def _read_plan(reader: _Reader, name: str) -> dict[str, Any]:
    """Return `plan.json`, which is there before the first run is trained; the manifest comes after the last."""
    data = reader.read("plans", name, PLAN_FILE)
    if data is None:
        raise IncompleteArtefact(str(study_path(reader.root, "plans", name)), "pretrain_models")
    reader.manifest_if_any("plans", name)
    plan: dict[str, Any] = json.loads(data)
    return plan


def _read_run(reader: _Reader, row: dict[str, Any]) -> StudyRun:
    return StudyRun(
        run_id=row["run_id"],
        model=row["model"],
        num_params=row["num_params_non_embedding"],
        train_tokens=row["train_tokens"],
        synthetic=row["synthetic"],
        share=row["share"],
        seed=row["seed"],
        record=_read_record(reader, row["run_id"]),
    )


def _read_record(reader: _Reader, run_id: str) -> RunRecord | None:
    data = reader.read("runs", run_id, RECORD_FILE)
    return None if data is None else RunRecord.model_validate_json(data)


def _read_metrics(reader: _Reader, run_id: str) -> tuple[StepMetrics, ...]:
    data = reader.read("runs", run_id, METRICS_FILE) or b""
    return tuple(StepMetrics(**json.loads(line)) for line in data.splitlines())


def _read_search(reader: _Reader, name: str) -> list[CellOptimum]:
    """Return the optima of a finished search, small cells first; a search does not finish without all of them."""
    cells = reader.manifest("search_mixture", "searches", name)["cells"]
    found = [data for cell in cells if (data := reader.read("searches", name, cell, BEST_FILE)) is not None]
    optima = [CellOptimum.model_validate_json(data) for data in found]
    return sorted(optima, key=lambda optimum: (optimum.num_params, optimum.train_tokens))


def _read_sweeps(reader: _Reader, config: ReportConfig) -> dict[str, tuple[RunRecord, ...]]:
    """Return the runs of the sweeps of learning rates that plan and searches name, of those that are under this root."""
    users = (("plans", config.plan), *(("searches", name) for name in config.searches))
    recipes = [json.loads(reader.read(*user, RECIPE_FILE) or b"{}").get("recipe", {}) for user in users]
    named = {recipe.get("run", {}).get("optimizer", {}).get("learning_rates") for recipe in recipes} - {None}
    found = {}
    for name in sorted(named):
        data = reader.read("learning_rates", name, RATES_FILE)
        if data is None or reader.manifest_if_any("learning_rates", name) is None:
            continue
        trials = [trial for size in SweptRates.model_validate_json(data).sizes for trial in size.trials]
        records = (_read_record(reader, trial.run_id) for trial in trials)
        found[name] = tuple(record for record in records if record is not None)
    return found


def _read_recommendation(reader: _Reader, name: str) -> Recommendation:
    data = reader.read("recommendations", f"{name}.json")
    if data is None:
        path = study_path(reader.root, "recommendations", f"{name}.json")
        raise UserError(f"{path} is not there: run recommend_mixture first, with the same root and name.")
    return Recommendation.model_validate_json(data)


def _read_synthetic(reader: _Reader, name: str) -> SyntheticSet:
    """Return a synthetic set with the rows of its first part that have the lowest seeds: seeds are hashes."""
    manifest = reader.manifest("rephrase_corpus", "synthetic", name)
    corpus = manifest["recipe"]["corpus"]
    part = part_name(0, manifest["parts"])
    outputs = reader.read("synthetic", name, part)
    corpus_manifest = reader.manifest("build_corpus", "corpora", corpus)
    sources = reader.read(
        "corpora", corpus, "train", part_name(0, corpus_manifest["splits"]["train"]["parts"])
    )
    if outputs is None or sources is None:
        raise UserError(
            f"synthetic/{name} or corpora/{corpus} has lost its first part: run rephrase_corpus or build_corpus again."
        )
    texts = pq.read_table(io.BytesIO(sources), columns=["doc_id", "text"]).to_pydict()
    by_id = dict(zip(texts["doc_id"], texts["text"], strict=True))
    table = (
        pq.read_table(io.BytesIO(outputs), columns=_EXAMPLE_COLUMNS).sort_by("seed").slice(0, NUM_EXAMPLES)
    )
    return SyntheticSet(
        manifest, tuple(_example(name, row, by_id[row["doc_id"]]) for row in table.to_pylist())
    )


def _example(name: str, row: dict[str, Any], document: str) -> Example:
    reasons = ", ".join(row["reject_reasons"])
    return Example(
        synthetic=name,
        doc_id=row["doc_id"],
        recipe=row["recipe"],
        verdict=f"{row['verdict']}: {reasons}" if reasons else row["verdict"],
        source_text=_shortened(document[row["chunk_start"] : row["chunk_end"]]),
        output_text=_shortened(row["text"]),
    )


def _shortened(text: str) -> str:
    if len(text) <= EXAMPLE_CHARACTERS:
        return text
    return f"{text[:EXAMPLE_CHARACTERS]} [... {len(text) - EXAMPLE_CHARACTERS:,} more characters]"


def _read_all(reader: _Reader, kind: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the manifests of those artefacts that are under this root and finished."""
    found = {name: reader.manifest_if_any(kind, name) for name in sorted(names)}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _read_made(reader: _Reader, packed: Iterable[dict[str, Any]]) -> dict[str, SourceMade]:
    """Return how each synthetic source of some packed sets was made, of those whose synthetic set is under this root."""
    sources = {
        name: source
        for manifest in packed
        for name, source in manifest.get("recipe", {}).get("sources", {}).items()
        if source.get("synthetic")
    }
    found = {}
    for name, source in sorted(sources.items()):
        manifest = reader.manifest_if_any("synthetic", source["synthetic"])
        if manifest is None:
            continue
        recipe = manifest["recipe"]
        recipes = recipe.get("recipes", {})
        if source.get("recipe") in recipes:
            recipes = {source["recipe"]: recipes[source["recipe"]]}
        model = str(recipe["engine"]["model"])
        found[name] = SourceMade(recipes, str(recipe["corpus"]), model, _num_params(reader, model))
    return found


def _num_params(reader: _Reader, model: str) -> float | None:
    if not model.startswith(GENERATOR_PREFIX):
        return size_in_name(model)
    manifest = reader.manifest_if_any("generators", model.removeprefix(GENERATOR_PREFIX))
    return None if manifest is None else float(manifest["num_params_total"])


def _read_text(reader: _Reader, name: str) -> str | None:
    data = reader.read(name)
    return None if data is None else data.decode("utf-8")


def _read_steps(reader: _Reader) -> tuple[dict[str, Any], ...]:
    """Return the study's log without this job's own entries, which would change the report by writing it."""
    steps = tuple(entry for entry in read_log(reader.root) if entry["step"] != "write_report")
    if steps:
        reader.hashes[f"{LOG} (other steps)"] = hashlib.sha256(json.dumps(steps).encode()).hexdigest()[:16]
    return steps
