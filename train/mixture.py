"""Which row every slot of a run reads: a pure function of (seed, slot), exact in the shares, O(1) to resume.

A run of n rows fills slots 0 .. n-1. Rows have equal length, so a share of rows is a share of tokens. Two things
are decided for a slot, each without looking at any other slot:

*The source.* With two sources, the second one (by name) has exactly floor(n r) of the first n slots: slot i is its
own iff floor((i+1) r) > floor(i r). More sources are split by a balanced binary tree of such splits, so the realised
count of a source is less than ceil(log2 K) rows off n r for K sources (less than one row for two).
The ratio r is a fixed-point number k / 2**40, rounded up from the share so that floor(n r) hits the
integers of simple fractions (3 slots of share 1/3 hold one row), and the arithmetic is exact: no float drifts.

*The row.* The j-th slot of a source reads row perm_e(j mod R) of its R rows in epoch e = j // R, where perm_e is a
pseudo-random permutation keyed by (seed, source name, epoch): a Feistel network on the smallest power of two that
holds R, walked until it lands inside (cycle walking; Black & Rogaway 2002, "Ciphers with arbitrary finite domains").

So: any slicing over workers reads the same rows; a larger budget extends a smaller one; two runs that differ only in
the share of two sources read nested sets of rows of each; an epoch reads each row once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from synth.errors import UserError
from train.record import SourceUse
from train.run import Mixture, RunConfig

RATIO_BITS = 40
"""Ratios of the splits are multiples of 2**-40."""

MAX_SLOTS = 1 << 42
"""Slots a sampler addresses; beyond it the exact product slot x ratio would leave 64 bits."""

BLOCK_SLOTS = 4096
"""Slots worked out together, so that a caller who asks for eight rows at a time pays numpy's overhead rarely."""

_HALF_BITS = RATIO_BITS // 2
_HALF_MASK = (1 << _HALF_BITS) - 1
_ROUNDS = 8
_MULTIPLY_1 = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_2 = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class RowUse:
    """What the first slots of a run draw from one source, rows."""

    rows: int
    """Rows drawn, repeats counted."""
    unique_rows: int
    """Rows drawn for the first time."""
    num_rows: int
    """Rows the source has."""

    @property
    def repeated_rows(self) -> int:
        """Rows drawn that the run had seen before."""
        return self.rows - self.unique_rows

    @property
    def epochs(self) -> float:
        """Passes over the source."""
        return self.rows / self.num_rows

    def source_use(self, sequence_length: int) -> SourceUse:
        """Return the same in tokens, as a run's record wants it."""
        return SourceUse(
            tokens=self.rows * sequence_length,
            unique_tokens=self.unique_rows * sequence_length,
            repeated_tokens=self.repeated_rows * sequence_length,
            epochs=self.epochs,
        )


