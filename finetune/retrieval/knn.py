"""Distances between embeddings: pure functions on arrays.

Distance is 1 - cosine, 0 to 2. Letters: N windows, D values each, Q queries. Rows are scaled to
length 1 once; then rows by rows is one matrix product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def unit(rows: Rows) -> Rows:
    """Scales rows (N, D) to length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1).astype(np.float32)


def distances(queries: Rows, rows: Rows) -> Rows:
    """Returns (Q, N) cosine distances of rows of length 1."""
    return np.clip(1 - queries @ rows.T, 0, 2)


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
