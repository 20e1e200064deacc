"""Runs that branch off one trunk: how many tokens they take together, and in which order. No torch.

A `wsd` run has a constant rate until its decay begins, so runs that differ only in budget are the same run up to there
(Hu et al. 2024, "MiniCPM"; Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training
durations"). Trained from the shortest to the longest, each goes on from where the one before left the trunk: budgets
D1 < ... < Dk with a decay of f each take (1 - f) Dk + f (D1 + ... + Dk) tokens instead of D1 + ... + Dk.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

from train.flops import train_flops
from train.run import RunConfig
from train.schedule import trunk_steps


def tokens_to_train(runs: Iterable[RunConfig], finished: Iterable[RunConfig] = ()) -> dict[str, int]:
    """Return the tokens each run trains itself, by run id, when branches go on from each other and from finished runs.

    A trunk keeps only its furthest point, so a budget shorter than a finished one starts anew.
    """
    furthest: dict[str, int] = {}
    for run in finished:
        if run.trunk_id is not None:
            furthest[run.trunk_id] = max(furthest.get(run.trunk_id, 0), trunk_steps(run))
    own = {}
    for run in sorted(runs, key=lambda run: run.num_steps):
        steps = run.num_steps
        if (trunk := run.trunk_id) is not None:
            reached, leaves = furthest.get(trunk, 0), trunk_steps(run)
            steps -= reached if reached <= leaves else 0
            furthest[trunk] = max(reached, leaves)
        own[run.run_id] = steps * run.tokens_per_step
    return own


def in_training_order(runs: Iterable[RunConfig], vocab_size: int) -> tuple[RunConfig, ...]:
    """Return runs in the order to train them: the cheapest first, then the longest to the shortest by FLOP, where the
    branches of a trunk count as one and stand from the shortest to the longest budget.

    Longest first keeps lanes level to the end (a makespan within 4/3 of the best; Graham 1969), where plan order would
    leave one lane with the largest model while the others stand idle. The cheapest goes ahead of them because whatever
    is wrong with a plan then shows in seconds and not after its longest run.
    """
    runs = tuple(runs)
    if not runs:
        return ()
    tokens = tokens_to_train(runs)
    cost = {
        run.run_id: train_flops(run.model, vocab_size, run.sequence_length, tokens[run.run_id])
        for run in runs
    }
    groups: dict[str, list[RunConfig]] = collections.defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.num_steps, run.run_id)):
        groups[run.trunk_id or run.run_id].append(run)
    longest_first = sorted(
        groups.values(),
        key=lambda group: (-sum(cost[run.run_id] for run in group), group[0].seed, group[0].run_id),
    )
    cheapest = max(
        (group[0] for group in longest_first), key=lambda run: (-cost[run.run_id], run.seed, run.run_id)
    )
    return (cheapest, *(run for group in longest_first for run in group if run is not cheapest))
