"""The evaluation rows of a packed set: the first held-out documents of every domain, cut into whole rows."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synth.errors import UserError
from synth.storage import exists, write_json_atomic, write_parquet_atomic
from train.config import PackConfig
from train.packing import EVALUATED_FILE, packed_directory, write_tokens
from train.sources import PROMPT_CHARACTERS, held_out_parts
from train.tokenizer import Encoder
from train.tokens import EVALUATION_COUNTED_FILE, EVALUATION_FILE, FLAG, EvaluationInfo, in_whole_documents


@dataclass
class _Domain:
    """One held-out domain, as far as its text is needed."""

    doc_ids: list[str] = field(default_factory=list)
    pieces: list[NDArray[Any]] = field(default_factory=list)
    flags: list[NDArray[Any]] = field(default_factory=list)
    """Which tokens count when they are predicted; all of them of a document without a prompt."""
    num_tokens: int = 0

    def add(self, doc_id: str, ids: NDArray[Any], flags: NDArray[Any]) -> None:
        self.doc_ids.append(doc_id)
        self.pieces.append(ids)
        self.flags.append(flags)
        self.num_tokens += len(ids)


def build_evaluation(config: PackConfig) -> None:
    """Write the evaluation rows of every held-out domain and, last, their ledger entry, unless it is there.

    Raises UserError when no domain fills a single row.
    """
    directory = packed_directory(config) / "evaluation"
    ledger = directory / "ledger.json"
    if exists(ledger):
        return
    encoder = Encoder.read(packed_directory(config) / "tokenizer")
    length = config.sequence_length
    max_rows = config.max_evaluation_tokens_per_domain // length
    prompted = any(parts.has_prompts for parts in held_out_parts(config).values())
    found: dict[str, EvaluationInfo] = {}
    left_out: dict[str, str] = {}
    rows: list[NDArray[Any]] = []
    flags: list[NDArray[Any]] = []
    doc_ids: list[str] = []
    for name, domain in sorted(_held_out_domains(config, encoder, max_rows * length + 1).items()):
        num_rows = min(max_rows, (domain.num_tokens - 1) // length)
        if not num_rows:
            left_out[name] = f"{domain.num_tokens} tokens of held-out text, one row takes {length + 1}"
            continue
        stream = np.concatenate(domain.pieces)
        own = _rows_of(stream, num_rows, length)
        own_flags = _rows_of(np.concatenate(domain.flags), num_rows, length)
        counted = np.array(own_flags, bool)[:, 1:]
        if prompted:
            counted = in_whole_documents(np.array(own), np.array(own_flags, bool), encoder.info.eot_id)
        num_bytes = int(encoder.token_bytes[np.array(own)[:, 1:][counted]].sum())
        if not num_bytes:
            left_out[name] = f"no text in its {num_rows} rows counts: prompts fill them"
            continue
        rows += own
        flags += own_flags
        found[name] = EvaluationInfo(
            num_rows=num_rows,
            num_tokens=int(counted.sum()),
            num_bytes=num_bytes,
            num_documents=int(np.count_nonzero(stream[: num_rows * length] == encoder.info.eot_id)),
        )
        doc_ids += domain.doc_ids[: found[name].num_documents]
    if not found:
        raise UserError(
            f"no domain in the held-out split of {', '.join(config.evaluate_on)} fills one row of sequence_length = "
            f"{length} with text that counts: choose another sequence_length, or hold out more documents."
        )
    shard = write_tokens(directory / EVALUATION_FILE, rows, encoder.dtype)
    write_parquet_atomic(directory / EVALUATED_FILE, pa.table({"doc_id": pa.array(doc_ids, pa.string())}))
    entry = {
        "shard": shard.model_dump(),
        "tokenizer": encoder.info.hash,
        "domains": {name: each.model_dump() for name, each in found.items()},
        "left_out": left_out,
    }
    if prompted:
        written = write_tokens(directory / EVALUATION_COUNTED_FILE, flags, FLAG)
        entry["counted_shard"] = written.model_dump()
    write_json_atomic(ledger, entry)


def _rows_of(stream: NDArray[Any], num_rows: int, length: int) -> list[NDArray[Any]]:
    return [stream[row * length : row * length + length + 1] for row in range(num_rows)]


def _held_out_domains(config: PackConfig, encoder: Encoder, wanted_tokens: int) -> dict[str, _Domain]:
    """Return every held-out domain with its first tokens, corpora in the order named, documents by id.

    Stops reading text for a domain that has enough; a document in two corpora counts once.
    """
    domains: dict[str, _Domain] = collections.defaultdict(_Domain)
    seen: set[str] = set()

    def wanted(name: str) -> bool:
        return domains[name].num_tokens < wanted_tokens

    for parts in held_out_parts(config).values():
        for part in range(len(parts.paths)):
            names = parts.table(part, ["domain"])["domain"].unique().to_pylist()
            if not any(wanted(name) for name in names):
                continue
            columns = ["doc_id", "domain", "text", *([PROMPT_CHARACTERS] if parts.has_prompts else [])]
            candidates = [
                row
                for row in parts.table(part, columns).sort_by("doc_id").to_pylist()
                if wanted(row["domain"]) and row["doc_id"] not in seen
            ]
            ends = [row.get(PROMPT_CHARACTERS, 0) for row in candidates]
            encoded = encoder.encode_exchanges([row["text"] for row in candidates], ends)
            for row, exchange in zip(candidates, encoded, strict=True):
                if wanted(row["domain"]):
                    domains[row["domain"]].add(row["doc_id"], exchange.ids, exchange.counted)
                    seen.add(row["doc_id"])
    return domains
