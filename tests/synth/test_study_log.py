"""The log of a study: what ran, whoever ran it."""

import pytest

from synth.study_log import StudyLog, read_log


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_two_drivers_of_one_study_lose_none_of_each_others_entries(tmp_path, scheme):
    root = f"{scheme}{tmp_path}/study"
    assert read_log(root) == []
    first, second = StudyLog(root), StudyLog(root)
    first.add("build_corpus", "natural", 12.504)
    second.add("fit_laws", "laws", 4.0)
    first.add("pack_tokens", "packed", 0.0, taken_from="elsewhere")
    assert read_log(root) == [
        {"step": "build_corpus", "name": "natural", "wall_seconds": 12.5},
        {"step": "pack_tokens", "name": "packed", "wall_seconds": 0.0, "taken_from": "elsewhere"},
        {"step": "fit_laws", "name": "laws", "wall_seconds": 4.0},
    ]
