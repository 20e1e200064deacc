"""A lane's worker without Ray: what becomes of a run that raises, and what ends the worker."""

import multiprocessing
import os
import re
import time

import pytest
import torch.distributed as dist

from synth.errors import UserError
from synth.storage import write_bytes_atomic
from tests.assets.direct_link import DirectLink
from tests.assets.packed_set import run_on, write_packed_set
from train.attempts import begin_attempt
from train.lanes import worker as lane_module
from train.lanes.queue import failed_record
from train.lanes.worker import Beats, LaneWorker
from train.memory import MicrobatchTooLarge
from train.placement import TrainPlacement
from train.record import read_record, run_directory, write_record

ATTEMPTS = []
"""Of the run with seed 4."""


def trainer(run, packed, placement, directory, *, device, report):
    """Stand in for training: what happens depends on the seed."""
    report(0)
    if run.seed == 1:
        report(512)
        raise ValueError("bad shapes")
    if run.seed == 2:
        raise UserError("packed_hash is another one.")
    if run.seed == 7:
        write_record(str(directory.parent.parent), _complete(run, packed, placement))
        raise ValueError("its checkpoints cannot be removed")
    if run.seed == 3:
        raise OSError("the store does not answer")
    if run.seed == 5:  # as PyTorch's writer says that a disk is full
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    if run.seed == 6:
        attempts = begin_attempt(run, directory, devices=0.5)
        attempts.add(8.0)
        report(512)
        raise ValueError("bad shapes")
    if run.seed == 4 and len(ATTEMPTS) < 2:
        ATTEMPTS.append(run.seed)
        raise MicrobatchTooLarge("no memory for 8 rows at once")
    record = _complete(run, packed, placement)
    if dist.get_rank() == 0:
        write_record(str(directory.parent.parent), record)
    return record


def _complete(run, packed, placement):
    record = failed_record(
        run, packed.vocab_size, placement, "", tokens=9, seconds=1, tokens_per_second=1, attempts=1
    )
    return record.model_copy(update={"status": "complete", "reason": None})


@pytest.fixture(scope="module")
def group():
    if dist.is_initialized():  # by a test of the real engine before this one
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def packed(tmp_path):
    return write_packed_set(tmp_path)


def work(root, runs, **placement):
    link = DirectLink(runs)
    LaneWorker(str(root), TrainPlacement(**placement), trainer, link, "cpu").work()
    return link


def test_a_run_that_raises_is_recorded_and_the_next_one_is_trained(group, tmp_path, packed):
    bad, good = run_on(packed, seed=1), run_on(packed, seed=10)
    link = work(tmp_path, [bad, good])
    assert [(record.run_id, record.status) for record in link.records] == [
        (bad.run_id, "failed"),
        (good.run_id, "complete"),
    ]
    record = read_record(str(tmp_path), bad.run_id)
    assert record == link.records[0]
    assert record.reason == "ValueError: bad shapes"
    assert record.train_tokens == 512


def test_what_is_raised_after_the_record_does_not_replace_it(group, tmp_path, packed):
    run = run_on(packed, seed=7)
    link = work(tmp_path, [run])
    assert [record.status for record in link.records] == ["complete"]
    assert read_record(str(tmp_path), run.run_id).status == "complete"


def test_a_run_asked_for_wrongly_goes_back_to_the_caller_without_a_record(group, tmp_path, packed):
    bad, good = run_on(packed, seed=2), run_on(packed, seed=10)
    link = work(tmp_path, [bad, good])
    assert link.refused == {bad.run_id: "packed_hash is another one."}
    assert [record.run_id for record in link.records] == [good.run_id]
    assert read_record(str(tmp_path), bad.run_id) is None


def test_a_store_out_of_reach_ends_the_worker_and_never_becomes_the_runs_end(group, tmp_path, packed):
    stopped, good = run_on(packed, seed=3), run_on(packed, seed=10)
    link = DirectLink([stopped, good])
    worker = LaneWorker(str(tmp_path), TrainPlacement(), trainer, link, "cpu")
    for _ in range(2):
        with pytest.raises(OSError, match="does not answer"):
            worker.work()
        assert link.records == []
    worker.work()
    assert [record.run_id for record in link.records] == [good.run_id]
    assert (
        "(OSError: the store does not answer): mend that and run the job again"
        in link.refused[stopped.run_id]
    )
    assert read_record(str(tmp_path), stopped.run_id) is None


def test_a_full_disk_is_told_at_once_with_the_room_it_takes_and_leaves_no_record(group, tmp_path, packed):
    stopped, good = run_on(packed, seed=5), run_on(packed, seed=10)
    link = work(tmp_path, [stopped, good])
    assert [record.run_id for record in link.records] == [good.run_id]
    assert re.fullmatch(
        rf"run {stopped.run_id}: the disk is full at {tmp_path}, with [\d,]+ MiB left: free 1 MiB or more and run the job again; "
        r"the run goes on from its last checkpoint\.",
        link.refused[stopped.run_id],
    )
    assert read_record(str(tmp_path), stopped.run_id) is None


