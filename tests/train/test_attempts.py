"""Whose a run's directory is, and how often the run was started."""

import pytest
from upath import UPath

from synth.errors import UserError
from tests.assets.packed_set import run_on, write_packed_set
from train.attempts import begin_attempt, read_attempts


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_attempts_are_counted_with_what_each_took_on_how_many_devices(tmp_path, scheme):
    run, directory = run_on(write_packed_set(tmp_path)), UPath(f"{scheme}{tmp_path}/runs/r")
    assert read_attempts(directory).number == 0
    first = begin_attempt(run, directory, devices=4.0)
    first.add(2.0)
    first.add(0.5)
    assert begin_attempt(run, directory, devices=1.0).wall_seconds == 2.5
    begin_attempt(run, directory, devices=0.25).add(8.0)
    found = read_attempts(directory)
    assert (found.number, found.wall_seconds, found.device_seconds) == (3, 10.5, 12.0)


def test_the_directory_of_another_run_is_not_taken(tmp_path):
    packed = write_packed_set(tmp_path)
    begin_attempt(run_on(packed, seed=1), UPath(tmp_path) / "r", 1.0)
    with pytest.raises(UserError, match="holds another run than"):
        begin_attempt(run_on(packed, seed=2), UPath(tmp_path) / "r", 1.0)
