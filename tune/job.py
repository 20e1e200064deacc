"""The Ray seam of tune: Ray Tune drives Optuna over the share of every cell, on the warm lanes of `train.lanes`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import ray
import ray.tune
import ray.tune.search
from ray.tune.search.optuna import OptunaSearch
from upath import UPath

from synth.errors import UserError
from synth.identity import finish, is_finished, read_manifest
from synth.job import publish
from synth.progress import Progress
from synth.storage import exists
from train.lanes.job import Lanes
from train.placement import TrainPlacement
from train.record import read_record
from train.run import RunConfig
from train.tokens import PackedInfo
from tune.cells import Choice, Trial, search_directory
from tune.config import SearchConfig
from tune.rounds import Question
from tune.sampler import REPLICATE, SurfaceSampler, search_space
from tune.search import ShareSearch, claim_search
from tune.search_plan import check_search
from tune.telemetry import of_running, of_trial

LOSS = "loss"

REFUSED = "refused"
"""What a trial reports in place of a run's record: the sentence for whoever asked for the run."""

QUIET_TUNE = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
"""Tune reads these in this process: no table of its own on the terminal, no log files a trial, which nobody reads."""

TRIAL_RESOURCES = {"memory": 1}
"""What a trial asks of the cluster, bytes. Tune wants some resource; a share of a CPU would wait for ever beside lanes that
hold them all."""

TRIAL_RESTARTS = 3
"""Times a trial's node may be lost; the trial asks for its run again, which goes on in its lane meanwhile."""


def search_mixture(config: SearchConfig, lanes: Lanes | None = None) -> dict[str, Any]:
    """Search the best share of every cell on a running Ray; return the manifest.

    `lanes` are warm worker groups to train on; without them the search opens its own. Raises UserError and
    IdentityMismatch before anything is trained, UserError when a disk is full, no lane is left or a cell had too few
    complete ones; what is recorded by then stays, and the same call goes on from there.
    """
    directory = search_directory(config)
    packed = PackedInfo.read(config.root, config.packed)
    check_search(config, packed)
    identity = claim_search(config, packed)
    if is_finished(directory):
        return read_manifest(directory, "search_mixture")
    search = ShareSearch(config, packed, ask_optuna)
    if not search.over:
        with _lanes(config, lanes) as open_lanes:
            _run_trials(search, open_lanes)
    search.check_optima()
    return finish(directory, identity, **search.summary())


def ask_optuna(
    config: SearchConfig, question: Question, first: Sequence[Choice], count: int
) -> tuple[Choice, ...]:
    """Return `count` choices for the next round: those of `first`, then what Optuna samples given what is known.

    Each round asks a fresh study that is told the losses in the order their trials were chosen, so equal records give
    equal choices, whatever was killed in between.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = config.synthetic
    study = OptunaSearch(
        space=search_space(names, config.max_seeds),
        metric=LOSS,
        mode="min",
        points_to_evaluate=[
            dict(zip(names, choice.shares, strict=True)) | {REPLICATE: choice.replicate} for choice in first
        ],
        sampler=SurfaceSampler(names, config.max_seeds, question),
    )
    losses = question.losses
    for place, loss, seed in zip(losses.at, losses.values, losses.seeds, strict=True):
        shares = map(float, question.space.points[place])
        study.add_evaluated_point(dict(zip(names, shares, strict=True)) | {REPLICATE: int(seed)}, float(loss))
    suggested = (study.suggest(f"{len(losses.at)}-{position}") for position in range(count))
    return tuple(
        Choice(tuple(float(each[name]) for name in names), int(each[REPLICATE]))
        for each in suggested
        if each is not None
    )


@contextlib.contextmanager
def _lanes(config: SearchConfig, lanes: Lanes | None) -> Iterator[Lanes]:
    if lanes is not None:
        yield lanes
        return
    placement = TrainPlacement(
        **{name: getattr(config.placement, name) for name in TrainPlacement.model_fields}
    )
    with Lanes(config.root, placement, step=f"search_mixture-{config.name}") as own:
        yield own


def _run_trials(search: ShareSearch, lanes: Lanes) -> None:
    """Let Tune run trials until every cell is done. Raises UserError when the lanes refuse a run, RuntimeError when it ends
    before that otherwise."""
    config = search.config
    progress = Progress(
        "search_mixture", search.num_trials, "trials", already=search.num_settled, interval_seconds=0
    )
    os.environ.update(QUIET_TUNE)
    storage = search_directory(config) / ".tune"
    _remove(storage)
    searcher = _Searcher(search, progress)
    trial = ray.tune.with_parameters(_trial, queue=lanes.queue)
    trial.__name__ = f"trial of search_mixture {config.name}"  # what Ray's dashboard calls its actors
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial, TRIAL_RESOURCES),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=config.placement.concurrent_trials,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"{trial.config['cell']}-share-{trial.config['share']}",
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=TRIAL_RESTARTS),
        ),
    )
    results = tuner.fit()
    _remove(storage)
    if searcher.refused is not None:
        raise UserError(searcher.refused)
    if results.errors:
        raise RuntimeError(f"a trial could not be run: {results.errors[0]}") from results.errors[0]
    if not search.over:
        raise RuntimeError("the search was stopped before every cell was done: run it again to go on")


def _remove(directory: UPath) -> None:
    """Remove a directory of Tune's, if it is there: what Tune would restore a search from is not needed here."""
    if exists(directory):
        directory.fs.rm(directory.path, recursive=True)


