"""Chosen rows of an index, a bit each: a hundred million take 14 MB.

rows       0 1 2 3 4 5 6 7 8 ...
bits       0 1 1 0 1 0 0 1 1 ...
places       0 1   2     3 4 ...      RowSet[place] gives the row
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 512  # rows between two counts
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowSet:
    """Ascending row numbers, found by their place among those chosen."""

    bits: NDArray[np.uint8]  # (blocks, BLOCK / 8), row 0 in the highest bit

    @classmethod
    def of(cls, rows: ArrayLike, num_rows: int) -> RowSet:
        """Chooses rows out of `num_rows` by their numbers, in any order."""
        mask = np.zeros(num_rows, bool)
        mask[np.asarray(rows, np.int64)] = True
        return cls.of_masks([mask])

    @classmethod
    def of_masks(cls, masks: Iterable[NDArray[np.bool_]]) -> RowSet:
        """Chooses rows by masks of successive parts of an index, each but the last whole blocks."""
        parts = [np.packbits(mask) for mask in masks]
        bits = np.concatenate([*parts, np.zeros(0, np.uint8)])
        missing = -len(bits) % (BLOCK // 8)
        return cls(np.pad(bits, (0, missing)).reshape(-1, BLOCK // 8))

    @classmethod
    def joined(cls, sets: Iterable[RowSet]) -> RowSet:
        """Puts rows of several indexes behind one another, each beginning with a new block."""
        return cls(np.concatenate([each.bits for each in sets]))

    @cached_property
    def _before(self) -> Ints:
        """Chosen rows before each block, and all of them at the end (blocks + 1)."""
        counts = np.bitwise_count(self.bits).sum(1, dtype=np.int64)
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def num_rows(self) -> int:
        """Rows that it was chosen of, filled up to whole blocks."""
        return self.bits.size * 8

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, places: ArrayLike) -> Ints:
        """Returns the rows at given places, in [0, len)."""
        asked = np.asarray(places, np.int64)
        block = np.searchsorted(self._before, asked, side="right") - 1
        chosen = np.unpackbits(self.bits[block], axis=-1)
        nth = asked - self._before[block]
        reached = chosen.cumsum(-1, dtype=np.int16) > nth[..., None]
        return block * BLOCK + reached.argmax(-1)

    def __sub__(self, other: RowSet) -> RowSet:
        return RowSet(self.bits & ~other.bits)

    def __and__(self, other: RowSet) -> RowSet:
        return RowSet(self.bits & other.bits)

    def holds(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Tells which of some rows are chosen."""
        byte, bit = np.divmod(np.asarray(rows, np.int64), 8)
        return (self.bits.reshape(-1)[byte] >> (7 - bit) & 1).astype(bool)

    def places(self, rows: ArrayLike) -> Ints:
        """Returns how many chosen rows come before each of some rows."""
        found = []
        for part in np.array_split(asked := np.asarray(rows, np.int64), 1 + len(asked) // 10_000):
            block, within = np.divmod(part, BLOCK)
            chosen = np.unpackbits(self.bits[block.clip(max=len(self.bits) - 1)], axis=-1)
            chosen *= np.arange(BLOCK) < within[:, None]
            found.append(self._before[block] + chosen.sum(-1, dtype=np.int64))
        return np.concatenate(found)

    def numbers(self) -> Ints:
        """Returns all chosen rows, 8 bytes each: of a labelled set, not of a huge one."""
        return np.flatnonzero(np.unpackbits(self.bits))
