"""Which segments are copies of each other: candidates by hashes, then a comparison of the two.

    still hashes --6 tables by 20 of 64 bits--> pairs that share a bucket --compare--> matches

Of a bucket the first few segments alone are looked up: work and memory are bounded where a fixed
camera shows the same for days. A copy shows in many of its pictures and needs one bucket.

Source: bit sampling for the Hamming distance (Indyk and Motwani, STOC 1998), as in faiss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dynamonet.copies.fingerprints import BITS, STEP, Fingerprint, Hashes

TABLES, TABLE_BITS = 6, 20
FIRST = 16  # segments of a bucket that the others are compared with
BATCH = 1 << 20  # hashes looked up at a time: bounds the memory
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


def matched_pairs(
    one: Sequence[Fingerprint], other: Sequence[Fingerprint] | None = None
) -> Iterator[tuple[int, int, Match]]:
    """Yields the places of two segments that are copies, and how far apart they are.

    Args:
        other: See `candidates`.
    """
    for here, there in candidates(one, other).tolist():
        match = match_segments(one[here], (one if other is None else other)[there])
        if match is not None:
            yield here, there, match


def candidates(one: Sequence[Fingerprint], other: Sequence[Fingerprint] | None = None) -> Ints:
    """Returns the pairs worth a comparison.

    Args:
        other: Segments to find in `one`, and the other way round; None = `one` itself.

    Returns:
        Places in `one` and in `other` (P, 2), each pair once; in `one` itself the lower first.
    """
    if other is None:
        return np.unique(np.sort(_looked_up(one, one), axis=1), axis=0)
    pairs = np.concatenate([_looked_up(one, other), _looked_up(other, one)[:, ::-1]])
    return np.unique(pairs, axis=0)


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
    enough = inside.sum(1) >= max(1.0, OVERLAP * min(num, length / STEP))
    if not enough.any():
        return None
    i, j, inside = i[enough], j[enough], inside[enough]
    count = inside.sum(1)
    still = np.bitwise_count(views.still_views[:, i] ^ whole.still[j]) * inside
    still_mean = still.sum(2) / count  # (V, offsets)
    close = still_mean <= MAX_STILL
    if not close.any():
        return None
    energy = views.energy[::STEP].astype(np.float32)
    weight = np.minimum(energy[i], whole.energy[j].astype(np.float32)) * inside
    motion = np.bitwise_count(views.motion_views[:, i] ^ whole.motion[j]) * weight
    with np.errstate(invalid="ignore", divide="ignore"):
        motion_mean = motion.sum(2) / weight.sum(1)
    moves = weight.sum(1) / count >= LITTLE_ENERGY
    copies = (still_mean + motion_mean <= MAX_BOTH) | (still_mean <= ALMOST_STILL) & ~moves
    copies &= close
    if not copies.any():
        return None
    cost = np.where(copies, still_mean + np.nan_to_num(motion_mean, nan=BITS / 2) / 2, np.inf)
    best = np.unravel_index(int(cost.argmin()), cost.shape)
    return Match(float(still_mean[best]), float(motion_mean[best]))


def _looked_up(known: Sequence[Fingerprint], asked: Sequence[Fingerprint]) -> Ints:
    """Returns pairs (P, 2) of a known segment and one that asks, with two pictures alike."""
    hashes, owner = _joined([item.still for item in known])
    views, asker = _joined([item.still_views.ravel() for item in asked])
    pairs = [np.empty(0, np.int64)]  # numbered, since rows are slow to sort
    for table in range(TABLES):
        turned = _turned(hashes, table)
        first = _first_of_buckets(turned, owner)
        index: Any = faiss.IndexBinaryHash(BITS, TABLE_BITS)
        index.add(_bytes(turned[first]))
        turned = _turned(views, table)
        # neighbours in the index one after the other: half the time, as the cache is warm
        order = np.argsort((turned >> np.uint64(TABLE_BITS - 16)).astype(np.uint16), kind="stable")
        for start in range(0, len(views), BATCH):
            part = order[start : start + BATCH]
            ends, _, found = index.range_search(_bytes(turned[part]), FRAME_BITS + 1)
            ours = owner[first[found]]
            theirs = np.repeat(asker[part], np.diff(ends.astype(np.int64)))
            if asked is known:
                ours, theirs = ours[ours != theirs], theirs[ours != theirs]
            pairs.append(np.unique(ours * len(asked) + theirs))
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), max(1, len(asked))), axis=1)


def _joined(parts: list[Hashes]) -> tuple[Hashes, Ints]:
    """Returns the hashes of segments, less those of flat pictures, and whose they are."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    hashes = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    return hashes[hashes != 0], owner[hashes != 0]


def _turned(hashes: Hashes, table: int) -> Hashes:
    """Rotates the bits that a table looks at to where faiss does: the lowest."""
    by = np.uint64(table * BITS // TABLES)
    return hashes >> by | hashes << (np.uint64(BITS) - by) % np.uint64(BITS)


def _first_of_buckets(turned: Hashes, owner: Ints) -> Ints:
    """Returns the places of one hash of each of the first few segments in each bucket."""
    keys = turned & np.uint64((1 << TABLE_BITS) - 1)
    order = np.argsort(keys, kind="stable")
    keys, owner = keys[order], owner[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
    order, keys = order[new], keys[new]
    rank = np.arange(len(keys)) - np.searchsorted(keys, keys)
    return order[rank < FIRST]


def _bytes(hashes: Hashes) -> NDArray[np.uint8]:
    """Returns hashes (N,) as faiss takes them (N, 8)."""
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, BITS // 8)
