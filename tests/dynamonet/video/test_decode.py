from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynamonet.video.decode import (
    Box,
    DecodeError,
    decode_frames,
    decode_planes,
    open_video,
    video_stream,
)
from tests.conftest import moving_frames, write_video


@pytest.fixture
def numbered(tmp_path: Path) -> bytes:
    """Forty frames whose brightness is their number."""
    frames = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 3, 3)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (40, 32, 48, 3)))
    return write_video(tmp_path / "a.mp4", frames, fps=12).read_bytes()


def brightness(luma: np.ndarray) -> list[int]:
    """Turns mean luma back into frame numbers."""
    return [round(float((y.mean() - 16) * 255 / 219 / 6)) for y in luma]


@pytest.mark.parametrize("wanted", [[0], [39], [5, 6, 7], [30, 2, 17], [8, 8, 9], [13, 25, 37]])
def test_just_the_frames_asked_for_come_in_the_order_asked(
    numbered: bytes, wanted: list[int]
) -> None:
    planes = decode_planes(numbered, np.array(wanted))
    assert brightness(planes.luma) == wanted
    assert planes.chroma.shape == (len(wanted), 2, 16, 24)
    frames = decode_frames(numbered, wanted)
    assert brightness(np.stack([frame.to_ndarray()[:32] for frame in frames])) == wanted


def test_a_box_cuts_luma_and_chroma_alike(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", moving_frames(3, 32, 48), fps=12).read_bytes()
    whole = decode_planes(data, np.array([1]))
    cut = decode_planes(data, np.array([1]), Box(4, 8, 20, 30))
    assert (cut.luma == whole.luma[:, 4:24, 8:38]).all()
    assert (cut.chroma == whole.chroma[:, :, 2:12, 4:19]).all()


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (49, 33), (64, 64)])
def test_the_square_is_even_largest_and_inside(height: int, width: int, offset: float) -> None:
    box = Box.centred_square(height, width, offset=offset)
    assert box.height == box.width == min(height, width) // 2 * 2
    assert box.top % 2 == box.left % 2 == 0
    assert box.top + box.height <= height and box.left + box.width <= width


def test_damage_is_an_error_that_says_what_is_missing(numbered: bytes) -> None:
    with pytest.raises(DecodeError, match="frame 50 of 51 asked for is missing"):
        decode_planes(numbered, np.array([50]))
    with pytest.raises(DecodeError, match="frame 50 is missing"):
        decode_frames(numbered, [3, 50])
    with pytest.raises(DecodeError, match="not an MP4 segment"):
        decode_frames(b"no video", [0])
    with pytest.raises(DecodeError, match="box 'mdat' leaves what holds it"):
        decode_planes(numbered[: len(numbered) // 2], np.array([0]))
    with pytest.raises(DecodeError, match="not an MP4 segment"):
        decode_planes(b"no video", np.array([0]))
    with pytest.raises(DecodeError, match="leaves a frame of 32 x 48"):
        decode_planes(numbered, np.array([0]), Box(0, 0, 64, 64))


def test_a_path_and_an_open_file_decode_alike(tmp_path: Path, numbered: bytes) -> None:
    (tmp_path / "b.mp4").write_bytes(numbered)
    for source in (str(tmp_path / "b.mp4"), numbered, (tmp_path / "b.mp4").open("rb")):
        with open_video(source) as container:
            assert video_stream(container).frames == 40
