from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from dynamonet.video.decode import (
    Box,
    DecodeError,
    decode_frames,
    decode_pixels,
    open_video,
    rgb,
    video_stream,
)
from tests.conftest import moving_frames, write_video


@pytest.fixture
def numbered(tmp_path: Path) -> bytes:
    """Forty frames whose brightness is their number."""
    frames = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 3, 3)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (40, 32, 48, 3)))
    return write_video(tmp_path / "a.mp4", frames, fps=12).read_bytes()


def brightness(pixels: np.ndarray) -> list[int]:
    """Turns mean brightness back into frame numbers."""
    return [round(float(picture.mean() / 6)) for picture in pixels]


@pytest.mark.parametrize("wanted", [[0], [39], [5, 6, 7], [30, 2, 17], [8, 8, 9], [13, 25, 37]])
def test_just_the_frames_asked_for_come_in_the_order_asked(
    numbered: bytes, wanted: list[int]
) -> None:
    pixels = decode_pixels(numbered, np.array(wanted), size=(32, 48))
    assert brightness(pixels) == wanted and pixels.shape == (len(wanted), 32, 48, 3)
    frames = decode_frames(numbered, wanted)
    assert brightness(np.stack([rgb(frame) for frame in frames])) == wanted


@pytest.mark.parametrize("width", [48, 50])  # rows with and without a filling
def test_a_box_cuts_whole_pixels(tmp_path: Path, width: int) -> None:
    data = write_video(tmp_path / "a.mp4", moving_frames(3, 32, width), fps=12).read_bytes()
    whole = decode_pixels(data, np.array([1]))
    cut = decode_pixels(data, np.array([1]), Box(4, 8, 20, 30))
    assert (cut == whole[:, 4:24, 8:38]).all() and whole.std() > 20


@pytest.mark.parametrize(
    ("yuv", "colour"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_colours_are_bt601(yuv: tuple[int, ...], colour: tuple[int, ...]) -> None:
    planar = np.repeat(np.array(yuv, np.uint8), [64 * 48, 32 * 24, 32 * 24]).reshape(72, 64)
    frame = av.VideoFrame.from_ndarray(planar, format="yuv420p")
    for tag in (2, 1):  # unspecified; BT.709, which stage 1 has settled long before
        frame.colorspace = tag
        assert np.abs(rgb(frame).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (49, 33), (64, 64)])
def test_the_square_is_even_largest_and_inside(height: int, width: int, offset: float) -> None:
    box = Box.centred_square(height, width, offset=offset)
    assert box.height == box.width == min(height, width) // 2 * 2
    assert box.top % 2 == box.left % 2 == 0
    assert box.top + box.height <= height and box.left + box.width <= width


def test_damage_is_an_error_that_says_what_is_missing(numbered: bytes) -> None:
    with pytest.raises(DecodeError, match="frame 50 of 51 asked for is missing"):
        decode_pixels(numbered, np.array([50]))
    with pytest.raises(DecodeError, match="frame 50 is missing"):
        decode_frames(numbered, [3, 50])
    with pytest.raises(DecodeError, match="not an MP4 segment"):
        decode_frames(b"no video", [0])
    with pytest.raises(DecodeError, match="box 'mdat' leaves what holds it"):
        decode_pixels(numbered[: len(numbered) // 2], np.array([0]))
    with pytest.raises(DecodeError, match="not an MP4 segment"):
        decode_pixels(b"no video", np.array([0]))
    with pytest.raises(DecodeError, match="leaves a frame of 32 x 48"):
        decode_pixels(numbered, np.array([0]), Box(0, 0, 64, 64))
    with pytest.raises(DecodeError, match=r"frames of 32 x 48, not \(16, 48\)"):
        decode_pixels(numbered, np.array([0]), size=(16, 48))


def test_a_path_and_an_open_file_decode_alike(tmp_path: Path, numbered: bytes) -> None:
    (tmp_path / "b.mp4").write_bytes(numbered)
    for source in (str(tmp_path / "b.mp4"), numbered, (tmp_path / "b.mp4").open("rb")):
        with open_video(source) as container:
            assert video_stream(container).frames == 40
