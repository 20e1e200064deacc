import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from synth.errors import UserError
from train.mixture import BLOCK_SLOTS, MAX_SLOTS, MixtureSampler, check_epochs
from train.run import RunConfig

TINY_MODEL = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 96}


def two(share: float, natural: int = 1000, qa: int = 1000, seed: int = 0) -> MixtureSampler:
    return MixtureSampler({"natural": 1 - share, "qa": share}, {"natural": natural, "qa": qa}, seed)


def rows_of(sampler: MixtureSampler, name: str, num_slots: int) -> list[int]:
    if name not in sampler.names:
        return []
    sources, rows = sampler.slots(0, num_slots)
    return rows[sources == sampler.names.index(name)].tolist()


def run_of(mixture: dict[str, float], train_tokens: int, **fields: object) -> RunConfig:
    fields = {"rows_per_step": 4, "sequence_length": 16} | fields
    return RunConfig.model_validate(
        {
            "packed": "p",
            "packed_hash": "0",
            "model": TINY_MODEL,
            "mixture": mixture,
            "train_tokens": train_tokens,
        }
        | fields
    )


shares = st.one_of(st.floats(0.001, 0.999), st.sampled_from([1 / 3, 2 / 3, 0.1, 0.3, 0.5, 0.7, 0.9]))
seeds = st.integers(-(2**40), 2**40)


@st.composite
def mixtures(draw: st.DrawFn, max_sources: int = 7) -> dict[str, float]:
    weights = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=max_sources))
    return {f"s{number}": weight / sum(weights) for number, weight in enumerate(weights)}


# --- the source of a slot --------------------------------------------------------------------------------------


def test_two_sources_alternate_by_the_floor_of_slot_times_share():
    sources, _ = two(1 / 4).slots(0, 12)
    assert two(1 / 4).names == ("natural", "qa")
    assert sources.tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert two(2 / 3).slots(0, 6)[0].tolist() == [0, 1, 1, 0, 1, 1]


@given(share=shares, num_slots=st.integers(0, 3 * BLOCK_SLOTS))
@example(share=1 / 3, num_slots=3)
def test_the_count_of_two_sources_is_the_floor_of_slots_times_share(share, num_slots):
    sources, _ = two(share).slots(0, num_slots)
    wanted = Fraction(share).limit_denominator(10**7) * num_slots
    assert int(sources.sum()) == math.floor(wanted)


@given(mixture=mixtures(), num_slots=st.integers(0, 6000))
def test_the_realised_share_of_many_sources_stays_within_the_depth_of_their_tree(mixture, num_slots):
    sampler = MixtureSampler(mixture, dict.fromkeys(mixture, 100), 0)
    counts = sampler.counts(num_slots)
    sources, _ = sampler.slots(0, num_slots)
    assert {name: int((sources == k).sum()) for k, name in enumerate(sampler.names)} == counts
    bound = max(1, math.ceil(math.log2(len(mixture))))
    assert all(abs(counts[name] - num_slots * share) < bound for name, share in mixture.items())


@given(share=shares, start=st.integers(0, MAX_SLOTS - 100))
@example(share=0.999999999, start=MAX_SLOTS - 100)
def test_counts_and_slots_agree_at_any_distance(share, start):
    """Python integers (counts) and 64-bit numpy (slots) do the same sums, up to the last slot."""
    sampler = two(share)
    sources, _ = sampler.slots(start, start + 100)
    assert int(sources.sum()) == sampler.counts(start + 100)["qa"] - sampler.counts(start)["qa"]


def test_a_source_without_a_share_is_never_read_and_need_not_have_rows():
    sampler = MixtureSampler({"natural": 1.0, "qa": 0.0}, {"natural": 5, "qa": 0}, 0)
    assert sampler.names == ("natural",)
    assert set(sampler.slots(0, 50)[0].tolist()) == {0}
    assert sampler.use(50)["natural"].epochs == 10


