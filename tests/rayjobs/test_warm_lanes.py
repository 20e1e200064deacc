"""Training lanes of a study: kept for the next step that can use them, given back as soon as they only take up room."""

import contextlib

import pytest

from rayjobs.demand import Demand, demand_of
from rayjobs.lanes import WarmLanes
from rayjobs.study import StudyConfig, steps_of
from tests.assets.study_file import changed

SEARCH = {"synthetic": "hq", "cells": [{"model": "98k", "train_tokens": 65536}], "placement": {"lanes": 2}}


def steps(**placements):
    study = changed("search.share", SEARCH)
    study = changed("pretrain.grid.placement", {"lanes": 2} | placements, study)
    return {step.section: step for step in steps_of(StudyConfig.model_validate(study))}


@pytest.fixture
def room():
    """Return (lanes, steps at work, what was opened and closed); lanes are words, nothing is started."""
    at_work, happened = {}, []

    @contextlib.contextmanager
    def opened(step, placement):
        happened.append(f"open {step.key}")
        yield f"lanes {len(happened)}"
        happened.append("closed")

    with contextlib.ExitStack() as stack:
        yield WarmLanes(stack, at_work, opened), at_work, happened


def start(room, *begun):
    lanes, at_work, _ = room
    options = lanes.for_steps(begun)
    at_work.update({step.key: demand_of(step) for step in begun})
    return {key: each["lanes"] for key, each in options.items()}


def test_a_search_takes_the_lanes_of_the_grid_though_a_fit_lies_between(room):
    found = steps()
    assert start(room, found["pretrain"]) == {"pretrain.grid": "lanes 1"}
    room[1].clear()
    assert start(room, found["laws"]) == {}
    room[1].clear()
    assert start(room, found["search"]) == {"search.share": "lanes 1"}
    assert room[2] == ["open pretrain.grid"]


def test_other_workers_need_other_lanes(room):
    found = steps(workers_per_lane=2)
    start(room, found["pretrain"])
    room[1].clear()
    assert start(room, found["search"]) == {"search.share": "lanes 3"}
    assert room[2] == ["open pretrain.grid", "closed", "open search.share"]


def test_lanes_in_hand_are_neither_shared_nor_closed(room):
    found = steps()
    start(room, found["pretrain"])
    assert start(room, found["search"], found["rephrase"]) == {}
    assert room[2] == ["open pretrain.grid"]


def test_idle_lanes_make_room_for_a_step_that_starts(room):
    found = steps()
    start(room, found["pretrain"])
    room[1].clear()
    assert start(room, found["rephrase"]) == {}
    assert room[2] == ["open pretrain.grid", "closed"]


def test_idle_lanes_do_not_hold_devices_while_others_work_for_hours(room):
    found = steps()
    start(room, found["pretrain"], found["rephrase"])
    del room[1]["pretrain.grid"]
    assert room[1] == {"rephrase.made": Demand(1.0)}
    assert start(room) == {}
    assert room[2] == ["open pretrain.grid", "closed"]