def test_a_failed_run_costs_what_all_its_attempts_took_and_leaves_nothing_but_its_record(
    group, tmp_path, packed
):
    run = run_on(packed, seed=6)
    directory = run_directory(str(tmp_path), run.run_id)
    killed = begin_attempt(run, directory, devices=2.0)
    killed.add(5.0)
    write_bytes_atomic(directory / "checkpoints" / "step-00000001-x" / "state" / "weights.pt", b"1")
    (record,) = work(tmp_path, [run]).records
    assert record.attempts == 2
    assert record.wall_seconds == 13.0
    assert record.device_seconds == 5.0 * 2 + 8.0 * 0.5
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "record.json"]


def test_workers_that_were_all_short_of_memory_try_again_at_once(group, tmp_path, packed):
    ATTEMPTS.clear()
    short, good = run_on(packed, seed=4), run_on(packed, seed=10)
    link = work(tmp_path, [short, good])
    assert len(ATTEMPTS) == 2
    assert [(record.run_id, record.status) for record in link.records] == [
        (short.run_id, "complete"),
        (good.run_id, "complete"),
    ]


def test_a_stage_3_worker_stops_after_one_run_to_be_replaced(group, tmp_path, packed):
    runs = [run_on(packed, seed=seed) for seed in (10, 11)]
    assert len(work(tmp_path, runs, zero_stage=3).records) == 1
    assert len(work(tmp_path, runs, zero_stage=2).records) == 2


def test_beats_tell_where_a_run_starts_at_once_and_then_not_too_often(monkeypatch):
    told = []

    class Link:
        def beat(self, run_id, tokens):
            told.append(tokens)

    beats = Beats(Link(), "run")
    clock = iter([0.0, 0.1, 0.2, 1.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for tokens in (100, 110, 120, 250):
        beats(tokens)
    assert told == [100, 250]
    assert beats.tokens == 250
    assert beats.tokens_per_second == pytest.approx(100.0)


def test_the_speed_of_a_run_never_heard_of_twice_is_not_made_up():
    beats = Beats(None, "run")
    assert beats.tokens_per_second == 0.0
    beats(5)
    assert beats.tokens_per_second == 0.0


def peer(rank, root, address, runs, faults, results):
    """One of two ranks, as its own process."""
    lane_module.PATIENCE_SECONDS = 3.0
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)

    def faulty(run, packed, placement, directory, **options):
        fault = faults.get((rank, run.seed))
        if fault == "raise":
            raise ValueError(f"rank {rank} cannot")
        if fault == "die":
            os._exit(9)
        dist.barrier()  # where a step would exchange gradients
        return trainer(run, packed, placement, directory, **options)

    link = DirectLink(runs)
    try:
        LaneWorker(root, TrainPlacement(workers_per_lane=2), faulty, link, "cpu").work()
        ending = "stopped"
    except RuntimeError as error:
        ending = type(error).__name__
    results.put(
        (rank, ending, [record.status for record in link.records], link.queue._tickets.get(runs[0].run_id))
    )
    results.close()
    results.join_thread()
    os._exit(0)


def two_ranks(tmp_path, runs, faults):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    address = f"file://{tmp_path}/rendezvous"
    workers = [
        context.Process(target=peer, args=(rank, str(tmp_path), address, runs, faults, results))
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    ends = {}
    deaths = sum(fault == "die" for fault in faults.values())
    for _ in range(2 - deaths):
        rank, *end = results.get(timeout=300)
        ends[rank] = end
    for worker in workers:
        worker.join(timeout=60)
    return ends


@pytest.mark.drill
def test_a_run_that_raises_on_both_ranks_is_recorded_and_the_group_goes_on(tmp_path, packed):
    runs = [run_on(packed, seed=20), run_on(packed, seed=21)]
    ends = two_ranks(tmp_path, runs, {(0, 20): "raise", (1, 20): "raise"})
    assert ends[0][:2] == ["stopped", ["failed", "complete"]]
    assert ends[1][:2] == ["stopped", []]
    assert read_record(str(tmp_path), runs[0].run_id).reason == "ValueError: rank 0 cannot"


@pytest.mark.drill
def test_the_death_of_a_peer_is_not_recorded_as_the_runs_end(tmp_path, packed):
    runs = [run_on(packed, seed=20)]
    ends = two_ranks(tmp_path, runs, {(1, 20): "die"})
    assert ends[0][0] in ("RuntimeError", "DistBackendError")
    assert ends[0][1] == []
    assert read_record(str(tmp_path), runs[0].run_id) is None


@pytest.mark.drill
def test_a_rank_that_raises_alone_ends_the_group_and_says_what_it_was(tmp_path, packed):
    runs = [run_on(packed, seed=20)]
    ends = two_ranks(tmp_path, runs, {(0, 20): "raise"})
    _, statuses, ticket = ends[0]
    assert statuses == []
    assert ticket.error == "ValueError: rank 0 cannot"
    assert read_record(str(tmp_path), runs[0].run_id) is None
