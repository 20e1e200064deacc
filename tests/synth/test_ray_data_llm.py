"""Both ends of the Ray Data LLM backend without Ray: requests out, answers in, parts committed once.

The whole of it, with Ray and vLLM, is in test_backend_conformance.py.
"""

import random

import numpy as np
import pyarrow as pa
import pytest

from synth.config import RephraseConfig
from synth.engines.search import TuneEngineConfig
from synth.ledger import missing_parts, open_synthetic, read_entries
from synth.ray_data_llm import CommitParts, RequestRows, processor_fields, to_answer, to_request
from synth.rephrase import finish_work, open_work
from synth.rows import REPHRASED_SCHEMA
from synth.storage import read_parquet
from tests.synth.conftest import LAX, text_of

WORDS = "The keeper of the lamp wrote down the wind and the weather every morning of that long winter."


@pytest.fixture
def config(make_corpus, tmp_path, tiny_tokenizer):
    """Two parts of two documents, and a third of two documents without text."""
    make_corpus(tmp_path, [*(text_of(number) for number in range(4)), "", "  "], documents_per_part=2)
    return RephraseConfig.model_validate(
        {
            "root": str(tmp_path), "corpus": "natural", "recipes": ("hq", "continue"),
            "engine": {"kind": "ray_data_llm", "model": str(tiny_tokenizer), "max_model_len": 1024},
            "recipe_overrides": {"thresholds": LAX, "sampling": {"max_output_tokens": 40}},
        }
    )  # fmt: skip


@pytest.fixture
def work(config):
    work = open_work(config)
    work.claim()
    return work


def requests_of(work):
    draft = RequestRows(work)
    return [row for part in range(work.num_parts) for table in draft({"part": np.array([part])}) for row in table.to_pylist()]  # fmt: skip


def answered(row, **fields):
    """Return what the processor makes of a request, by its own columns."""
    row = row | to_request(row)
    internal = {"prompt_token_ids": row["tokenized_prompt"], "num_input_tokens": len(row["tokenized_prompt"]), "metrics": None,
                "generated_text": f"{row['sampling_params']['seed']}: {WORDS}", "num_generated_tokens": 30, "time_taken_llm": 0.5}  # fmt: skip
    return to_answer(row | internal) | {"__inference_error__": ""} | fields


def commit(work, answers, batch=3):
    """Send answers through the last operator in batches; return its results."""
    operator, results = CommitParts(work), []
    for at in range(0, len(answers), batch):
        for table in operator(pa.Table.from_pylist(answers[at : at + batch])):
            results += table.to_pylist()
    return results


def rows_of(work):
    parts, _ = open_synthetic(work.config.root, work.config.name)
    return [row for part in parts for row in read_parquet(part).to_pylist()]


def test_answers_in_any_order_and_twice_become_every_part_once(work):
    requests = requests_of(work)
    assert len(requests) == 4 * 2
    assert missing_parts(work.directory, 3) == [0, 1], (
        "nothing is asked of documents without text: that part is done"
    )
    answers = [answered(row) for row in requests * 2]
    random.Random(0).shuffle(answers)
    results = commit(work, answers)
    assert [result["failure"] for result in results] == ["", ""]
    manifest = finish_work(work)
    assert (manifest["rows"], manifest["kept"], manifest["rejected"]) == (12, 8, 4)
    rows = rows_of(work)
    assert all(f"{row['seed']}: " in row["text"] for row in rows if row["keep"]), (
        "each row has its own answer"
    )
    assert [row["doc_id"] for row in rows] == [
        row["doc_id"] for row in sorted(rows, key=lambda row: rows.index(row))
    ]


