"""Whose a run's directory is, and how often the run was started."""

import pytest
from upath import UPath

from synth.errors import UserError
from tests.assets.packed_set import run_on, write_packed_set
from train.attempts import attempts_at, begin_attempt, forget_attempts


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_attempts_are_counted_until_the_run_has_its_record(tmp_path, scheme):
    run, directory = run_on(write_packed_set(tmp_path)), UPath(f"{scheme}{tmp_path}/runs/r")
    assert attempts_at(directory) == 0
    assert [begin_attempt(run, directory) for _ in range(3)] == [1, 2, 3]
    assert attempts_at(directory) == 3
    forget_attempts(directory)
    forget_attempts(directory)
    assert attempts_at(directory) == 0


def test_the_directory_of_another_run_is_not_taken(tmp_path):
    packed = write_packed_set(tmp_path)
    begin_attempt(run_on(packed, seed=1), UPath(tmp_path) / "r")
    with pytest.raises(UserError, match="holds another run than"):
        begin_attempt(run_on(packed, seed=2), UPath(tmp_path) / "r")
