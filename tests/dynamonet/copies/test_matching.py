"""A copy is found whatever was done to it, and other videos are none."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dynamonet.copies.fingerprints import RATE, Fingerprint, fingerprint, thumbnails
from dynamonet.copies.matching import candidates, match_segments

NUM, SIZE, FPS = 8, 96, 12


@cache
def motion_video(seed: int, num_frames: int = 36) -> NDArray[np.uint8]:
    """Renders frames (T, H, W, 3) of a motion video."""
    from demo.motion_videos import render_motion

    labels = torch.tensor([seed % 9])
    frames = render_motion(labels, seed=seed, num_frames=num_frames, size_px=SIZE)[0]
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def encoded(frames: NDArray[np.uint8], *, crf: int = 18, side: int = SIZE) -> bytes:
    """Encodes frames (T, H, W, 3), scaled to a square of `side` pixels."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            frame = frame.reformat(side, side, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def cropped(frames: NDArray[np.uint8], share: float, place: float = 0.5) -> NDArray[np.uint8]:
    side = round(SIZE * share)
    start = round((SIZE - side) * place)
    return frames[:, start : start + side, start : start + side]


# what somebody who uploads a video again does to it
COPIES = {
    "encoded again": lambda frames: encoded(frames, crf=35, side=64),
    "cropped": lambda frames: encoded(cropped(frames, 0.9)),
    "cropped at a corner": lambda frames: encoded(cropped(frames, 0.9, 0.0)),
    "cropped more": lambda frames: encoded(cropped(frames, 0.84), crf=28),
    "trimmed": lambda frames: encoded(frames[7:], crf=28),
    "brighter": lambda frames: encoded((frames * 0.8 + 40).astype(np.uint8)),
    "all of it": lambda frames: encoded(cropped(frames[5:], 0.92), crf=30, side=72),
}


def print_from(data: bytes) -> Fingerprint:
    return fingerprint(thumbnails(data))


@pytest.fixture(scope="module")
def originals() -> list[Fingerprint]:
    return [print_from(encoded(motion_video(seed))) for seed in range(NUM)]


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_found_whatever_was_done_to_it_and_nothing_else_is(
    change: str, originals: list[Fingerprint]
) -> None:
    copies = [print_from(COPIES[change](motion_video(seed))) for seed in range(NUM)]
    pairs = {(int(a), int(b)) for a, b in candidates([*originals, *copies])}
    both = [*originals, *copies]
    found = {(a, b - NUM) for a, b in pairs if a < NUM <= b and match_segments(both[a], both[b])}
    assert found == {(number, number) for number in range(NUM)}
    between = {(int(a), int(b)) for a, b in candidates(originals, copies)}
    assert between == {(a, b - NUM) for a, b in pairs if a < NUM <= b}
    assert not [
        (a, b) for a in range(NUM) for b in range(a) if match_segments(originals[a], copies[b])
    ]


def test_videos_of_one_fixed_camera_are_not_copies_of_each_other() -> None:
    scene = motion_video(0)[:1]

    def filmed(seed: int) -> Fingerprint:
        """Returns the fixed scene with something that moves through it."""
        frames = np.repeat(scene, 36, axis=0)
        rng = np.random.default_rng(seed)
        place, step = rng.uniform(20, 60, 2), rng.uniform(-2, 2, 2)
        for frame in frames:
            place = (place + step) % (SIZE - 24)
            y, x = place.astype(int)
            frame[y : y + 24, x : x + 24] = 255
        return print_from(encoded(frames))

    fingerprints = [filmed(seed) for seed in range(4)]
    assert match_segments(fingerprints[0], filmed(0)) is not None
    assert not [
        1 for a in range(4) for b in range(a) if match_segments(fingerprints[a], fingerprints[b])
    ]


def test_pictures_without_content_are_copies_of_nothing() -> None:
    black = fingerprint(np.zeros((2 * RATE, 64, 64), np.uint8))
    assert black.is_flat and match_segments(black, black) is None
    assert not len(candidates([black, black]))


def test_pictures_are_taken_by_time_at_any_frame_rate() -> None:
    assert len(thumbnails(encoded(motion_video(0, 36)))) == 3 * RATE


def test_a_bucket_of_many_gives_few_pairs() -> None:
    rng = np.random.default_rng(0)
    same = fingerprint(np.repeat(rng.integers(0, 256, (1, 64, 64), np.uint8), 8, axis=0))
    assert len(candidates([same] * 500)) < 500 * 20
