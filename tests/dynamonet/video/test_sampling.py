from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamonet.video.sampling import (
    clip_indices,
    random_start,
    span,
    stride_in_frames,
    tiled_starts,
)


def test_a_stride_in_seconds_spaces_frames_by_time_at_any_rate() -> None:
    for fps in (10.0, 25.0, 29.97, 60.0):
        stride = stride_in_frames(fps, 1, 0.2)
        times = clip_indices(0, 8, stride, 1000, loop=False) / fps
        assert np.abs(np.diff(times) - 0.2).max() <= 1 / fps + 1e-9
    assert stride_in_frames(5.0, 1, 0.01) == 1.0
    assert stride_in_frames(30.0, 4, None) == 4.0


@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 200), st.integers(0, 2**31))
def test_a_random_clip_stays_inside_its_segment(
    num: int, stride: int, spare: int, seed: int
) -> None:
    frames = span(num, stride) + spare
    start = random_start(np.random.default_rng(seed), num, stride, frames)
    indices = clip_indices(start, num, stride, frames, loop=False)
    assert indices[0] >= 0 and indices[-1] < frames
    assert (np.diff(indices) == stride).all()


@given(
    num=st.integers(1, 40),
    fps=st.floats(1, 120),
    seconds=st.floats(0.001, 1.5),
    spare=st.integers(0, 400),
    loop=st.booleans(),
    data=st.data(),
)
def test_a_clip_with_any_stride_fits_from_every_start_that_has_room(
    num: int, fps: float, seconds: float, spare: int, loop: bool, data: st.DataObject
) -> None:
    stride = stride_in_frames(fps, 1, seconds)
    covered = span(num, stride)
    start = data.draw(st.integers(0, spare))
    indices = clip_indices(start, num, stride, covered + spare, loop=loop)
    assert indices[0] == start and indices[-1] == start + covered - 1  # nothing goes round
    assert np.abs(indices - start - np.arange(num) * stride).max() <= 0.5 + 1e-9
    assert (np.diff(indices) >= 1).all()
    for start in tiled_starts(5, num, stride, covered + spare):
        assert clip_indices(start, num, stride, covered + spare, loop=False)[0] == start


def test_a_stride_of_half_frames_ends_where_it_is_said_to() -> None:
    stride = stride_in_frames(30.0, 1, 0.05)  # 1.5
    start = 300 - span(16, stride)
    assert clip_indices(start, 16, stride, 300, loop=False)[-1] == 299


def test_every_start_that_fits_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert {random_start(rng, 4, 2, 10) for _ in range(200)} == {0, 1, 2, 3}


@given(st.integers(1, 8), st.integers(2, 16), st.integers(1, 4), st.integers(2, 300))
def test_tiled_clips_reach_from_end_to_end(clips: int, num: int, stride: int, frames: int) -> None:
    starts = tiled_starts(clips, num, stride, frames)
    assert len(starts) == clips and starts == sorted(starts)
    if frames >= span(num, stride):
        for start in starts:
            clip_indices(start, num, stride, frames, loop=False)
        if clips > 1:
            assert starts[0] == 0 and starts[-1] == frames - span(num, stride)
    else:
        assert set(starts) == {0}


def test_a_clip_longer_than_its_segment_goes_round_only_when_it_may() -> None:
    assert clip_indices(0, 5, 1, 3, loop=True).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="leaves a segment of 3"):
        clip_indices(0, 5, 1, 3, loop=False)