def test_what_is_not_told_is_null_and_never_a_default(work):
    commit(work, [answered(row) for row in requests_of(work)])
    manifest = finish_work(work)
    table = read_parquet(work.directory / "part-00000-of-00003.parquet")
    assert table.schema.equals(REPHRASED_SCHEMA)
    assert table["finish_reason"].null_count == table["stop_reason"].null_count == len(table)
    assert set(table["engine_version"].to_pylist()[0].split()) > {"ray.data.llm", "vllm"}
    for name in ("device_seconds", "engine_start_seconds", "engine_deaths", "retries", "cached_prompt_tokens",
                 "accepted_tokens_per_device_second", "device_hours_per_billion_accepted_tokens"):  # fmt: skip
        assert manifest[name] is None, name
    assert manifest["finish_reasons"] == {"not_told": 8}
    assert (manifest["completion_tokens"], manifest["accepted_tokens"]) == (8 * 30, 8 * 30)
    card = (work.directory / "card.md").read_text()
    assert "device time at work: – hours" in card
    assert "engine deaths survived: –" in card


def test_an_answer_as_long_as_allowed_may_be_cut_off_and_is_not_kept(work):
    requests = requests_of(work)
    commit(
        work, [answered(row, num_generated_tokens=40 if at == 0 else 39) for at, row in enumerate(requests)]
    )
    finish_work(work)
    rejected = [row for row in rows_of(work) if row["reject_reasons"] == ["truncation_unknown"]]
    assert len(rejected) == 1
    assert rejected[0]["completion_tokens"] == 40
    assert rejected[0]["finish_reason"] is None


def test_a_request_that_failed_is_quarantined_with_the_engines_words(work):
    requests = requests_of(work)
    failed = {
        "part": 0,
        "row": requests[1]["row"],
        "__inference_error__": "ValueError: no such token",
        "prompt": "",
    }
    commit(work, [answered(row) if at != 1 else failed for at, row in enumerate(requests)])
    manifest = finish_work(work)
    assert (manifest["quarantined"], manifest["reasons"]["request_failed"]) == (1, 1)
    (found,) = [row for entry in read_entries(work.directory, 3) for row in entry.quarantined]
    assert found["detail"] == "ValueError: no such token"


def test_a_part_whose_answers_went_with_their_process_is_missing_and_made_again_alone(work):
    requests = requests_of(work)
    commit(work, [answered(row) for row in requests if row["part"] == 0 or row["row"] == 0])
    assert missing_parts(work.directory, 3) == [1]
    before = (work.directory / "part-00000-of-00003.parquet").stat().st_mtime_ns
    commit(work, [answered(row) for row in requests])
    assert finish_work(work)["kept"] == 8
    assert (work.directory / "part-00000-of-00003.parquet").stat().st_mtime_ns == before


def test_a_failure_to_commit_is_a_sentence(work):
    answers = [answered(row) for row in requests_of(work)]
    with open(work.sources[1], "r+b") as damaged:
        damaged.truncate(100)
    results = commit(work, answers, batch=len(answers))
    assert results[0]["failure"] == ""
    assert "part-00001-of-00003.parquet cannot be read" in results[1]["failure"]


def test_the_processor_gets_the_engine_of_kind_vllm_and_what_it_may_take_of_the_cluster(config):
    def fields(**placement):
        return processor_fields(open_work(config.model_copy(update={"placement": config.placement.model_copy(update=placement)})))  # fmt: skip

    cpu = fields(engines=3, min_engines=1, max_num_seqs=512)
    assert cpu["placement_group_config"] == {"bundles": [{"CPU": 1.0}]}
    assert cpu["concurrency"] == (1, 3)
    assert cpu["max_concurrent_batches"] * cpu["batch_size"] >= 1.25 * 512
    assert cpu["engine_kwargs"]["enable_chunked_prefill"] is False
    assert cpu["runtime_env"]["env_vars"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    gpus = fields(gpus_per_engine=4, tensor_parallel=2, pipeline_parallel=2, cpus_per_engine=8)
    assert gpus["placement_group_config"] == {"bundles": [{"CPU": 2.0, "GPU": 1.0}] * 4}
    assert gpus["engine_kwargs"]["tensor_parallel_size"] == 2


def test_it_cannot_be_tuned_and_says_what_to_do_instead(config):
    with pytest.raises(
        ValueError, match=r"cannot be tuned, it does not tell its device time: tune kind 'vllm'"
    ):
        TuneEngineConfig.model_validate(config.model_dump())
