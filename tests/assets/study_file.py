"""A small sound study file, and ways to change it."""

import copy

STUDY = {
    "root": "somewhere",
    "corpora": {"natural": {"sources": [{"kind": "docstrings", "packages": ["numpy"]}]}},
    "rephrase": {"made": {"corpus": "natural", "recipes": ["hq"], "engine": {"model": "org/model"}}},
    "pack": {
        "packed": {
            "sources": {"natural": {"corpus": "natural"}, "hq": {"synthetic": "made", "recipe": "hq"}},
            "evaluate_on": ["natural"],
        }
    },
    "pretrain": {"grid": {"synthetic": ["hq"], "axes": [{"models": ["98k"], "train_tokens": [65536]}]}},
    "laws": {"fit": {"plan": "grid"}},
    "report": {"report": {"plan": "grid", "laws": "fit"}},
}


def changed(path, value, study=STUDY):
    """Return the study with the value at a dotted path replaced."""
    study = copy.deepcopy(study)
    *parents, last = path.split(".")
    table = study
    for key in parents:
        table = table.setdefault(key, {})
    table[last] = value
    return study
