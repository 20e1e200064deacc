"""The queue actor, called in this process: who waits for what, and who is told when."""

import asyncio
import os
import threading

import pytest

from synth.errors import UserError
from train.lanes.queue import Assignment, LanesLost, Word, failed_record
from train.lanes.queue_actor import QueueActor
from train.placement import TrainPlacement
from train.record import run_directory, write_record
from train.run import RunConfig
from train.sizes import model_of

SOON = 5.0


def run_with(seed):
    return RunConfig(
        packed="p",
        packed_hash="0",
        model=model_of("12k"),
        mixture={"natural": 1.0},
        train_tokens=1024,
        sequence_length=16,
        seed=seed,
    )


def record_of(run):
    return failed_record(
        run, 300, TrainPlacement(), "why", tokens=0, seconds=0, tokens_per_second=0, attempts=1
    )


@pytest.fixture
def play(tmp_path):
    """`play(scene, lanes=1)` runs `async scene(queue)` against a fresh queue and returns what it returns."""

    def play(scene, num_lanes=1):
        async def scene_with_queue():
            return await asyncio.wait_for(scene(QueueActor(str(tmp_path), num_lanes)), 60)

        return asyncio.run(scene_with_queue())

    return play


def test_a_submitter_gets_the_record_a_lane_reports(play):
    async def scene(queue):
        waiting = [asyncio.create_task(queue.submit(run_with(1))) for _ in range(2)]
        assert await queue.take(0, "group", 1, SOON) == Assignment(run_with(1))
        write_record(queue._root, record_of(run_with(1)))
        await queue.done(record_of(run_with(1)))
        # One of the two may have looked for the record just before it was there, and queued the run again.
        lane = asyncio.create_task(queue.take(0, "group", 1, SOON))
        records = await asyncio.gather(*waiting)
        lane.cancel()
        return records

    assert play(scene) == [record_of(run_with(1))] * 2


def test_runs_are_handed_out_in_the_submitters_order_whatever_order_they_arrive_in(play):
    async def scene(queue):
        arrivals = [(3, run_with(3)), (1, run_with(1)), (2, run_with(2))]
        waiting = [asyncio.create_task(queue.submit(run, order)) for order, run in arrivals]
        while (await queue.state())["runs_waiting"] < 3:
            await asyncio.sleep(0.01)
        handed_out = []
        for _ in arrivals:
            handed_out.append((await queue.take(0, "group", 1, SOON)).run.seed)
            await queue.done(record_of(run_with(handed_out[-1])))
        await asyncio.gather(*waiting)
        return handed_out

    assert play(scene) == [1, 2, 3]


def test_a_lane_that_waits_is_woken_by_a_run(play):
    async def scene(queue):
        lane = asyncio.create_task(queue.take(0, "group", 1, SOON))
        await asyncio.sleep(0.05)
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        order = await lane
        await queue.done(record_of(run_with(1)))
        await submitted
        return order

    assert play(scene) == Assignment(run_with(1))


def test_an_idle_lane_is_told_to_ask_again_and_a_closed_one_to_stop(play):
    async def scene(queue):
        assert await queue.take(0, "group", 1, 0.01) is Word.WAIT
        lane = asyncio.create_task(queue.take(0, "group", 1, SOON))
        await asyncio.sleep(0.05)
        await queue.close()
        assert await lane is Word.STOP
        with pytest.raises(LanesLost, match="closed"):
            await queue.submit(run_with(1))

    play(scene)


def test_a_run_with_a_record_never_reaches_a_lane(play, tmp_path):
    write_record(str(tmp_path), record_of(run_with(1)))

    async def scene(queue):
        assert await queue.submit(run_with(1)) == record_of(run_with(1))
        assert await queue.take(0, "group", 1, 0.01) is Word.WAIT

    play(scene)


def test_a_group_that_died_after_the_record_does_not_train_the_run_again(play, tmp_path):
    async def scene(queue):
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        assert await queue.take(0, "first", 1, SOON) == Assignment(run_with(1))
        write_record(str(tmp_path), record_of(run_with(1)))
        assert await queue.take(0, "second", 1, 0.05) is Word.WAIT
        return await submitted

    assert play(scene) == record_of(run_with(1))


def test_a_group_replaced_by_another_is_sent_home(play):
    async def scene(queue):
        old = asyncio.create_task(queue.take(0, "old", 1, SOON))
        await asyncio.sleep(0.05)
        new = asyncio.create_task(queue.take(0, "new", 1, SOON))
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        orders = await asyncio.gather(old, new)
        await queue.done(record_of(run_with(1)))
        await submitted
        return orders

    assert play(scene) == [Word.STOP, Assignment(run_with(1))]


