"""The order of samples: one seeded permutation an epoch, cut evenly over ranks. Pure functions.

    position      0 1 2 3 | 4 5 6 7 | 8 9 ...      counted from the start of an epoch
    set           a b a a | b a a b | a a ...      each by its share; one set is all a
    global batch     0    |    1    |   2          the same for any number of ranks
    rank          0 0 1 1 | 0 0 1 1 | 0 0 ...

A run's place in the data is the number of its step; nothing else need be stored. The permutation is
a cipher on the index range, so it needs no memory however long the index is.

Source: ours; format-preserving permutation by a Feistel network with cycle walking (Black and
Rogaway, CT-RSA 2002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dynamonet.shards.rows import RowSet

STEPS_AHEAD = 16  # at which tars are fetched where samples are read in any order
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

    bounds: Ints  # (tars + 1), ascending: where the samples of each tar begin, and where all end
    window: int  # tars

    @property
    def mean_samples(self) -> int:
        """Samples of a window, on average."""
        return max(1, int(self.bounds[-1]) * self.window // max(1, len(self.bounds) - 1))

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
            chosen[here] = self.bounds[order[place]] + moved - starts[place]
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
class Source:
    """A set as a part of a training: how many samples it has, and how many an epoch takes of it."""

    samples: int
    taken: int
    first: int = 0  # place of its first sample among those of all sets
    windows: TarWindows | None = None  # None: one permutation of all its samples

    def places(self, taken: Ints, seed: int) -> tuple[Ints, Ints]:
        """Returns the places of samples, counted over all epochs, and which pass over the set.

        Each pass takes every sample once, in an order of its own.
        """
        passes, positions = np.divmod(taken, self.samples)
        places = np.empty_like(positions)
        for number in np.unique(passes):
            here = passes == number
            if self.windows is not None:
                places[here] = self.windows.samples(positions[here], seed, int(number))
            else:
                places[here] = Permutation(self.samples, seed, int(number))(positions[here])
        return self.first + places, passes


@dataclass(frozen=True)
class EpochPlan:
    """How an epoch is cut into steps of equal size for every rank, and shared among the sets.

    An epoch takes `taken` samples of each set, mixed as evenly as whole numbers allow: any stretch
    of it holds each set's share to a sample or two. With fewer samples than one global batch the
    epoch is filled up by going round again; otherwise the rest that does not fill a global batch is
    left out of this epoch (another epoch's permutation leaves out others).
    """

    sources: tuple[Source, ...]
    global_batch: int  # samples of a step over all ranks: the order depends on it, not on the ranks
    num_ranks: int
    seed: int

    def __post_init__(self) -> None:
        counts = [count for each in self.sources for count in (each.samples, each.taken)]
        if not counts or min(*counts, self.global_batch, self.num_ranks) < 1:
            raise ValueError(f"an epoch needs samples, a batch size and ranks, found {self}")
        if self.global_batch % self.num_ranks:
            raise ValueError(f"{self.global_batch} samples do not divide by {self.num_ranks} ranks")

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return sum(each.taken for each in self.sources)

    @property
    def samples_read(self) -> int:
        """Samples that the steps of an epoch take, those that are repeated included."""
        return self.steps * self.global_batch

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
        return max(0, self.num_samples - self.samples_read)

    @property
    def repeated(self) -> int:
        """Samples that an epoch takes more than once to fill its only step."""
        return max(0, self.samples_read - self.num_samples)

    def batch(self, step: int, rank: int) -> tuple[Ints, Ints]:
        """Returns the samples that a rank takes at a step, counted over all epochs.

        Returns:
            Their places among those of all sets, and which pass over its set each belongs to.
        """
        epoch, step_in_epoch = divmod(step, self.steps)
        first = step_in_epoch * self.global_batch + rank * self.batch_size
        positions = np.arange(first, first + self.batch_size) % self.num_samples
        places, passes = np.empty_like(positions), np.empty_like(positions)
        for source, here, taken in self._shared(positions):
            places[here], passes[here] = source.places(epoch * source.taken + taken, self.seed)
        return places, passes

    def _shared(self, positions: Ints) -> Iterator[tuple[Source, Ints, Ints]]:
        """Yields each set, which of the positions are its own, and how many it gave before."""
        rest, here, total = positions, np.arange(len(positions)), self.num_samples
        for source in self.sources:
            before, after = (
                (2 * count * source.taken + total) // (2 * total) for count in (rest, rest + 1)
            )
            own = after > before
            yield source, here[own], before[own]
            rest, here, total = (rest - before)[~own], here[~own], total - source.taken

    def steps_ahead(self) -> int:
        """Returns how many steps before it is read a tar should be fetched."""
        steps = [
            each.windows.mean_samples * self.num_samples // (each.taken * self.global_batch)
            for each in self.sources
            if each.windows is not None
        ]
        return max(1, min(steps)) if steps else STEPS_AHEAD


def shared_out(samples: list[int], shares: Sequence[float] | None) -> list[int]:
    """Returns how many samples an epoch takes of each set: as many as there are, in all.

    Args:
        samples: Of each set.
        shares: Of an epoch; None = by the number of samples, so that each is taken once.
    """
    if shares is None:
        return samples
    total, whole = sum(samples), sum(shares)
    return [max(1, round(total * share / whole)) for share in shares]


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

    rows: RowSet
    plan: EpochPlan  # of those rows
    rank: int
    first_step: int
    last_step: int  # excluded

    def __iter__(self) -> Iterator[list[Request]]:
        ahead = self.plan.steps_ahead()
        for step in range(self.first_step, self.last_step):
            places, passes = self.plan.batch(step, self.rank)
            requests = [
                Request(row, sample_seed(self.plan.seed, number, row))
                for row, number in zip(self.rows[places].tolist(), passes.tolist(), strict=True)
            ]
            later = []
            if step + ahead < self.last_step:
                later = self.rows[self.plan.batch(step + ahead, self.rank)[0]].tolist()
            yield [replace(requests[0], ahead=tuple(later)), *requests[1:]]

    def __len__(self) -> int:
        return self.last_step - self.first_step
