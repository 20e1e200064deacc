"""Progress while no part ends: by the rows of those in work, each part once, none that is done."""

from __future__ import annotations

import asyncio
import io
import threading

import pytest

from synth import open_parts
from synth.open_parts import OpenParts, Telling
from synth.progress import Progress
from synth.rephrase import open_work
from synth.worker import RephraseWorker


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(open_parts, "TELL_SECONDS", 0.01)


def told(*words, finished=()):
    """Return what a progress of four parts says when makers say one thing after the other, the last one again and again."""
    stream, asked = io.StringIO(), threading.Semaphore(0)
    progress = Progress("rephrase_corpus", 4, "parts", interval_seconds=0, stream=stream)

    left = list(words)

    def ask():
        asked.release()
        return left.pop(0) if len(left) > 1 else left[0]

    with Telling(progress, ask) as telling:
        for part in finished:
            telling.finish(part, "7 accepted tokens/s")
        for _ in range(len(words) + 2):
            assert asked.acquire(timeout=10)
    return stream.getvalue()


def test_the_rows_of_parts_in_work_are_told_while_none_ends():
    said = told({0: (30, 40), 1: (10, 40)})
    assert "0/4 parts, 25 %" in said
    assert said.splitlines()[0].endswith(", 40 of the 80 rows in work answered")


def test_a_part_that_is_done_is_not_in_work_any_more():
    said = told({0: (40, 40), 1: (10, 40)}, finished=[0])
    assert "1/4 parts, 31 %" in said
    assert "10 of the 40 rows in work answered, 7 accepted tokens/s" in said


def test_a_part_that_is_being_written_counts_as_answered():
    said = told({0: (30, 40), 1: (10, 40)}, {1: (20, 40)}).splitlines()
    assert "0/4 parts, 25 %" in said[0]
    assert "0/4 parts, 38 %" in said[1]
    assert said[1].endswith(", 60 of the 80 rows in work answered")


@pytest.mark.parametrize("heard", [{}, {0: (0, 0)}])
def test_nothing_is_told_where_nothing_is_known(heard):
    assert told(heard) == ""


def test_what_makers_say_is_put_together_and_the_last_word_of_each_counts():
    parts = OpenParts()
    assert (parts.begin(3), parts.begin(3), parts.begin(4)) == (1, 2, 1)
    parts.hear("one", {0: (1, 10), 1: (2, 10)})
    parts.hear("other", {2: (5, 10)})
    parts.hear("one", {1: (9, 10)})
    assert parts.answered() == {1: (9, 10), 2: (5, 10)}


def test_a_worker_says_how_many_rows_of_its_parts_are_answered(fake_config):
    work = open_work(fake_config({"latency_seconds": 0.01}, placement={"max_num_seqs": 1}))
    work.claim()

    async def seen():
        worker = RephraseWorker(work)
        making, heard = asyncio.create_task(worker.make_part(0)), []
        while not making.done():
            heard.append(worker.answered)
            await asyncio.sleep(0.005)
        entry = await making
        after = worker.answered
        await worker.close()
        return entry, heard, after

    entry, heard, after = asyncio.run(seen())
    counts = [each[0] for each in heard if each]
    assert {rows for _, rows in counts} == {entry.total.rows}
    assert [answered for answered, _ in counts] == sorted(answered for answered, _ in counts)
    assert len({answered for answered, _ in counts}) > 2
    assert after == {}