def test_a_group_that_comes_back_at_another_size_holds_that_against_no_run(play):
    async def scene(queue):
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        orders = [
            await queue.take(0, f"group {n}", workers, SOON) for n, workers in enumerate((2, 1, 2, 1, 2))
        ]
        same_size = [await queue.take(0, f"again {n}", 2, SOON) for n in range(2)]
        await queue.done(record_of(run_with(1)))
        await submitted
        return orders, same_size, await queue.state()

    orders, same_size, state = play(scene)
    assert orders == [Assignment(run_with(1))] * 5
    assert same_size[0] == Assignment(run_with(1))
    assert "workers died under this run 2 times" in same_size[1].give_up
    assert state["lane_sizes"] == {0: 2}


def test_others_are_heard_while_the_store_says_whether_a_run_has_its_record(play, tmp_path):
    heard = threading.Event()

    def answer_late(path):
        heard.wait(SOON)
        path.write_text(record_of(run_with(1)).model_dump_json())

    async def scene(queue):
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        while not (await queue.state())["runs_waiting"]:
            await asyncio.sleep(0.01)
        path = run_directory(str(tmp_path), run_with(1).run_id) / "record.json"
        path.parent.mkdir(parents=True)
        os.mkfifo(path)  # who reads it waits for who writes it
        late = asyncio.create_task(asyncio.to_thread(answer_late, path))
        lane = asyncio.create_task(queue.take(0, "group", 1, 0.1))
        await asyncio.sleep(0.05)
        in_time = not heard.is_set() and not late.done()
        await queue.beat(run_with(1).run_id, 16)
        heard.set()
        await late
        path.unlink()
        return in_time, await submitted, await lane

    assert play(scene) == (True, record_of(run_with(1)), Word.WAIT)


def test_a_refused_run_is_its_submitters_error(play):
    async def scene(queue):
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        await queue.take(0, "group", 1, SOON)
        await queue.refuse(run_with(1).run_id, "rows_per_step = 8 cannot be shared.")
        with pytest.raises(UserError, match="rows_per_step = 8"):
            await submitted
        assert await queue.take(0, "group", 1, 0.01) is Word.WAIT

    play(scene)


def test_what_a_lost_lane_had_in_hand_goes_to_the_one_that_is_left(play):
    async def scene(queue):
        submitted = asyncio.create_task(queue.submit(run_with(1)))
        await queue.take(0, "group", 1, SOON)
        other = asyncio.create_task(queue.take(1, "other", 1, SOON))
        await asyncio.sleep(0.05)
        await queue.lane_ended(0, "OutOfMemory")
        assert await other == Assignment(run_with(1))
        state = await queue.state()
        await queue.done(record_of(run_with(1)))
        await submitted
        return state

    state = play(scene, num_lanes=2)
    assert state["lanes_ended"] == {0: "OutOfMemory"}
    assert state["lanes_up"] == [1]


def test_when_the_last_lane_is_lost_everyone_hears_why_and_no_one_waits_any_more(play):
    async def scene(queue):
        waiting = [asyncio.create_task(queue.submit(run_with(seed))) for seed in (1, 2)]
        await queue.take(0, "group", 1, SOON)
        await queue.lane_ended(0, "OutOfMemory")
        await queue.lane_ended(1, "no space left")
        for task in waiting:
            with pytest.raises(LanesLost, match=r"lane 0: OutOfMemory; lane 1: no space left"):
                await task
        with pytest.raises(LanesLost, match="run the job again"):
            await queue.submit(run_with(3))

    play(scene, num_lanes=2)


def test_a_submitter_that_gives_up_takes_the_record_from_no_one(play):
    async def scene(queue):
        first, second = (asyncio.create_task(queue.submit(run_with(1))) for _ in range(2))
        await queue.take(0, "group", 1, SOON)
        first.cancel()
        await asyncio.sleep(0.05)
        await queue.done(record_of(run_with(1)))
        return await second

    assert play(scene) == record_of(run_with(1))


def test_a_lane_is_woken_when_the_trunk_its_run_waits_for_comes_free(play):
    shared = {"branching": True, "optimizer": {"warmup_tokens": 0}}
    short, long = (
        RunConfig.model_validate(run_with(1).model_dump() | shared | {"train_tokens": tokens})
        for tokens in (1024, 2048)
    )

    async def scene(queue):
        first = asyncio.create_task(queue.submit(short))
        assert await queue.take(0, "group", 1, SOON) == Assignment(short)
        second = asyncio.create_task(queue.submit(long))
        other_lane = asyncio.create_task(queue.take(1, "group", 1, SOON))
        await asyncio.sleep(0.05)
        assert not other_lane.done()
        await queue.done(record_of(short))
        order = await other_lane
        await queue.done(record_of(long))
        await asyncio.gather(first, second)
        return order

    assert play(scene, num_lanes=2) == Assignment(long)
