"""Which segments are copies of each other: candidates by hashes, then a comparison of the two.

    still hashes --12 tables of 24 of 64 bits--> pairs that share a bucket --compare--> matches

Work and memory grow with the number of segments: of a bucket, each member is paired with the first
few alone. A copy shows in many of its pictures and needs one bucket.

Source: bit sampling for the Hamming distance (Indyk and Motwani, STOC 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.fingerprints import BITS, STEP, Fingerprint, Hashes

TABLES, TABLE_BITS = 12, 24
FIRST = 16  # members of a bucket that the others are paired with
BATCH = 100_000  # segments looked up at a time: bounds the memory
FRAME_BITS = 10  # two pictures that differ in more bits make no candidate
# Source: measured on re-encoded, cropped and trimmed copies of real videos (docs/data.md)
MAX_STILL = 11.0  # mean bits of 64 in which the pictures of copies differ
MAX_BOTH = 20.0  # with those in which their motion differs
ALMOST_STILL, LITTLE_ENERGY = 2.0, 1.0  # nothing moves: the pictures alone must be much closer
OVERLAP = 0.5  # share of the shorter segment that a copy must cover

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """How far two segments are apart where they fit best."""

    still: float  # mean bits of 64
    motion: float  # as much; nan where nothing moves


def match_segments(one: Fingerprint, other: Fingerprint) -> Match | None:
    """Compares two segments at every offset and in every view; None = no copies."""
    both_ways = [_aligned(one, other), _aligned(other, one)]
    matches = [match for match in both_ways if match is not None]
    return min(matches, key=lambda match: match.still, default=None)


def candidates(fingerprints: Sequence[Fingerprint]) -> Ints:
    """Returns the pairs (P, 2) of segments worth a comparison, each with the earlier first."""
    known, owner = _joined([item.still[::2] for item in fingerprints], 0)
    pairs = [np.empty((0, 2), np.int64)]
    for mask in _masks():
        table = _one_each(known, owner, mask)
        for first in range(0, len(fingerprints), BATCH):
            views = [item.still_views.ravel() for item in fingerprints[first : first + BATCH]]
            pairs.append(_in_table(mask, *table, *_joined(views, first)))
    return np.unique(np.concatenate(pairs), axis=0)


def _aligned(views: Fingerprint, whole: Fingerprint) -> Match | None:
    """Fits the views of one segment to the whole pictures of another.

    views    i   0       1       2          every STEP-th picture
    whole    j   0 1 2 3 4 5 6 7 8 9 ...    j = STEP * i + offset
    """
    num, length = views.still_views.shape[1], len(whole.still)
    offsets = np.arange(-STEP * (num - 1), length)[:, None]
    i = np.broadcast_to(np.arange(num), (len(offsets), num))
    j = STEP * i + offsets
    inside = (j >= 0) & (j < length)
    j = j.clip(0, length - 1)
    inside &= (views.still_views[0][i] != 0) & (whole.still[j] != 0)
    count = inside.sum(1)
    least = max(1.0, OVERLAP * min(num, length / STEP))
    if not (count >= least).any():
        return None
    still = np.bitwise_count(views.still_views[:, i] ^ whole.still[j]) * inside
    energy = views.energy[::STEP].astype(np.float32)
    weight = np.minimum(energy[i], whole.energy[j].astype(np.float32)) * inside
    motion = np.bitwise_count(views.motion_views[:, i] ^ whole.motion[j]) * weight
    with np.errstate(invalid="ignore", divide="ignore"):
        still_mean = still.sum(2) / count  # (V, offsets)
        motion_mean = motion.sum(2) / weight.sum(1)
    moves = weight.sum(1) / np.maximum(1, count) >= LITTLE_ENERGY
    copies = (still_mean <= MAX_STILL) & (still_mean + motion_mean <= MAX_BOTH)
    copies |= (still_mean <= ALMOST_STILL) & ~moves
    copies &= count >= least
    if not copies.any():
        return None
    cost = np.where(copies, still_mean + np.nan_to_num(motion_mean, nan=BITS / 2) / 2, np.inf)
    best = np.unravel_index(int(cost.argmin()), cost.shape)
    return Match(float(still_mean[best]), float(motion_mean[best]))


def _masks() -> list[np.uint64]:
    """Returns the bits that each table looks at, the same in every run."""
    draw = np.random.default_rng(0)
    bits = [draw.permutation(BITS)[:TABLE_BITS] for _ in range(TABLES)]
    return [np.uint64(sum(1 << int(bit) for bit in chosen)) for chosen in bits]


def _joined(parts: list[Hashes], first: int) -> tuple[Hashes, Ints]:
    """Returns the hashes of segments, less those of flat pictures, and whose they are."""
    owner = first + np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    hashes = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    return hashes[hashes != 0], owner[hashes != 0]


def _in_table(mask: np.uint64, known: Hashes, owner: Ints, asked: Hashes, asker: Ints) -> Ints:
    """Returns the pairs that share a bucket of one table and have two pictures alike in it.

    Args:
        known, owner: Sorted by bucket, each owner once in a bucket.
    """
    asked, asker = _one_each(asked, asker, mask)
    keys = known & mask
    first = np.searchsorted(keys, asked & mask)
    pairs = [np.empty((0, 2), np.int64)]
    for turn in range(FIRST):
        spot = first + turn
        here = np.flatnonzero(spot < len(keys))
        here = here[keys[spot[here]] == asked[here] & mask]
        if not len(here):
            break
        member = spot[here]
        near = np.bitwise_count(known[member] ^ asked[here]) <= FRAME_BITS
        near &= owner[member] != asker[here]
        both = np.stack([owner[member[near]], asker[here[near]]], 1)
        pairs.append(np.unique(np.sort(both, axis=1), axis=0))
    return np.concatenate(pairs)


def _one_each(hashes: Hashes, owner: Ints, mask: np.uint64) -> tuple[Hashes, Ints]:
    """Sorts by bucket and, as they came, by owner; keeps one hash of an owner in a bucket."""
    order = np.argsort(hashes & mask, kind="stable")
    hashes, owner = hashes[order], owner[order]
    keys = hashes & mask
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
    return hashes[new], owner[new]
