"""`search_mixture` on real lanes with Ray Tune and Optuna: finished, killed and resumed, refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from synth.errors import UserError
from synth.storage import read_json
from tests.assets import faulty_training
from tests.assets.packed_set import write_packed_set
from train.placement import TrainPlacement
from tune.cells import Choice
from tune.config import SearchConfig
from tune.mixture_space import MixtureSpace
from tune.results import CellOptimum
from tune.rounds import Question, propose
from tune.surface import Losses

CHECKOUT = Path(__file__).parents[2]
CELLS = ("12k-4096", "25k-4096")
ARGUMENTS = (
    "--packed", "tiny", "--synthetic", "synthetic", "--trials_per_cell", "5", "--run.precision", "fp32", "--placement.lanes", "2",
    "--cells", '[{"model": "12k", "train_tokens": 4096}, {"model": "25k", "train_tokens": 4096}]', "--run.max_epochs", "100",
)  # fmt: skip


def start(root: Path, *arguments: str) -> subprocess.Popen:
    """Start the job in its own process group, its output in `log`."""
    write_packed_set(root)
    command = [sys.executable, "-m", "rayjobs.search_mixture", "--root", str(root), *ARGUMENTS, *arguments]
    with (root / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=CHECKOUT, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )


def kill(job: subprocess.Popen) -> None:
    os.killpg(job.pid, 9)
    job.wait()


def finish(root: Path) -> str:
    """Run the job to its end and return what it printed."""
    job = start(root)
    try:
        assert job.wait(600) == 0, (root / "log").read_text()[-4000:]
    finally:
        if job.poll() is None:
            kill(job)
    return (root / "log").read_text()


def answers(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("searches/search/*/*"))
    }


def records(root: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("runs/*/record.json")}


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_a_search_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    log = finish(quiet)
    assert "10/10 trials, 100 %" in log
    assert "Trial" not in log  # Tune's own tables stay out of the way
    assert sorted(answers(quiet)) == [
        f"searches/search/{cell}/{name}" for cell in CELLS for name in ("best.json", "trials.jsonl")
    ]
    assert len(records(quiet)) == 10
    assert not (quiet / "searches" / "search" / ".tune").exists()

    before: dict[str, int] = {}
    for count in (1, 4, 7):  # in the first round, in the second, with one cell done
        job = start(killed)
        while len(records(killed)) < count:
            assert job.poll() is None, (killed / "log").read_text()[-4000:]
            time.sleep(0.02)
        kill(job)
        assert not (killed / "searches" / "search" / "manifest.json").exists()
        before |= {run_id: when for run_id, when in records(killed).items() if run_id not in before}
    finish(killed)
    assert answers(killed) == answers(quiet)
    after = records(killed)
    assert {run_id: after[run_id] for run_id in before} == before, "a finished run was trained again"
    assert set(after) == set(records(quiet))

    assert "finished" in finish(killed).splitlines()[-1]
    for cell in CELLS:
        CellOptimum.model_validate(read_json(killed / "searches" / "search" / cell / "best.json"))


@pytest.mark.drill
@pytest.mark.parametrize("sources", [("hq",), ("hq", "qa")])
def test_optuna_asks_for_the_enqueued_mixtures_first_and_then_for_what_narrows_the_interval(sources):
    from tune.job import ask_optuna  # ray takes seconds to import

    config = SearchConfig(synthetic=sources, cells=({"model": "12k", "train_tokens": 4096},), max_seeds=2)
    space = MixtureSpace(caps=(1.0,) * len(sources))
    lattice = space.lattice(3)
    at = np.array([space.index(shares) for shares in lattice[:-1]], dtype=np.intp)
    values = 3.0 + 0.3 * ((space.points[at] - 0.3) ** 2).sum(axis=1)
    losses = Losses(at, values, np.zeros(len(at), dtype=int), np.zeros(len(at)))
    known = Question(space, losses, failed=(space.index(lattice[-1]),))
    again = tuple(Choice(shares, 1) for shares in lattice[:2])
    assert ask_optuna(config, known, again, 2) == again
    first, second = ask_optuna(config, known, (), 2)
    places = [space.index(each.shares) for each in (first, second)]
    assert places == [propose(known, []), propose(known, places[:1])]
    assert ask_optuna(config, known, (first,), 2) == (first, second)


@pytest.mark.drill
def test_a_full_disk_stops_the_search_with_one_sentence(tmp_path, capsys):
    import ray

    from train.lanes.job import Lanes
    from tune.job import search_mixture

    write_packed_set(tmp_path)
    config = SearchConfig(
        root=str(tmp_path),
        packed="tiny",
        synthetic=("synthetic",),
        cells=({"model": "12k", "train_tokens": 4096},),
        trials_per_cell=5,
        run={"max_epochs": 100},
    )
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with (
            capsys.disabled(),  # Tune pickles the searcher, and with it where progress is shown
            Lanes(str(tmp_path), TrainPlacement(), trainer=faulty_training.meet_a_full_disk) as lanes,
            pytest.raises(UserError) as stopped,
        ):
            search_mixture(config, lanes)
    finally:
        ray.shutdown()
    assert f"the disk is full at {tmp_path}" in str(stopped.value)
    assert "run the job again" in str(stopped.value)
    assert "\n" not in str(stopped.value)