class MixtureSampler:
    """The order in which a run reads the rows of its sources; see the module's text for the guarantees.

    Raises UserError when the mixture names a source that is not there or has no rows.
    """

    def __init__(self, mixture: Mixture, num_rows: Mapping[str, int], seed: int) -> None:
        self.names: tuple[str, ...] = tuple(sorted(name for name, share in mixture.items() if share > 0))
        """Sources with a share above 0, sorted; `slots` gives positions in this tuple."""
        for name in mixture:
            if name not in num_rows:
                raise UserError(
                    f"the mixture names source {name!r}, which the packed set does not have "
                    f"(it has {', '.join(sorted(num_rows))}): correct the mixture or pack that source."
                )
        for name in self.names:
            if num_rows[name] < 1:
                raise UserError(
                    f"source {name!r} has no row in the packed set, so it cannot have a share of {mixture[name]:g}: "
                    "give it more documents, a shorter sequence_length, or share 0."
                )
        self.num_rows: dict[str, int] = {name: int(num_rows[name]) for name in self.names}
        """Rows in one epoch of each source."""
        self.seed = seed
        self._tree = _split(self.names, {name: Fraction(mixture[name]) for name in self.names})
        self._orders = [_RowOrder(seed, name, self.num_rows[name]) for name in self.names]
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def slots(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (position of the source in `names`, row in that source) of the slots start .. stop-1."""
        if not 0 <= start <= stop <= MAX_SLOTS:
            raise ValueError(f"slots {start} .. {stop} are not within 0 .. {MAX_SLOTS}")
        sources = np.empty(stop - start, np.int64)
        rows = np.empty(stop - start, np.int64)
        for first in range(start - start % BLOCK_SLOTS, stop, BLOCK_SLOTS):
            begin, end = max(first, start), min(first + BLOCK_SLOTS, stop)
            block_sources, block_rows = self._slots_of_block(first)
            sources[begin - start : end - start] = block_sources[begin - first : end - first]
            rows[begin - start : end - start] = block_rows[begin - first : end - first]
        return sources, rows

    def counts(self, num_slots: int) -> dict[str, int]:
        """Return how many of the first `num_slots` slots each source has; exact, O(sources)."""
        return {self.names[leaf]: count for leaf, count in _leaf_counts(self._tree, num_slots)}

    def use(self, num_slots: int) -> dict[str, RowUse]:
        """Return what the first `num_slots` slots draw from each source; exact, O(sources)."""
        return {
            name: RowUse(rows=rows, unique_rows=min(rows, self.num_rows[name]), num_rows=self.num_rows[name])
            for name, rows in self.counts(num_slots).items()
        }

    def _slots_of_block(self, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        block = self._block
        if block is None or block[0] != first:
            sources = np.empty(BLOCK_SLOTS, np.int64)
            rows = np.empty(BLOCK_SLOTS, np.int64)
            slots = np.arange(first, first + BLOCK_SLOTS, dtype=np.int64)
            for leaf, where, ordinals in _leaf_ordinals(self._tree, np.arange(BLOCK_SLOTS), slots):
                sources[where] = leaf
                rows[where] = self._orders[leaf].rows(ordinals)
            block = self._block = (first, sources, rows)
        return block[1], block[2]


def check_epochs(run: RunConfig, num_rows: Mapping[str, int]) -> dict[str, RowUse]:
    """Return what a run will draw from each source of a packed set with these rows.

    Raises UserError, naming the largest budget that fits, when a source would be passed over more often than
    `max_epochs`, or its own `max_epochs_by_source`, allows.
    """
    for name in run.max_epochs_by_source:
        if name not in num_rows:
            raise UserError(
                f"max_epochs_by_source names {name!r}, which the packed set does not have (it has "
                f"{', '.join(sorted(num_rows))}): correct the name."
            )
    sampler = MixtureSampler(run.mixture, num_rows, run.seed)
    use = sampler.use(run.num_steps * run.rows_per_step)
    limits = {name: run.max_epochs_by_source.get(name, run.max_epochs) for name in use}
    over = {name: each for name, each in use.items() if _beyond(each, limits[name])}
    if not over:
        return use
    name, worst = max(over.items(), key=lambda item: item[1].epochs)
    fits = _largest_number_of_steps(sampler, run.rows_per_step, run.num_steps, limits) * run.tokens_per_step
    allows = f"allows D <= {fits:,}" if fits else "allows not even one step"
    limit = limits[name]
    assert limit is not None, "no limit was passed"
    field = f"max_epochs_by_source.{name}" if name in run.max_epochs_by_source else "max_epochs"
    raise UserError(
        f"train_tokens = {run.train_tokens:,} needs {worst.epochs:.3g} passes over source {name} "
        f"({worst.num_rows * run.sequence_length:,} tokens at share {run.mixture[name]:.3g}), {field} = "
        f"{limit:g} {allows}: lower train_tokens, generate more, or raise run.{field}."
    )


def _beyond(use: RowUse, limit: float | None) -> bool:
    if limit is None:
        return False
    return (
        use.rows > Fraction(repr(limit)) * use.num_rows
    )  # 2.3 as written, not the binary number just below it


def _largest_number_of_steps(
    sampler: MixtureSampler, rows_per_step: int, above: int, limits: Mapping[str, float | None]
) -> int:
    """Return the most optimiser steps whose rows stay within the limits; counts only grow, so bisect."""
    below = 0
    while above - below > 1:
        steps = (below + above) // 2
        if any(_beyond(each, limits[name]) for name, each in sampler.use(steps * rows_per_step).items()):
            above = steps
        else:
            below = steps
    return below


# --- the source of a slot --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """A fork of the tree: of every n slots that reach it, floor(n k / 2**40) go right."""

    ratio: int
    left: _Split | int
    right: _Split | int


def _split(names: tuple[str, ...], shares: Mapping[str, Fraction], first: int = 0) -> _Split | int:
    if len(names) == 1:
        return first
    middle = (len(names) + 1) // 2
    right = sum(shares[name] for name in names[middle:])
    ratio = math.ceil(right / sum(shares[name] for name in names) * (1 << RATIO_BITS))
    left_tree = _split(names[:middle], shares, first)
    return _Split(ratio, left_tree, _split(names[middle:], shares, first + middle))


def _leaf_counts(tree: _Split | int, num_slots: int) -> Iterator[tuple[int, int]]:
    if isinstance(tree, int):
        yield tree, num_slots
        return
    right = num_slots * tree.ratio >> RATIO_BITS
    yield from _leaf_counts(tree.left, num_slots - right)
    yield from _leaf_counts(tree.right, right)


def _leaf_ordinals(
    tree: _Split | int, where: NDArray[np.int64], slots: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (leaf, positions in the block, ordinal of each within the leaf's source)."""
    if isinstance(tree, int):
        yield tree, where, slots
        return
    before = _floor_product(slots, tree.ratio)
    goes_right = _floor_product(slots + 1, tree.ratio) > before
    goes_left = ~goes_right
    yield from _leaf_ordinals(tree.left, where[goes_left], (slots - before)[goes_left])
    yield from _leaf_ordinals(tree.right, where[goes_right], before[goes_right])


def _floor_product(slots: NDArray[np.int64], ratio: int) -> NDArray[np.int64]:
    """Return floor(slots * ratio / 2**40) exactly, for slots up to 2**42, within 64 bits.

    With slots = h 2**20 + l the product is h ratio 2**20 + l ratio; flooring by 2**20 twice is flooring by 2**40.
    """
    high = (slots >> _HALF_BITS) * ratio
    low = (slots & _HALF_MASK) * ratio
    return (high + (low >> _HALF_BITS)) >> _HALF_BITS


# --- the row of a slot -----------------------------------------------------------------------------------------


class _RowOrder:
    """The order of one source's rows: ordinal j -> row, a fresh pseudo-random permutation each epoch."""

    def __init__(self, seed: int, name: str, num_rows: int) -> None:
        self._salt = f"{seed}\0{name}\0".encode()
        self._num_rows = num_rows
        bits = max(2, (num_rows - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._high_bits = np.uint64(bits - bits // 2)

    def rows(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        if not ordinals.size:
            return ordinals
        epochs, positions = np.divmod(ordinals, self._num_rows)
        # Ordinals ascend, so the epochs of a block are a run of consecutive numbers.
        first, last = int(epochs[0]), int(epochs[-1])
        keys = np.stack([self._keys(epoch) for epoch in range(first, last + 1)])
        of_slot = np.zeros(1, np.int64) if first == last else epochs - first
        values = self._permute(positions.astype(np.uint64), keys[of_slot].T)
        outside = np.flatnonzero(values >= self._num_rows)
        while outside.size:
            again = of_slot if first == last else of_slot[outside]
            values[outside] = self._permute(values[outside], keys[again].T)
            outside = outside[values[outside] >= self._num_rows]
        return values.astype(np.int64)

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        digest = hashlib.blake2b(self._salt + str(epoch).encode(), digest_size=8 * _ROUNDS).digest()
        return np.frombuffer(digest, "<u8").astype(np.uint64)

    def _permute(self, values: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Permute 0 .. 2**bits - 1: halves of the bits, xor-ed in turn with a keyed hash of the other half."""
        low_bits, high_bits = self._low_bits, self._high_bits
        low = values & ((np.uint64(1) << low_bits) - np.uint64(1))
        high = values >> low_bits
        for turn in range(0, _ROUNDS, 2):
            high = high ^ _hash_to_bits(low, keys[turn], high_bits)
            low = low ^ _hash_to_bits(high, keys[turn + 1], low_bits)
        return (high << low_bits) | low


def _hash_to_bits(values: NDArray[np.uint64], key: NDArray[np.uint64], bits: np.uint64) -> NDArray[np.uint64]:
    """Return `bits` well-mixed bits of each value under a key: two multiply-and-shift rounds, top bits taken."""
    mixed = (values + key) * _MULTIPLY_1
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MULTIPLY_2
    mixed ^= mixed >> np.uint64(29)
    mixed *= _MULTIPLY_1
    return mixed >> (np.uint64(64) - bits)
