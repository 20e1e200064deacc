"""How well `tune.mixture_regression` ranks mixtures of 17 sources on RegMix's runs, beside what is published and trees.

    python benchmarks/mixture_ranking.py --reference DIR [--domains pile_cc github] [--out FILE.json]

DIR holds six files of https://github.com/sail-sg/regmix (MIT): train_mixture_1m.csv, train_pile_loss_1m.csv,
test_mixture_1m.csv, test_pile_loss_1m.csv, test_mixture_60m.csv, test_pile_loss_60m.csv. For each held-out domain, the
512 runs at 1M parameters are learned from; the figures are Spearman's rank correlations of what is predicted with the
losses of 256 unseen mixtures, at 1M and at 60M parameters:

* process: `MixtureRegressor`;
* trees: LightGBM as RegMix sets it, 1,000 rounds without looking at the unseen runs; only where the package can be
  imported, which is in no lock (`uv run --with lightgbm`);
* published: RegMix's trees at 1M, their training stopped early on the runs they are then tested on.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of, versions
from tune.mixture_regression import MixtureRegressor

PUBLISHED = {
    "arxiv": 0.9960,
    "freelaw": 0.9971,
    "pubmed_central": 0.9908,
    "wikipedia_en": 0.9945,
    "dm_mathematics": 0.9720,
    "github": 0.9977,
    "stackexchange": 0.9973,
    "gutenberg_pg_19": 0.9918,
    "pile_cc": 0.9892,
    "ubuntu_irc": 0.9687,
    "hackernews": 0.9851,
    "pubmed_abstracts": 0.9919,
    "uspto_backgrounds": 0.9912,
}
"""Rank correlation of RegMix's trees on the 256 unseen 1M runs, by domain (Liu et al. 2024, arXiv 2407.01492)."""
TREES = {
    "objective": "regression",
    "learning_rate": 0.01,
    "seed": 42,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
}
ROUNDS = 1000


def read(reference: Path, name: str) -> dict[str, Any]:
    """Return the columns of a file by domain."""
    table = pyarrow.csv.read_csv(reference / f"{name}.csv")
    return {
        column.removeprefix("train_the_pile_")
        .removeprefix("metric/the_pile_")
        .removesuffix("_val_loss"): table[column].to_numpy()
        for column in table.column_names
        if column != "index"
    }


def by_process(sources: list[str], seen: Any, losses: Any, unseen: list[Any]) -> list[Any]:
    """Return what the Gaussian process predicts of each set of unseen mixtures."""
    regressor = MixtureRegressor.fit(sources, seen, losses)
    return [regressor.predict(mixtures) for mixtures in unseen]


def by_trees(sources: list[str], seen: Any, losses: Any, unseen: list[Any]) -> list[Any]:
    """Return what gradient-boosted trees predict of each set of unseen mixtures."""
    import lightgbm  # in no lock: only this comparison wants it

    trees = lightgbm.train(TREES, lightgbm.Dataset(seen, losses), num_boost_round=ROUNDS)
    return [trees.predict(mixtures) for mixtures in unseen]


def measure(reference: Path, domains: list[str]) -> dict[str, Any]:
    """Return the rank correlations by domain and method, with machine and versions."""
    mixtures = read(reference, "train_mixture_1m")
    sources, seen = list(mixtures), np.column_stack(list(mixtures.values()))
    unseen = [
        np.column_stack(list(read(reference, name).values()))
        for name in ("test_mixture_1m", "test_mixture_60m")
    ]
    losses, at_1m, at_60m = (
        read(reference, name) for name in ("train_pile_loss_1m", "test_pile_loss_1m", "test_pile_loss_60m")
    )
    methods = {"process": by_process} | ({"trees": by_trees} if find_spec("lightgbm") else {})
    ranks: dict[str, dict[str, Any]] = {}
    for domain in domains:
        ranks[domain] = {"published_1m": PUBLISHED[domain]}
        for name, method in methods.items():
            began = time.perf_counter()
            predicted = method(sources, seen, losses[domain], unseen)
            ranks[domain][f"{name}_seconds"] = round(time.perf_counter() - began, 2)
            for scale, values, truth in zip(("1m", "60m"), predicted, (at_1m, at_60m), strict=True):
                ranks[domain][f"{name}_{scale}"] = round(float(spearmanr(values, truth[domain])[0]), 4)
    return {
        "rank_correlations": ranks,
        "process_above_published": sum(each["process_1m"] > each["published_1m"] for each in ranks.values()),
        "machine": machine(),
        "versions": versions() | ({"lightgbm": version("lightgbm")} if "trees" in methods else {}),
    }


def main() -> None:
    """Measure and print the result as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="directory of RegMix's files")
    parser.add_argument("--domains", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), metavar="DOMAIN")
    options = parser.parse_args()
    give(measure(options.reference, options.domains), options.out)


if __name__ == "__main__":
    main()
