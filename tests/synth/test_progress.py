"""The progress line: how far, how long, how much longer; rarely printed, always at the end."""

import io
import re

import pytest

from synth import progress
from synth.progress import Progress, clock


@pytest.fixture
def now(monkeypatch):
    """A clock the test sets: a list of one time in seconds."""
    time = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (-3, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert clock(seconds) == text


def test_the_line_has_share_elapsed_and_eta(now):
    stream = io.StringIO()
    line = Progress("read", 40, "parts", stream=stream)
    now[0] += 21
    line.set(12, "3 tokens/s")
    assert stream.getvalue() == "[read] 12/40 parts, 30 %, 0:21 elapsed, ETA 0:49, 3 tokens/s\n"


def test_work_found_finished_is_progress_but_not_speed(now):
    stream = io.StringIO()
    line = Progress("read", 100, "parts", already=90, stream=stream)
    now[0] += 10
    line.advance(5)
    assert "95/100 parts, 95 %, 0:10 elapsed, ETA 0:10" in stream.getvalue()


def test_the_eta_forgets_how_long_the_start_took(now):
    stream = io.StringIO()
    line = Progress("train", 100, "tokens", stream=stream)
    now[0] += 60
    line.set(10)
    now[0] += 10
    line.set(20)
    assert stream.getvalue().splitlines()[-1] == "[train] 20/100 tokens, 20 %, 1:10 elapsed, ETA 1:20"


def test_units_in_work_count_for_as_much_of_them_as_is_done(now):
    stream = io.StringIO()
    line = Progress("read", 4, "parts", interval_seconds=0, stream=stream)
    now[0] += 60
    line.partly(0.5, "50 of 100 rows")
    now[0] += 10
    line.partly(1.0, "100 of 200 rows")
    now[0] += 10
    line.set(1)  # the half of the other one is still counted
    line.partly(0.5)
    line.set(4)
    assert stream.getvalue().splitlines() == [
        "[read] 0/4 parts, 12 %, 1:00 elapsed, ETA unknown, 50 of 100 rows",
        "[read] 0/4 parts, 25 %, 1:10 elapsed, ETA 1:00, 100 of 200 rows",
        "[read] 1/4 parts, 50 %, 1:20 elapsed, ETA 0:27",
        "[read] 1/4 parts, 38 %, 1:20 elapsed, ETA 0:50",
        "[read] 4/4 parts, 100 %, 1:20 elapsed, ETA 0:00",
    ]


def test_lines_keep_their_distance_but_the_last_one_comes(now):
    stream = io.StringIO()
    line = Progress("read", 100, "parts", interval_seconds=5, stream=stream)
    for _ in range(100):
        now[0] += 0.1
        line.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # at the start, after 5 s, at the end
    assert lines[-1].startswith("[read] 100/100 parts, 100 %")
    assert line.elapsed_seconds == pytest.approx(10)


def test_without_any_work_done_the_eta_is_unknown(now):
    stream = io.StringIO()
    Progress("read", 10, "parts", already=3, stream=stream).set(3)
    assert re.search(r"3/10 parts, 30 %.*ETA unknown", stream.getvalue())


def test_a_step_with_nothing_to_do_is_done(now):
    stream = io.StringIO()
    Progress("read", 0, "parts", stream=stream).set(0)
    assert "0/0 parts, 100 %" in stream.getvalue()
