"""The order of samples: one seeded permutation an epoch, cut evenly over ranks. Pure functions.

    position      0 1 2 3 | 4 5 6 7 | 8 9 ...      counted from the start of an epoch
    global batch     0    |    1    |   2          the same for any number of ranks
    rank          0 0 1 1 | 0 0 1 1 | 0 0 ...

A run's place in the data is the number of its step; nothing else need be stored. The permutation is
a cipher on the index range, so it needs no memory however long the index is.

Source: ours; format-preserving permutation by a Feistel network with cycle walking (Black and
Rogaway, CT-RSA 2002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ROUNDS = (
    6  # four suffice against distinguishers of this size; two more cost nothing we can measure
)
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Permutation:
    """A seeded permutation of range(n), computed entry by entry."""

    n: int
    seed: int
    epoch: int

    def __call__(self, positions: Ints) -> Ints:
        """Returns the sample indices at given positions, both in [0, n)."""
        half_bits = max(1, ((self.n - 1).bit_length() + 1) // 2)
        keys = self._keys()
        values = np.asarray(positions, np.uint64)
        out = _feistel(values, half_bits, keys)
        while (outside := out >= self.n).any():  # at most 4 n values exist: a few rounds at most
            out[outside] = _feistel(out[outside], half_bits, keys)
        return out.astype(np.int64)

    def _keys(self) -> list[np.uint64]:
        text = f"{self.n} {self.seed} {self.epoch}".encode()
        digest = hashlib.blake2b(text, digest_size=8 * _ROUNDS).digest()
        return [
            np.uint64(int.from_bytes(digest[8 * i : 8 * i + 8], "little")) for i in range(_ROUNDS)
        ]


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scrambles 64-bit values. Source: the finaliser of splitmix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class TarWindows:
    """An order in which a few tars at a time are read: for stores where seeking is slow.

    tars     3 0 7 | 5 1 2 | 6 4        a seeded order, cut into windows
    samples  those of 3, 0 and 7 shuffled together, then those of 5, 1 and 2, ...
    """

    by_tar: Ints  # sample indices, those of tar 0 first, in the order of the index within a tar
    bounds: Ints  # (tars + 1), where each tar begins and ends in `by_tar`
    window: int  # tars

    @classmethod
    def of(cls, tar_of: Ints, window: int) -> TarWindows:
        """Args:
        tar_of: (n,) number of each sample's tar; numbers without samples are left out.
        """
        _, tars = np.unique(tar_of, return_inverse=True)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(tars))])
        return cls(np.argsort(tars, kind="stable"), bounds.astype(np.int64), window)

    @property
    def mean_samples(self) -> int:
        """Samples of a window, on average."""
        return max(1, len(self.by_tar) * self.window // max(1, len(self.bounds) - 1))

    def samples(self, positions: Ints, seed: int, epoch: int) -> Ints:
        """Returns the sample indices at given positions of an epoch, both in [0, n)."""
        num_tars = len(self.bounds) - 1
        order, starts, ends = _layout(self, seed, epoch)
        chosen = np.empty(len(positions), np.int64)
        windows = np.searchsorted(ends, positions, side="right") // self.window
        for number in np.unique(windows):
            first = number * self.window
            begin, end = starts[first], ends[min(first + self.window, num_tars) - 1]
            here = windows == number
            shuffled = Permutation(int(end - begin), seed, epoch * num_tars + int(number))
            moved = begin + shuffled(positions[here] - begin)
            place = np.searchsorted(ends, moved, side="right")
            chosen[here] = self.by_tar[self.bounds[order[place]] + moved - starts[place]]
        return chosen


@lru_cache(maxsize=2)  # one epoch, and the next while reading ahead
def _layout(windows: TarWindows, seed: int, epoch: int) -> tuple[Ints, Ints, Ints]:
    """Returns an epoch's order of tars, and where each of them begins and ends in it."""
    num_tars = len(windows.bounds) - 1
    order = Permutation(num_tars, seed, epoch)(np.arange(num_tars))
    sizes = np.diff(windows.bounds)[order]
    ends = np.cumsum(sizes)
    return order, ends - sizes, ends


