"""The queue of runs: order, interruptions, runs that kill their workers."""

import pytest

from train.lanes.queue import MAX_DEATHS_AT_ONE_POINT, Assignment, Losses, RunQueue, failed_record
from train.placement import TrainPlacement
from train.record import TrunkUse
from train.run import RunConfig
from train.sizes import model_of


def _run(seed: int = 0) -> RunConfig:
    return RunConfig(
        packed="p",
        packed_hash="0",
        model=model_of("12k"),
        mixture={"natural": 1.0},
        train_tokens=1024,
        sequence_length=16,
        seed=seed,
    )


@pytest.fixture
def queue() -> RunQueue:
    return RunQueue()


def test_runs_are_handed_out_in_their_order_and_each_once(queue):
    for order, seed in ((1, 11), (0, 10), (2, 12)):
        queue.add(_run(seed), order)
    queue.add(_run(11), 7)
    assert [queue.assign(lane).run.seed for lane in range(3)] == [10, 11, 12]
    assert queue.assign(3) is None


def test_a_lane_that_asks_again_with_a_run_in_hand_gets_that_run_again(queue):
    queue.add(_run(1), 0)
    queue.add(_run(2), 1)
    assert queue.assign(0) == Assignment(_run(1))
    assert queue.assign(0) == Assignment(_run(1))
    assert queue.assign(1) == Assignment(_run(2))


def test_a_completed_run_is_not_handed_out_again(queue):
    queue.add(_run(1), 0)
    run = queue.assign(0).run
    queue.complete(run.run_id)
    assert queue.assign(0) is None
    assert run.run_id not in queue


def test_a_lost_lane_gives_its_run_back_at_its_old_place(queue):
    for seed in range(3):
        queue.add(_run(seed), seed)
    assert queue.assign(0).run.seed == 0
    queue.release(0)
    assert queue.num_waiting == 3
    assert [queue.assign(1).run.seed for _ in range(1)] == [0]


def test_a_run_completed_by_a_group_thought_dead_is_passed_over(queue):
    queue.add(_run(1), 0)
    queue.add(_run(2), 1)
    queue.assign(0)
    queue.release(0)
    queue.complete(_run(1).run_id)
    assert queue.assign(1).run.seed == 2


def test_a_run_that_kills_its_workers_at_the_same_point_is_given_up_and_says_why(queue):
    queue.add(_run(), 0)
    for _ in range(MAX_DEATHS_AT_ONE_POINT):
        assert queue.assign(0).give_up is None
        queue.beat(_run().run_id, 0)
        queue.beat(_run().run_id, 256)
    queue.complain(_run().run_id, "OSError: disk full")
    queue.complain(_run().run_id, "RuntimeError: connection closed by peer")
    last = queue.assign(0)
    assert last.tokens == 256
    assert "2 times" in last.give_up
    assert "256 tokens" in last.give_up
    assert "disk full" in last.give_up
    assert "peer" not in last.give_up


def test_a_store_that_fails_is_never_the_runs_end_but_a_fault_after_it_is(queue):
    queue.add(_run(), 0)
    for _ in range(MAX_DEATHS_AT_ONE_POINT):
        assert queue.assign(0) == Assignment(_run())
        queue.complain(_run().run_id, "StoreAway: the store does not answer", outside=True)
        queue.complain(_run().run_id, "RuntimeError: connection closed by peer")
    refused = queue.assign(0)
    assert refused.give_up is None
    assert "2 times by what is no fault of its own (StoreAway: the store does not answer)" in refused.refuse
    assert queue.assign(0).refuse is None, "nothing was said of the last attempt"


def test_a_run_that_gets_further_each_time_is_never_given_up(queue):
    queue.add(_run(), 0)
    for start in range(0, 1000, 100):
        assert queue.assign(0).give_up is None
        queue.beat(_run().run_id, start)
        queue.beat(_run().run_id, start + 150)


def test_getting_further_once_buys_as_many_deaths_as_a_fresh_run_has(queue):
    queue.add(_run(), 0)
    for start in (0, 100, 100):
        assert queue.assign(0).give_up is None
        queue.beat(_run().run_id, start)
    assert queue.assign(0).give_up is not None


def test_a_death_before_any_sign_of_life_counts(queue):
    queue.add(_run(), 0)
    for _ in range(MAX_DEATHS_AT_ONE_POINT):
        assert queue.assign(0).give_up is None
    assert "before its first step" in queue.assign(0).give_up


