"""Distances between embeddings, in blocks: pure functions on arrays.

Distance is 1 - cosine, 0 to 2. Letters: N windows, D values each, Q queries. Rows are scaled to
length 1 once; then a block of rows by all rows is one matrix product. The full comparison costs
N * N * D multiplications and `BLOCK` * N values of memory: 400 MB for 100,000 windows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
BLOCK = 1024  # rows compared with all others at a time; not studied


def scaling(rows: Rows) -> tuple[Rows, Rows]:
    """Returns each column's mean and deviation, (D,) each; 1 for a column that does not vary."""
    deviation = rows.std(0, dtype=np.float64)
    still = deviation <= 1e-6 * np.abs(rows).max(0)
    deviation[still] = 1.0
    return rows.mean(0, dtype=np.float64).astype(np.float32), deviation.astype(np.float32)


def unit(rows: Rows) -> Rows:
    """Scales rows (N, D) to length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1).astype(np.float32)


def distances(queries: Rows, rows: Rows) -> Rows:
    """Returns (Q, N) cosine distances of rows of length 1."""
    return np.clip(1 - queries @ rows.T, 0, 2)


def isolation(rows: Rows, group: NDArray[np.int64], k: int) -> Rows:
    """Returns the mean distance (N,) of each row to its k nearest of another group.

    Rows of the same group (the same video) do not count: windows of a video resemble each other,
    and a lone video would hide behind itself. Fewer than k others: the mean over those there are.
    NaN where there is none.

    Source: the weight of Angiulli and Pizzuti, "Fast Outlier Detection in High Dimensional
    Spaces", PKDD 2002, divided by k. That rows of the same group do not count is ours.
    """
    isolations = np.empty(len(rows), np.float32)
    for start, block in _blocks(rows):
        part = distances(block, rows)
        part[group[start : start + len(block), None] == group[None]] = np.inf
        nearest = np.partition(part, min(k, len(rows)) - 1, axis=1)[:, :k]
        there = np.isfinite(nearest)
        total = np.where(there, nearest, 0).sum(1)
        with np.errstate(invalid="ignore"):
            isolations[start : start + len(block)] = total / there.sum(1)
    return isolations


def cover(rows: Rows, count: int, known: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """Chooses rows so that every row has a chosen or known one nearby: k-centre, greedily.

    Each step takes the row that is farthest from all chosen before; without known ones the first
    is the row nearest to the mean. Costs `count` * N * D multiplications and N values of memory.

    Returns:
        The rows in order of choice, and how far each lay from those before it (NaN for the first
        without known ones).

    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", ICLR 2018, algorithm 1. The first choice is ours.
    """
    nearest = np.full(len(rows), np.inf, np.float32)
    for index in known:
        nearest = np.minimum(nearest, distances(rows[index][None], rows)[0])
    chosen: list[int] = []
    far: list[float] = []
    nearest[known] = -1
    for _ in range(count):
        if np.isinf(nearest).any():
            best, distance = int((rows @ rows.mean(0)).argmax()), float("nan")
        else:
            best = int(nearest.argmax())
            distance = float(nearest[best])
        chosen.append(best)
        far.append(distance)
        nearest = np.minimum(nearest, distances(rows[best][None], rows)[0])
        nearest[best] = -1
    return chosen, far


def _blocks(rows: Rows) -> Iterator[tuple[int, Rows]]:
    for start in range(0, len(rows), BLOCK):
        yield start, rows[start : start + BLOCK]
