"""Which frames make a clip. Pure functions; segments have a constant frame rate.

segment   0 1 2 3 4 5 6 7 8 9 ...      frame numbers
clip      .   0   1   2   3            stride 2, start 1
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def stride_in_frames(fps: float, stride_frames: int, stride_seconds: float | None) -> float:
    """Returns the distance between a clip's frames, in frames of the segment.

    A stride in seconds wins over one in frames; it may fall between frames, and never below one.
    """
    return float(stride_frames) if stride_seconds is None else max(1.0, stride_seconds * fps)


def frame_offsets(num_frames: int, stride: float) -> Ints:
    """Returns how far each frame of a clip lies behind its first, in frames of the segment."""
    return np.floor(np.arange(num_frames) * stride + 0.5).astype(np.int64)


def span(num_frames: int, stride: float) -> int:
    """Returns how many frames of the segment a clip covers, first and last included."""
    return int(frame_offsets(num_frames, stride)[-1]) + 1


def clip_indices(
    start: int, num_frames: int, stride: float, segment_frames: int, *, loop: bool
) -> Ints:
    """Returns the `num_frames` frame numbers of a clip, within [0, segment_frames).

    Args:
        start: First frame number; the clip must fit unless `loop`.
        loop: A clip longer than the segment goes round again from its first frame.
    """
    indices = start + frame_offsets(num_frames, stride)
    if loop:
        return indices % segment_frames
    if indices[0] < 0 or indices[-1] >= segment_frames:
        raise ValueError(f"clip {indices[0]}..{indices[-1]} leaves a segment of {segment_frames}")
    return indices


def random_start(
    rng: np.random.Generator, num_frames: int, stride: float, segment_frames: int
) -> int:
    """Draws the first frame of a clip uniformly from all that fit (0 if none does)."""
    room = segment_frames - span(num_frames, stride)
    return int(rng.integers(0, max(room, 0) + 1))


def tiled_starts(num_clips: int, num_frames: int, stride: float, segment_frames: int) -> list[int]:
    """Returns the first frames of `num_clips` clips spread evenly over a segment.

    One clip stands in the middle; more reach from the first frame to the last and overlap only
    where they must. A segment that is too short gives 0 for each.
    """
    room = max(0, segment_frames - span(num_frames, stride))
    if num_clips == 1:
        return [room // 2]
    return [round(i * room / (num_clips - 1)) for i in range(num_clips)]
