from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynamonet.shards.rows import BLOCK, RowSet

lists = st.lists(st.integers(0, 3 * BLOCK), unique=True, max_size=80)


@given(rows=lists)
def test_rows_are_found_by_their_places_and_places_by_rows(rows: list[int]) -> None:
    chosen = RowSet.of(rows, 3 * BLOCK + 1)
    assert len(chosen) == len(rows)
    assert chosen.numbers().tolist() == sorted(rows)
    assert chosen[np.arange(len(rows))].tolist() == sorted(rows)
    assert chosen.places(sorted(rows)).tolist() == list(range(len(rows)))
    assert chosen.places([0, chosen.num_rows]).tolist() == [0, len(rows)]


@given(one=lists, two=lists)
def test_rows_are_taken_away_kept_and_joined(one: list[int], two: list[int]) -> None:
    first, second = (RowSet.of(rows, 3 * BLOCK + 1) for rows in (one, two))
    assert set((first - second).numbers().tolist()) == set(one) - set(two)
    assert set((first & second).numbers().tolist()) == set(one) & set(two)
    later = RowSet.joined([first, second]).numbers()[len(one) :] - first.num_rows
    assert later.tolist() == sorted(two)


def test_masks_of_parts_are_one_set() -> None:
    mask = np.arange(5 * BLOCK + 3) % 7 == 0
    parts = RowSet.of_masks([mask[: 2 * BLOCK], mask[2 * BLOCK :]])
    assert parts.numbers().tolist() == np.flatnonzero(mask).tolist()
