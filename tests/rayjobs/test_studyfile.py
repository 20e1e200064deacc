"""The study file a run leaves under its root: read again, it is the same study."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rayjobs.run_study import run_study
from rayjobs.study import StudyConfig
from rayjobs.studyfile import STUDY_FILE, study_file
from synth.storage import study_path
from tests.assets.study_file import changed

CONFIGS = sorted((Path(__file__).parents[2] / "rayjobs" / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_study_comes_back_the_same(path):
    study = StudyConfig.model_validate(tomllib.loads(path.read_text()))
    text = study_file(study)
    assert str(study.root) not in text
    assert StudyConfig.model_validate(tomllib.loads(text) | {"root": study.root}) == study


def test_values_from_flags_and_defaults_are_written_out():
    study = StudyConfig.model_validate(changed("pretrain.grid.seeds", [3, 4]))
    told = tomllib.loads(study_file(study))
    assert told["pretrain"]["grid"]["seeds"] == [3, 4]
    assert told["laws"][next(iter(study.laws))]["bootstrap_samples"] == 1000
    assert "name" not in told["pretrain"]["grid"]


def test_a_run_leaves_it_under_the_root(tmp_path):
    study = StudyConfig.model_validate(changed("root", str(tmp_path)))
    with pytest.raises(RuntimeError, match="stop here"):
        run_study(study, connect=lambda *_: (_ for _ in ()).throw(RuntimeError("stop here")))
    written = study_path(str(tmp_path), STUDY_FILE).read_text()
    assert StudyConfig.model_validate(tomllib.loads(written) | {"root": str(tmp_path)}) == study
