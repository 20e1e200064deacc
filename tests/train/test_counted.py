"""Where sources have prompts, a step's loss is the mean over its counted tokens, however rows are cut and shared."""

import tracemalloc

import numpy as np
import pytest
import torch

from tests.assets.packed_set import EOT, run_on, write_packed_set
from train.counted import CountedTokens
from train.mixture import MixtureSampler
from train.tokens import PackedSet

CPU = torch.device("cpu")


@pytest.fixture
def packed(tmp_path) -> PackedSet:
    """A packed set whose source `natural` counts every second token, and `synthetic` all."""
    plain = write_packed_set(tmp_path)
    natural = plain.info.sources["natural"]
    flags = (np.arange(natural.num_tokens) % 2 == 0).astype(np.uint8)
    (tmp_path / "packed/tiny/sources/natural/part-00000-of-00001.counted").write_bytes(flags.tobytes())
    shard = {"num_tokens": len(flags), "sha256": "none"}
    source = natural.model_copy(
        update={"counted_shards": (type(natural.shards[0]).model_validate(shard),), "num_counted_tokens": int(flags.sum())}
    )  # fmt: skip
    info = plain.info.model_copy(update={"sources": plain.info.sources | {"natural": source}})
    return PackedSet(str(tmp_path), "tiny", info, None)


def test_flags_follow_the_stream_and_leave_out_documents_that_began_before_the_row(packed):
    rows = np.array([0, 5, 17])
    tokens = packed.gather(["natural"], np.zeros(3, np.int64), rows)
    counted = packed.gather_counted(["natural"], np.zeros(3, np.int64), rows, tokens)
    length = packed.sequence_length
    for row, ids, found in zip(rows, tokens, counted, strict=True):
        begun = False
        for i in range(length):
            begun = begun or ids[i] == EOT
            assert found[i] == (begun and (row * length + i + 1) % 2 == 0)


def test_every_prediction_of_a_source_without_prompts_counts(packed):
    tokens = packed.gather(["synthetic"], np.zeros(2, np.int64), np.array([3, 4]))
    assert packed.gather_counted(["synthetic"], np.zeros(2, np.int64), np.array([3, 4]), tokens).all()
    assert packed.counts_all(["synthetic"])
    assert not packed.counts_all(["natural", "synthetic"])


@pytest.mark.parametrize(("workers", "microbatch"), [(1, 1), (1, 8), (2, 2), (4, 1)])
def test_the_mean_over_microbatches_and_workers_is_the_mean_over_all_counted_tokens(
    packed, workers, microbatch
):
    run = run_on(packed)
    tokens = CountedTokens(run, packed, MixtureSampler(run.mixture, packed.info.num_rows, run.seed))
    options = [
        option
        for worker in range(workers)
        for option in tokens.loss_options(3, microbatch, CPU, worker=worker, workers=workers)
    ]
    assert len(options) == 8 // microbatch
    nats = torch.arange(8 * packed.sequence_length, dtype=torch.float64).view(8, -1)  # any losses
    parts = [
        (losses * option["counted"]).sum() / option["counted_tokens"]
        for losses, option in zip(nats.split(microbatch), options, strict=True)
    ]
    counted = torch.cat([option["counted"] for option in options])
    assert 0 < counted.sum() < counted.numel()
    torch.testing.assert_close(sum(parts) / len(parts), nats[counted].mean())


def test_counts_by_source_are_those_of_the_flags_of_the_steps(packed):
    run = run_on(packed)
    sampler = MixtureSampler(run.mixture, packed.info.num_rows, run.seed)
    tokens = CountedTokens(run, packed, sampler)
    both = tokens.by_source(2, 5)
    each = [tokens.by_source(step, step + 1) for step in (2, 3, 4)]
    assert both == [sum(counts) for counts in zip(*each, strict=True)]
    options = [
        option["counted"].sum()
        for step in (2, 3, 4)
        for option in tokens.loss_options(step, 8, CPU, worker=0, workers=1)
    ]
    assert sum(both) == sum(options)


def test_counting_a_long_stretch_of_steps_holds_one_of_them_in_memory(packed):
    run = run_on(packed, train_tokens=1000 * 8 * packed.sequence_length)
    tokens = CountedTokens(run, packed, MixtureSampler(run.mixture, packed.info.num_rows, run.seed))
    tracemalloc.start()
    try:
        tokens.by_source(0, 1000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1000 * 8 * packed.sequence_length * 4, "less than the row numbers of all steps alone"


def test_nothing_is_told_to_the_model_where_every_token_counts(tmp_path):
    plain = write_packed_set(tmp_path)
    run = run_on(plain)
    tokens = CountedTokens(run, plain, MixtureSampler(run.mixture, plain.info.num_rows, run.seed))
    assert tokens.loss_options(0, 4, CPU, worker=0, workers=1) == [{}, {}]
    assert sum(tokens.by_source(0, 2)) == 2 * 8 * plain.sequence_length
