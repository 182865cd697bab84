"""Folds of a training part by which something is chosen, and weights by which classes are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dynamonet.shards.shard_set import ShardSet

Rows = NDArray[np.int64]
INNER_FOLDS = 3


def balanced(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """Returns a weight for each class (N,) by which all weigh the same, mean 1 over the labels."""
    counts = np.bincount(labels, minlength=num_classes)
    there = counts > 0
    return np.where(there, len(labels) / (there.sum() * counts.clip(1)), 0.0)


def inner_folds(shards: ShardSet, rows: Rows, seed: int) -> Rows:
    """Returns the fold of each row, 0 to `INNER_FOLDS` - 1, by whole groups; 0 for lack of groups.

    Each group goes where its classes are rarest so far, those that have few groups first.
    """
    names, given = shards.table["source"].to_pylist(), shards.table["group"].to_pylist()
    groups = {int(row): given[row] or names[row] for row in rows}
    members = by_class(shards, groups)
    classes: dict[str, list[int]] = {}
    for label, own in members.items():
        for name in own:
            classes.setdefault(name, []).append(label)
    count = min(INNER_FOLDS, max(map(len, members.values())))
    order = drawn(classes, seed)
    order.sort(key=lambda name: min(len(members[label]) for label in classes[name]))
    seen = np.zeros((count, len(shards.classes)), np.int64)
    fold_of: dict[str, int] = {}
    for name in order:
        best = int(np.lexsort((seen.sum(1), seen[:, classes[name]].sum(1)))[0])
        seen[best, classes[name]] += 1
        fold_of[name] = best
    return np.array([fold_of[groups[int(row)]] for row in rows], np.int64)


def by_class(shards: ShardSet, names: dict[int, str]) -> dict[int, set[str]]:
    """Returns the names that each label has, of rows with names."""
    groups: dict[int, set[str]] = {}
    for row, name in names.items():
        groups.setdefault(int(shards.columns["label"][row]), set()).add(name)
    return groups


def drawn(names: Iterable[str], seed: int) -> list[str]:
    """Returns names in a random order that depends on each name and the seed alone."""
    salt = seed.to_bytes(8, "big")

    def place(name: str) -> bytes:
        return hashlib.blake2b(name.encode(), digest_size=8, salt=salt).digest()

    return sorted(names, key=place)