@dataclass(frozen=True)
class EpochPlan:
    """How an epoch of `num_samples` is cut into steps of equal size for every rank.

    With fewer samples than one global batch the epoch is filled up by going round again; otherwise
    the rest that does not fill a global batch is left out of this epoch (another epoch's
    permutation leaves out others).
    """

    num_samples: int
    global_batch: int  # samples of a step over all ranks: the order depends on it, not on the ranks
    num_ranks: int
    seed: int
    windows: TarWindows | None = None  # None: one permutation of all samples

    def __post_init__(self) -> None:
        if min(self.num_samples, self.global_batch, self.num_ranks) < 1:
            raise ValueError(f"an epoch needs samples, a batch size and ranks, found {self}")
        if self.global_batch % self.num_ranks:
            raise ValueError(f"{self.global_batch} samples do not divide by {self.num_ranks} ranks")

    @property
    def batch_size(self) -> int:
        """Samples that a rank takes each step."""
        return self.global_batch // self.num_ranks

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same on every rank, at least 1."""
        return max(1, self.num_samples // self.global_batch)

    @property
    def left_out(self) -> int:
        """Samples of an epoch that no step takes."""
        return max(0, self.num_samples - self.steps * self.global_batch)

    @property
    def repeated(self) -> int:
        """Samples that an epoch takes more than once to fill its only step."""
        return max(0, self.steps * self.global_batch - self.num_samples)

    def epoch_of(self, step: int) -> int:
        return step // self.steps

    def batch(self, step: int, rank: int) -> Ints:
        """Returns the sample indices that a rank takes at a step, counted over all epochs."""
        epoch, step_in_epoch = divmod(step, self.steps)
        first = step_in_epoch * self.global_batch + rank * self.batch_size
        positions = np.arange(first, first + self.batch_size) % self.num_samples
        if self.windows is not None:
            return self.windows.samples(positions, self.seed, epoch)
        return Permutation(self.num_samples, self.seed, epoch)(positions)


def sample_seed(seed: int, epoch: int, sample: int) -> int:
    """Returns the seed of a sample's own randomness; it does not depend on rank or worker."""
    text = f"{seed} {epoch} {sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def even_share(num_items: int, rank: int, num_ranks: int) -> range:
    """Returns the items that a rank evaluates: every item once, shares differing by at most one."""
    return range(rank, num_items, num_ranks)


@dataclass(frozen=True)
class Request:
    """One view to read: a random one (seed) or number `clip` of `num_clips` spread evenly."""

    row: int
    seed: int | None = None
    clip: int = 0
    num_clips: int = 1
    offset: float = 0.5  # of the square along the longer side; 0 = left or top, 1 = right or bottom
    ahead: tuple[int, ...] = ()  # rows whose tars will be wanted soon


@dataclass(frozen=True)
class TrainingOrder:
    """The requests of every step from `first_step` on: what a loader walks through."""

    rows: Ints
    plan: EpochPlan  # of an epoch of len(rows) samples
    rank: int
    first_step: int
    last_step: int  # excluded

    def __iter__(self) -> Iterator[list[Request]]:
        for step in range(self.first_step, self.last_step):
            epoch = self.plan.epoch_of(step)
            rows = self.rows[self.plan.batch(step, self.rank)]
            requests = [
                Request(int(row), sample_seed(self.plan.seed, epoch, int(row))) for row in rows
            ]
            yield [replace(requests[0], ahead=self._ahead(step)), *requests[1:]]

    def _ahead(self, step: int) -> tuple[int, ...]:
        """Returns the rows of the step that lies a window of tars ahead."""
        windows = self.plan.windows
        if windows is None:
            return ()
        later = step + max(1, windows.mean_samples // self.plan.global_batch)
        if later >= self.last_step:
            return ()
        return tuple(self.rows[self.plan.batch(later, self.rank)].tolist())

    def __len__(self) -> int:
        return self.last_step - self.first_step
