"""The second backend: Ray Data LLM's own engine between our drafting and our committing of parts.

`engine.kind = "ray_data_llm"`. Ray Data streams requests through three operators: `RequestRows` drafts parts, the
processor of `ray.data.llm` answers row by row, `CommitParts` waits until a part's answers are all there and commits it
as any other part. The processor itself is built in `synth.job`, the only place that knows Ray.

What Ray Data LLM does not tell stays unknown: finish and stop reasons, cached prompt tokens, device time, deaths and
retries. It cannot say which row kills an engine either; it starts engines again, and the job bounds that.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from synth.engines.protocol import GenerationResult, RequestFailed
from synth.engines.supervisor import Outcome, Quarantined
from synth.engines.tokenizer import HuggingFaceTokenizer, load_tokenizer
from synth.engines.vllm import VllmEngine, sampling_arguments, vllm_version
from synth.errors import UserError
from synth.ledger import LedgerEntry, read_entry
from synth.part_writer import DraftedPart, Finished, GeneratedBy, PartCost, PartWriter
from synth.rephrase import RephraseWork

BATCH_ROWS = 32
"""Rows that enter and leave an engine together. Small, because a batch leaves when its slowest row is done."""

PART, ROW = "part", "row"

REQUEST_SCHEMA = pa.schema(
    [
        pa.field(PART, pa.int64(), nullable=False),
        pa.field(ROW, pa.int64(), nullable=False),
        pa.field("tokenized_prompt", pa.list_(pa.int32()), nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
    ]
)
"""One request: the number of its part and of its row there, token ids, sampling arguments as JSON (in a column of
structs, stop strings of one recipe and none of another would be two types)."""

RESULT_SCHEMA = pa.schema([pa.field("entry", pa.string()), pa.field("failure", pa.string())])
"""What a part comes to: its ledger entry as JSON, or a sentence; the other one is empty."""


def processor_fields(work: RephraseWork) -> dict[str, Any]:
    """Return the fields of `vLLMEngineProcessorConfig`: the same engine settings as of kind vllm."""
    placement, model = work.config.placement, work.model
    engine = VllmEngine(work.config.engine, placement, model)
    settings = engine.settings() | ({"revision": model.revision} if model.revision else {})
    bundles = [placement.device_bundle] * placement.devices_per_engine
    return {
        "model_source": model.location, "engine_kwargs": settings, "batch_size": BATCH_ROWS,
        # An int would be a pool that starts with one; a pair is what it says.
        "concurrency": (placement.min_engines or placement.engines, placement.engines),
        # Fewer rows at hand than a quarter more than the engine decodes together would starve it.
        "max_concurrent_batches": max(8, math.ceil(1.25 * placement.num_seqs / BATCH_ROWS)),
        "placement_group_config": {"bundles": bundles}, "runtime_env": {"env_vars": engine.environment()},
        "should_continue_on_error": True, "log_engine_metrics": False,
        "chat_template_stage": False, "tokenize_stage": False, "detokenize_stage": False,
    }  # fmt: skip


def to_request(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the processor wants of a request beside its columns."""
    return {"sampling_params": json.loads(row["sampling"])}


def to_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of an answer. A row that failed never comes here: it keeps all its columns."""
    kept = (PART, ROW, "generated_text", "num_input_tokens", "num_generated_tokens", "time_taken_llm")
    return {name: row[name] for name in kept}


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """Return how a request ended. What Ray Data LLM does not tell is None."""
    if error := row.get("__inference_error__"):
        return Quarantined(RequestFailed.reason, str(error))
    return GenerationResult(
        text=row["generated_text"], finish_reason=None, stop_reason=None, prompt_tokens=row["num_input_tokens"],
        cached_prompt_tokens=None, completion_tokens=row["num_generated_tokens"], seconds=row["time_taken_llm"],
    )  # fmt: skip


@dataclass
class _OpenPart:
    drafted: DraftedPart
    waiting: set[int]
    finished: dict[int, Finished]


@dataclass
class _Desk:
    """What both ends have: the part writer and the model's tokenizer."""

    work: RephraseWork
    writer: PartWriter = field(init=False)

    def __post_init__(self) -> None:
        self.writer = PartWriter(self.work)

    @functools.cached_property
    def tokenizer(self) -> HuggingFaceTokenizer:
        return load_tokenizer(self.work.config.engine, self.work.model)

    @functools.cached_property
    def version(self) -> str:
        return f"ray.data.llm {importlib.metadata.version('ray')}, {vllm_version()}"

    def open(self, part: int) -> _OpenPart:
        drafted = self.writer.draft(part, self.tokenizer)
        return _OpenPart(drafted, set(drafted.to_ask()), {})

    def finish(self, part: _OpenPart, at: int, outcome: Outcome | None) -> None:
        part.finished[at] = self.writer.finish(part.drafted.drafts[at], outcome, self.version)

    def commit(self, part: _OpenPart) -> LedgerEntry:
        drafts = part.drafted.drafts
        for at, draft in enumerate(drafts):
            if at not in part.finished:  # nothing was asked
                self.finish(part, at, part.drafted.killers.get(draft.key))
        generated = GeneratedBy(self.version, self.tokenizer.prompt_format)
        finished = [part.finished[at] for at in range(len(drafts))]
        return self.writer.commit(part.drafted, finished, generated, PartCost())


class RequestRows:
    """First operator: a part number becomes the part's requests, columns REQUEST_SCHEMA."""

    def __init__(self, work: RephraseWork) -> None:
        self._desk = _Desk(work)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """Yield the requests of each part. A part without any is committed here: no answer would ever come for it."""
        for part in map(int, batch[PART]):
            opened = self._desk.open(part)
            if not opened.waiting:
                self._desk.commit(opened)
            drafts = opened.drafted.drafts
            rows = [
                {
                    PART: part,
                    ROW: at,
                    "tokenized_prompt": draft.prompt_token_ids,
                    "sampling": json.dumps(sampling_arguments(draft.request(draft.key))),
                }
                for at, draft in enumerate(drafts)
                if at in opened.waiting
            ]
            yield pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


class CommitParts:
    """Last operator: answers in any order become parts, each committed when its last answer is there.

    One process, because answers of one part may come from any engine. An answer that comes twice counts once; parts
    that were open when the process died are missing at the end, and are then made again.
    """

    def __init__(self, work: RephraseWork) -> None:
        self._desk = _Desk(work)
        self._open: dict[int, _OpenPart] = {}

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield a row of RESULT_SCHEMA for every part that is done, or that cannot be."""
        results = []
        for row in batch.to_pylist():
            try:
                entry = self._take(row)
            except UserError as error:
                results.append({"entry": "", "failure": str(error)})
                break
            if entry is not None:
                results.append({"entry": entry.model_dump_json(), "failure": ""})
        yield pa.Table.from_pylist(results, schema=RESULT_SCHEMA)

    def _take(self, row: Mapping[str, Any]) -> LedgerEntry | None:
        """Take an answer; return the entry of the part it was the last of."""
        part, at = row[PART], row[ROW]
        if part not in self._open:
            if read_entry(self._desk.work.directory, part, self._desk.work.num_parts) is not None:
                return None
            self._open[part] = self._desk.open(part)
        opened = self._open[part]
        if at not in opened.waiting:
            return None
        self._desk.finish(opened, at, outcome_of(row))
        opened.waiting.remove(at)
        if opened.waiting:
            return None
        del self._open[part]
        return self._desk.commit(opened)