@pytest.mark.parametrize(
    ("mixture", "num_rows", "message"),
    [
        ({"natural": 0.5, "hq": 0.5}, {"natural": 5}, "names source 'hq'.*has natural"),
        ({"natural": 0.5, "hq": 0.5}, {"natural": 5, "hq": 0}, "source 'hq' has no row"),
    ],
)
def test_a_mixture_of_what_is_not_there_is_refused(mixture, num_rows, message):
    with pytest.raises(UserError, match=message):
        MixtureSampler(mixture, num_rows, 0)


# --- the row of a slot -----------------------------------------------------------------------------------------


@given(num_rows=st.integers(1, 700), seed=seeds, epochs=st.integers(1, 4))
def test_every_epoch_reads_every_row_once(num_rows, seed, epochs):
    rows = rows_of(MixtureSampler({"a": 1.0}, {"a": num_rows}, seed), "a", num_rows * epochs)
    for epoch in range(epochs):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_seeds_and_sources_have_orders_of_their_own():
    def order(name: str, seed: int, epoch: int) -> list[int]:
        return rows_of(MixtureSampler({name: 1.0}, {name: 1000}, seed), name, 1000 * (epoch + 1))[
            1000 * epoch :
        ]

    orders = [order("a", 0, 0), order("a", 0, 1), order("a", 1, 0), order("b", 0, 0), list(range(1000))]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            assert np.mean(np.equal(one, other)) < 0.02
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_the_order_looks_random():
    """Where a row comes, and which follows it, are spread as evenly as chance spreads them (chi-squared, 5 sigma)."""
    num_rows, bins = 4096, 16
    table = np.zeros((bins, bins))
    steps = np.zeros(bins)
    for seed in range(40):
        rows = np.array(rows_of(MixtureSampler({"a": 1.0}, {"a": num_rows}, seed), "a", num_rows))
        np.add.at(table, (np.arange(num_rows) * bins // num_rows, rows * bins // num_rows), 1)
        np.add.at(steps, (np.diff(rows) % num_rows) * bins // num_rows, 1)
    for counts, freedom in ((table.ravel(), (bins - 1) ** 2), (steps, bins - 1)):
        chi_squared = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)


def test_small_sources_have_every_order():
    orders = {tuple(rows_of(MixtureSampler({"a": 1.0}, {"a": 4}, seed), "a", 4)) for seed in range(200)}
    assert len(orders) == math.factorial(4)


# --- one order for all: slicing, budgets, shares ---------------------------------------------------------------


@given(mixture=mixtures(4), seed=seeds, cuts=st.lists(st.integers(0, 9000), max_size=6))
@settings(max_examples=30)
def test_any_slicing_reads_the_same(mixture, seed, cuts):
    """So do any number of workers, a resumed run, and a shorter budget (a prefix)."""
    num_rows = {name: 10 + 37 * k for k, name in enumerate(mixture)}
    whole = MixtureSampler(mixture, num_rows, seed).slots(0, 9000)
    edges = [0, *sorted(cuts), 9000]
    sampler = MixtureSampler(mixture, num_rows, seed)
    pieces = [sampler.slots(a, b) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate([piece[0] for piece in pieces]), whole[0])
    assert np.array_equal(np.concatenate([piece[1] for piece in pieces]), whole[1])


def test_what_slots_returns_is_the_callers_own():
    sampler = two(0.5)
    first = sampler.slots(0, 10)[1]
    before = first.copy()
    first[:] = -1
    assert np.array_equal(sampler.slots(0, 10)[1], before)


@given(low=shares, high=shares, seed=seeds, num_slots=st.integers(1, 3000))
def test_runs_that_differ_in_share_read_nested_rows(low, high, seed, num_slots):
    low, high = sorted((low, high))
    less, more = (two(share, natural=170, qa=2000, seed=seed) for share in (low, high))
    qa_less, qa_more = rows_of(less, "qa", num_slots), rows_of(more, "qa", num_slots)
    natural_less, natural_more = rows_of(less, "natural", num_slots), rows_of(more, "natural", num_slots)
    assert qa_more[: len(qa_less)] == qa_less
    assert natural_less[: len(natural_more)] == natural_more


def test_a_source_is_read_in_the_same_order_whatever_it_is_mixed_with():
    alone = rows_of(MixtureSampler({"natural": 1.0}, {"natural": 50}, 3), "natural", 40)
    mixed = MixtureSampler({"hq": 0.3, "natural": 0.5, "qa": 0.2}, {"hq": 9, "natural": 50, "qa": 8}, 3)
    assert rows_of(mixed, "natural", 80)[:40] == alone


def test_the_order_is_frozen():
    """Other numbers here are other data for every run there is, those to be resumed or compared with included."""
    sources, rows = MixtureSampler({"natural": 2 / 3, "qa": 1 / 3}, {"natural": 10, "qa": 3}, 7).slots(0, 18)
    assert sources.tolist() == [0, 0, 1] * 6
    assert rows.tolist() == [0, 9, 1, 3, 5, 2, 4, 7, 0, 6, 8, 0, 1, 2, 2, 4, 2, 1]


# --- what a run uses -------------------------------------------------------------------------------------------


@given(mixture=mixtures(4), num_slots=st.integers(1, 2000), data=st.data())
@settings(max_examples=50)
def test_unique_and_repeated_rows_are_exact(mixture, num_slots, data):
    num_rows = {name: data.draw(st.integers(1, 300)) for name in mixture}
    sampler = MixtureSampler(mixture, num_rows, 0)
    for name, use in sampler.use(num_slots).items():
        rows = rows_of(sampler, name, num_slots)
        assert (use.rows, use.unique_rows, use.repeated_rows) == (
            len(rows),
            len(set(rows)),
            len(rows) - len(set(rows)),
        )
        assert use.epochs == len(rows) / num_rows[name]
        assert use.source_use(16).tokens == len(rows) * 16


def test_a_budget_beyond_max_epochs_is_refused_with_the_largest_that_fits():
    num_rows = {"natural": 10_000, "qa": 100}
    run = run_of({"natural": 0.5, "qa": 0.5}, train_tokens=16 * 460)
    with pytest.raises(UserError) as refused:
        check_epochs(run, num_rows)
    assert str(refused.value) == (
        "train_tokens = 7,360 needs 2.3 passes over source qa (1,600 tokens at share 0.5), max_epochs = 1 allows "
        "D <= 3,200: lower train_tokens, generate more, or raise run.max_epochs."
    )
    check_epochs(run.model_copy(update={"train_tokens": 3_200}), num_rows)
    with pytest.raises(UserError):
        check_epochs(run.model_copy(update={"train_tokens": 3_200 + 64}), num_rows)
    assert check_epochs(run.model_copy(update={"max_epochs": 2.3}), num_rows)["qa"].repeated_rows == 130
    assert check_epochs(run.model_copy(update={"max_epochs": None}), num_rows)["qa"].rows == 230


def test_a_source_too_small_for_one_step_is_said_so():
    with pytest.raises(UserError, match="allows not even one step"):
        check_epochs(run_of({"a": 1.0}, train_tokens=64), {"a": 3})


def test_a_source_may_have_a_cap_of_its_own():
    num_rows = {"natural": 100, "qa": 100}
    run = run_of({"natural": 0.5, "qa": 0.5}, train_tokens=16 * 400, max_epochs_by_source={"natural": 4.0})
    with pytest.raises(
        UserError, match=r"passes over source qa .* max_epochs = 1 allows D <= 3,200: .*run.max_epochs\."
    ):
        check_epochs(run, num_rows)
    capped = run.model_copy(update={"max_epochs": None, "max_epochs_by_source": {"qa": 1.5}})
    with pytest.raises(UserError, match=r"max_epochs_by_source\.qa = 1\.5 allows D <= 4,800"):
        check_epochs(capped, num_rows)
    both = run.model_copy(update={"max_epochs_by_source": {"natural": 4.0, "qa": 2.0}})
    assert {name: use.epochs for name, use in check_epochs(both, num_rows).items()} == {
        "natural": 2.0,
        "qa": 2.0,
    }


def test_a_cap_on_a_source_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"max_epochs_by_source names 'web', .*it has natural"):
        check_epochs(
            run_of({"natural": 1.0}, train_tokens=64, max_epochs_by_source={"web": 2.0}), {"natural": 99}
        )