def _shown(choice: Choice) -> str:
    seed = f" seed +{choice.replicate}" if choice.replicate else ""
    return " + ".join(f"{share:.3f}" for share in choice.shares) + seed


def _trial(config: dict[str, Any], queue: Any) -> None:
    """Have one run trained by the lanes: a client of the run queue that needs no CPU of its own."""
    try:
        record = ray.get(queue.submit.remote(RunConfig.model_validate(config["run"])))
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        # As an error Tune would ask again, to the same end, and hand on a traceback.
        ray.tune.report({REFUSED: str(error.cause)})
        return
    ray.tune.report({"run_id": record.run_id, "status": record.status})


class _Searcher(ray.tune.search.Searcher):
    """What Tune asks for trials, and tells how they ended; scores are read from the records of the runs."""

    def __init__(self, search: ShareSearch, progress: Progress) -> None:
        super().__init__()
        self._search = search
        self._progress = progress
        self._running: dict[str, Trial] = {}
        self._broken = False
        self.refused: str | None = None
        """Why the lanes would not train a run, if they would not."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial, None when Tune shall ask again later, FINISHED when there is nothing left to do."""
        if self._broken or self._search.over:
            return str(self.FINISHED)
        trial = self._search.take()
        if trial is None:
            return None
        self._running[trial_id] = trial
        self._show_running(trial.cell)
        run = trial.run.model_dump(mode="json")
        return {"cell": trial.cell, "share": _shown(trial.choice), "run": run}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Settle a trial from its run's record; a trial without one broke, and no more are started."""
        trial = self._running.pop(trial_id)
        self._show_running(trial.cell)
        record = None if error else read_record(self._search.config.root, trial.run.run_id)
        status, final = (record.status, record.final) if record else ("broken", None)
        loss = final.loss_nats_per_token if final else None
        publish(of_trial(self._search.config.name, trial.cell, _shown(trial.choice), status, loss))
        if record is None:
            self._broken = True
            self.refused = self.refused or (result or {}).get(REFUSED)
            return
        self._search.settle(trial, record)
        outcome = status if loss is None else f"loss {loss:.4f}"
        self._progress.total = self._search.num_trials
        self._progress.set(self._search.num_settled, f"{trial.cell} share {_shown(trial.choice)}: {outcome}")

    def _show_running(self, cell: str) -> None:
        running = sum(each.cell == cell for each in self._running.values())
        publish(of_running(self._search.config.name, cell, running))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the records of the runs are all the state there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, as above."""
