"""A study on six short texts of a test's own, whose corpus can be built without Ray."""

import datetime as dt

from rayjobs.study import StudyConfig, steps_of
from synth.config import CorpusConfig
from synth.corpus import CorpusBuild
from tests.assets.study_file import changed


def build(config: CorpusConfig) -> None:
    corpus = CorpusBuild(config)
    for stage in corpus.stages():
        for task in stage.todo:
            stage.work(task)
    corpus.finish()


def study_on(text, root, **more):
    sources = [{"kind": "files", "paths": [str(text)], "domain": "notes"}]
    study = changed("corpora.natural", {"sources": sources, "held_out_fraction": 0.2})
    return StudyConfig.model_validate({**study, "root": str(root), **more})


def first_step(study):
    return steps_of(study)[0]


def minutes_ago(minutes):
    return (dt.datetime.now(dt.UTC) - dt.timedelta(minutes=minutes)).isoformat()