def test_tokens_in_hand_are_those_of_runs_without_a_record(queue):
    for seed in (1, 2):
        queue.add(_run(seed), seed)
        queue.assign(seed)
        queue.beat(_run(seed).run_id, 100 * seed)
    assert queue.tokens_in_hand == 300
    queue.complete(_run(2).run_id)
    assert queue.tokens_in_hand == 100
    queue.beat(_run(2).run_id, 500)
    assert queue.tokens_in_hand == 100


def test_the_record_of_a_failed_run_keeps_what_is_known_and_invents_nothing():
    placement = TrainPlacement(workers_per_lane=2)
    record = failed_record(
        _run(), 300, placement, "why", tokens=512, seconds=3.0, tokens_per_second=0.0, attempts=2, device_seconds=5.0
    )  # fmt: skip
    assert (record.status, record.reason, record.attempts) == ("failed", "why", 2)
    assert record.final is None
    assert record.sources == {}
    assert record.train_tokens == 512
    assert (record.wall_seconds, record.device_seconds) == (3.0, 5.0)
    assert record.train_flops_6nd == 6 * record.num_params_non_embedding * 512


def test_a_worker_on_a_quarter_of_a_gpu_is_charged_a_quarter():
    placement = TrainPlacement(gpus_per_worker=0.25, lanes=4)
    record = failed_record(
        _run(), 300, placement, "why", tokens=512, seconds=8.0, tokens_per_second=0.0, attempts=1
    )
    assert record.device_seconds == 2.0


@pytest.mark.parametrize("heard_of", [0, 1024])
def test_a_failed_branch_costs_what_it_took_itself(heard_of):
    taken_over = TrunkUse(trunk_id="t", train_tokens=768, wall_seconds=20.0, device_seconds=40.0)
    record = failed_record(
        _run(), 300, TrainPlacement(), "why", tokens=heard_of, seconds=3.0, tokens_per_second=0.0, attempts=1,
        device_seconds=6.0, trunk=taken_over,
    )  # fmt: skip
    assert record.own_tokens == max(0, heard_of - 768)
    assert record.own_device_seconds == 6.0
    assert (record.wall_seconds, record.device_seconds) == (23.0, 46.0)


def test_branches_of_a_trunk_wait_for_each_other_and_others_pass_them(queue):
    def branch(seed, num_steps):
        return _run(seed).model_validate(
            _run(seed).model_dump()
            | {
                "train_tokens": num_steps * 128,
                "branching": True,
                "optimizer": {"warmup_tokens": 0},
            }
        )

    short, long, other = branch(1, 10), branch(1, 20), branch(2, 10)
    for order, run in enumerate((short, long, other)):
        queue.add(run, order)
    assert queue.assign(0).run == short
    assert queue.assign(1).run == other
    assert queue.assign(2) is None
    assert queue.num_waiting == 1
    queue.complete(short.run_id)
    assert queue.assign(2).run == long


def losses_of(events):
    """Return how many losses in a row lane 0 counts after each "lost" of a list of events."""
    queue, losses, found = RunQueue(), Losses(), []
    for order in range(len(events)):
        queue.add(_run(order), order)
    run = queue.assign(0).run
    for event in events:
        if event == "finished":
            queue.complete(run.run_id)
            run = queue.assign(0).run
        elif event == "lost":
            losses.add(queue.progress[0])
            found.append(losses.in_a_row)
            run = queue.assign(0).run
        else:
            queue.beat(run.run_id, event)
    return found


@pytest.mark.parametrize(
    ("events", "in_a_row"),
    [
        (["lost", "lost", "lost"], [1, 2, 3]),
        (["lost", "finished"] * 5, [1] * 5),
        ([0, "lost", 256, "lost", 512, "lost"], [1, 1, 1]),
        ([0, "lost", 0, "lost", 256, "lost", 256, "lost"], [1, 2, 1, 2]),
        (["finished", "finished", "lost", "lost"], [1, 2]),
    ],
)
def test_losses_in_a_row_begin_anew_when_a_run_is_finished_or_goes_on_further(events, in_a_row):
    assert losses_of(events) == in_a_row


def test_a_run_that_is_given_up_is_no_progress(queue):
    queue.add(_run(), 0)
    while queue.assign(0).give_up is None:
        queue.beat(_run().run_id, 0)
    queue.complete(_run().run_id)
    assert queue.progress[0] == 0


def test_the_lane_that_trained_a_run_gets_the_credit_when_another_goes_on_with_it(queue):
    queue.add(_run(), 0)
    for lane, tokens in ((0, 0), (1, 256)):
        queue.assign(lane)
        queue.beat(_run().run_id, tokens)
        queue.release(lane)
    assert queue.progress == {0: 1}
