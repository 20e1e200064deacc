"""A device without the memory for a microbatch: the run goes on with less at once, says so, and computes the same."""

import contextlib

import pytest
import torch
from upath import UPath

from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.record_contents import metric_lines
from train.deepspeed_config import rows_per_microbatch
from train.memory import FIT_FILE, OutOfDeviceMemory, note_smaller_microbatch, read_fit
from train.placement import TrainPlacement
from train.record import read_record, run_directory

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")


@pytest.fixture
def packed(tmp_path):
    return write_packed_set(tmp_path)


def smaller(run, placement, workers, directory):
    """What a worker does that has run out of memory."""
    found = read_fit(directory)
    placed = found.placed(placement, run.rows_per_step // workers)
    note_smaller_microbatch(run, placed, workers, directory, found, NO_MEMORY)


def test_halves_until_one_row_is_left_and_then_gives_remedies(tmp_path, packed):
    run, directory = run_on(packed), UPath(tmp_path / "run")
    placement = TrainPlacement()
    for expected in (4, 2, 1):
        smaller(run, placement, 1, directory)
        assert read_fit(directory).rows_per_microbatch == expected
    assert read_fit(directory).did_not_fit == (8, 4, 2)
    with pytest.raises(OutOfDeviceMemory) as error:
        smaller(run, placement, 1, directory)
    assert "even with rows_per_microbatch = 1" in str(error.value)
    assert "recompute_activations" in str(error.value)
    assert "Tried to allocate 2.00 GiB" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows_per_step", "workers", "asked", "fits"),
    [(12, 1, 12, 6), (12, 2, 6, 3), (6, 1, 2, 1), (10, 1, 10, 5)],
)
def test_the_next_smaller_microbatch_divides_a_workers_rows(
    tmp_path, packed, rows_per_step, workers, asked, fits
):
    run = run_on(packed, rows_per_step=rows_per_step)
    smaller(run, TrainPlacement(rows_per_microbatch=asked), workers, UPath(tmp_path))
    assert read_fit(UPath(tmp_path)).rows_per_microbatch == fits


def test_what_one_worker_learnt_serves_a_group_that_has_grown(tmp_path, packed):
    run, placement = run_on(packed, rows_per_step=24), TrainPlacement(workers_per_lane=(1, 4))
    smaller(run, placement, 1, UPath(tmp_path))
    fit = read_fit(UPath(tmp_path))
    assert fit.rows_per_microbatch == 4
    assert rows_per_microbatch(run, fit.placed(placement, 24), 1) == 4
    assert rows_per_microbatch(run, fit.placed(placement, 6), 4) == 3  # 4 rows at once would not divide 6


def test_where_accumulation_is_not_possible_the_reason_is_told(tmp_path, packed):
    run = run_on(packed, precision="bf16")
    with pytest.raises(OutOfDeviceMemory, match=r"rows_per_microbatch = 8 does not fit .*zero_stage = 1"):
        smaller(run, TrainPlacement(zero_stage=0), 1, UPath(tmp_path))


@contextlib.contextmanager
def device_of(most_rows):
    """A device on which training passes of more rows than this run out of memory, in a layer of the model."""

    def hook(module, arguments):
        inside = type(module).__name__ == "LlamaDecoderLayer" and torch.is_grad_enabled()
        if inside and len(arguments[0]) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def train(root, packed, run, **placement):
    from train.loop import train_run

    return train_run(run, packed, TrainPlacement(**placement), run_directory(str(root), run.run_id))


def losses(root, run):
    return [(line["loss_nats_per_token"], line["gradient_norm"]) for line in metric_lines(root, run)]


@pytest.mark.slow
def test_a_run_that_does_not_fit_goes_on_with_fewer_rows_and_says_so(tmp_path, packed):
    run = run_on(packed, evaluations=1)
    with device_of(most_rows=3):
        short = train(tmp_path / "short", packed, run)
    assert short.status == "complete"
    assert short.device.rows_per_microbatch == 2
    assert short.device.did_not_fit == (8, 4)
    assert short == read_record(str(tmp_path / "short"), run.run_id)
    assert not (run_directory(str(tmp_path / "short"), run.run_id) / FIT_FILE).exists()
    # What it computes is what the same microbatch computes where there is memory: bit by bit.
    asked = train(tmp_path / "asked", packed, run, rows_per_microbatch=2)
    assert losses(tmp_path / "short", run) == losses(tmp_path / "asked", run)
    assert short.final == asked.final
    assert asked.device.did_not_fit == ()
    # And but for float noise what the whole batch at once computes.
    whole = train(tmp_path / "whole", packed, run)
    assert whole.device.rows_per_microbatch == 8
    assert short.final.loss_nats_per_token == pytest.approx(whole.final.loss_nats_per_token, abs=2e-5)


@pytest.mark.slow
def test_a_run_that_fits_in_no_way_raises_one_sentence(tmp_path, packed):
    with device_of(most_rows=0), pytest.raises(OutOfDeviceMemory, match="even with rows_per_microbatch = 1"):
        train(tmp_path, packed, run_on(packed))


@pytest.mark.slow
def test_recomputed_activations_give_the_same_bits(tmp_path, packed):
    run = run_on(packed, evaluations=1)
    kept = train(tmp_path / "kept", packed, run)
    again = train(tmp_path / "again", packed, run, recompute_activations=True)
    assert losses(tmp_path / "again", run) == losses(tmp_path / "kept", run)
    assert again.final == kept.final


@pytest.mark.slow
def test_compiled_layers_train_as_plain_ones_but_for_float_noise(tmp_path, packed):
    run = run_on(packed, evaluations=1)
    plain = train(tmp_path / "plain", packed, run)
    compiled = train(tmp_path / "compiled", packed, run, compile_layers=True)
    assert compiled.status == "complete"
    assert compiled.final.loss_nats_per_token == pytest.approx(plain.final.loss_nats_per_token, abs=2e-5)


def test_compiled_layers_and_weights_taken_apart_are_refused():
    with pytest.raises(ValueError, match=r"compile_layers = true does not go with zero_stage = 3"):
        TrainPlacement(compile_layers=True, zero_stage=3)
