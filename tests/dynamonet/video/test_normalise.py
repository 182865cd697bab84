"""Videos of every kind come out alike, and what was changed in them is said."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dynamonet.video.constant_rate import Damage, TimeRange, constant_rate_frames, output_rate
from dynamonet.video.decode import open_video, video_stream
from dynamonet.video.letterbox import bar_px, find_content
from tests.conftest import moving_frames, write_video

WHOLE = TimeRange(Fraction(0), None)
Pixels = NDArray[np.uint8]


def steady(path: Path, side: int = 64, *, crop: bool = False) -> tuple[Pixels, set[str]]:
    """Returns the luma (T, H, W) of a video and the kinds of changes."""
    changes: set[str] = set()
    box = None
    if crop:
        with open_video(str(path)) as container:
            box = find_content(container, 2.0)
    with open_video(str(path)) as container:
        rate = output_rate(Fraction(video_stream(container).average_rate or 25), 30.0)
        found = list(constant_rate_frames(container, WHOLE, rate, side, box=box, changes=changes))
    frames = [frame for frame in found if not isinstance(frame, Damage)]
    assert len(frames) == len(found) and {f.format.name for f in frames} == {"yuv420p"}
    height = frames[0].height
    return np.stack([np.asarray(f.to_ndarray(), np.uint8)[:height] for f in frames]), changes


def planar(planes: list[NDArray[Any]], format_name: str) -> av.VideoFrame:
    """Makes a frame of (H, W) planes."""
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], format_name)
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    return frame


def encode(
    path: Path,
    frames: list[av.VideoFrame],
    codec: str,
    set_up: Callable[[VideoStream], None] = lambda stream: None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        set_up(stream)
        for number, frame in enumerate(frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_plain_video_needs_no_change(tmp_path: Path) -> None:
    luma, changes = steady(write_video(tmp_path / "a.mp4", moving_frames(24, 64, 96)))
    assert luma.shape == (24, 64, 96) and changes == set()


def test_interlaced_frames_are_taken_apart(tmp_path: Path) -> None:
    """Two fields half a frame apart: woven, a moving edge is a comb; apart, it is straight."""

    def frame(number: int) -> av.VideoFrame:
        luma = np.full((64, 96), 30, np.uint8)
        luma[0::2, : 20 + 4 * number] = 200
        luma[1::2, : 22 + 4 * number] = 200
        return planar([luma, *[np.full((32, 48), 128, np.uint8)] * 2], "yuv420p")

    def fields(stream: VideoStream) -> None:
        stream.codec_context.options = {"flags": "+ildct+ilme", "qscale": "2", "field_order": "tt"}
        stream.bit_rate = 4_000_000

    frames = [frame(n) for n in range(12)]
    path = encode(tmp_path / "a.ts", frames, "mpeg2video", fields)
    with open_video(str(path)) as container:
        woven = next(container.decode(video=0))
    assert woven.interlaced_frame
    luma, changes = steady(path)
    assert "interlaced" in changes and len(luma) == 12

    def comb(picture: Pixels) -> float:
        rows = picture.astype(float)
        return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).max())

    assert comb(woven.to_ndarray()[:64]) > 80
    assert comb(luma[5]) < 40


@pytest.mark.parametrize(
    ("transfer", "signal", "expected"),
    [
        # PQ and HLG signals and the luma of the same light in SDR, where 203 cd/m2 is white.
        # Source: ITU-R BT.2100 tables 4 and 5, BT.2408 and BT.1886 with a white of 203 cd/m2
        (16, 0.5081, 178),  # 100 cd/m2
        (16, 0.7518, 235),  # 1000 cd/m2 is clipped
        (18, 0.75, 235),
    ],
)
def test_hdr_becomes_sdr(tmp_path: Path, transfer: int, signal: float, expected: int) -> None:
    grey = np.full((64, 96), round(64 + 876 * signal), np.uint16)
    planes = [grey, *[np.full((32, 48), 512, np.uint16)] * 2]

    def tags(stream: VideoStream) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
        context.color_range = 1
        context.options = {"x265-params": "log-level=none", "crf": "5"}

    frames = [planar(planes, "yuv420p10le") for _ in range(4)]
    luma, changes = steady(encode(tmp_path / "a.mkv", frames, "libx265", tags))
    assert changes == {"hdr", "deep_colour"}
    assert abs(float(luma.mean()) - expected) <= 6


def test_transparent_pixels_are_laid_over_black(tmp_path: Path) -> None:
    rgba = np.full((64, 96, 4), 255, np.uint8)
    rgba[:, 48:, 3] = 0  # white below, but not to be seen
    frames = [av.VideoFrame.from_ndarray(rgba, format="bgra") for _ in range(4)]
    luma, changes = steady(encode(tmp_path / "a.mkv", frames, "ffv1"))
    assert changes == {"alpha"}
    assert luma[0, :, :44].min() > 225 and luma[0, :, 52:].max() < 24


def test_full_range_is_squeezed_whether_the_format_or_a_flag_says_so(tmp_path: Path) -> None:
    flat = [np.full((64, 96), 255, np.uint8), *[np.full((32, 48), 128, np.uint8)] * 2]

    def full(stream: VideoStream) -> None:
        stream.codec_context.color_range = 2

    for number, format_name in enumerate(("yuv420p", "yuvj420p")):
        frames = [planar(flat, format_name) for _ in range(4)]
        luma, changes = steady(encode(tmp_path / f"{number}.mp4", frames, "libx264", full))
        assert changes == {"full_range"} and abs(float(luma.mean()) - 235) <= 1


def test_bt709_becomes_bt601(tmp_path: Path) -> None:
    # pure red: luma 63 in BT.709, 81 in BT.601
    red = [np.full((64, 96), 63, np.uint8), np.full((32, 48), 102, np.uint8)]
    red.append(np.full((32, 48), 240, np.uint8))

    def tags(stream: VideoStream) -> None:
        stream.codec_context.colorspace = 1

    frames = [planar(red, "yuv420p") for _ in range(4)]
    luma, _ = steady(encode(tmp_path / "a.mp4", frames, "libx264", tags))
    assert abs(float(luma.mean()) - 81) <= 2


def test_odd_sizes_deep_colours_and_stretched_pixels_are_counted(tmp_path: Path) -> None:
    odd = write_video(tmp_path / "a.mkv", moving_frames(6, 63, 95), codec="ffv1", pix_fmt="bgr0")
    luma, changes = steady(odd)
    assert luma.shape[1] % 2 == 0 == luma.shape[2] % 2
    assert changes == {"odd_size"}
    deep = write_video(tmp_path / "b.mkv", moving_frames(6, 64, 96), pix_fmt="yuv420p10le")
    assert steady(deep)[1] == {"deep_colour"}

    def wide(stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    frames = [av.VideoFrame.from_ndarray(f) for f in moving_frames(6, 64, 64)]
    frames = [frame.reformat(format="yuv420p") for frame in frames]
    luma, changes = steady(encode(tmp_path / "c.mp4", frames, "libx264", wide))
    assert luma.shape[1:] == (64, 128) and changes == {"pixel_aspect"}


def test_uneven_and_fast_frames_are_counted(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 240, 280, 320, 480, 520, 560]
    uneven = write_video(tmp_path / "a.mkv", moving_frames(10, 64, 96), times=times)
    assert steady(uneven)[1] == {"variable_rate"}
    rounded = [round(1000 * n / 30) for n in range(30)]  # 33 and 34 ms: steady, coarsely written
    steady_one = write_video(tmp_path / "b.mkv", moving_frames(30, 64, 96), fps=30, times=rounded)
    assert steady(steady_one)[1] == set()
    fast = write_video(tmp_path / "c.mp4", moving_frames(60, 64, 96), fps=60)
    assert steady(fast)[1] == {"high_rate"}


def boxed(frames: Pixels, top: int, bottom: int) -> Pixels:
    """Puts black above and below frames (T, H, W, 3)."""
    return np.pad(frames, ((0, 0), (top, bottom), (0, 0), (0, 0)))


def test_black_bars_are_found_in_pairs_and_cut_off(tmp_path: Path) -> None:
    inner = moving_frames(24, 80, 160)
    dark_start = boxed(inner, 24, 24)
    dark_start[:6] = 0  # fades in: the beginning alone would say that all is bar
    path = write_video(tmp_path / "a.mp4", dark_start)
    luma, changes = steady(path, 64, crop=True)
    assert "letterbox" in changes and luma.shape[1:] == (64, 128)
    assert luma[12, 0].mean() > 40 and luma[12, -1].mean() > 40
    assert steady(path, 64)[0].shape[1:] == (64, 80)
    night = write_video(tmp_path / "b.mp4", boxed(inner, 48, 0))  # a black sky is no bar
    assert "letterbox" not in steady(night, 64, crop=True)[1]
    black = write_video(tmp_path / "c.mp4", np.zeros((12, 64, 96, 3), np.uint8))
    assert "letterbox" not in steady(black, 64, crop=True)[1]


def test_bars_are_measured_from_both_ends() -> None:
    assert bar_px(np.array([0, 0, 1, 0, 1, 0, 0, 0], bool)) == 2
    assert bar_px(np.array([1, 0, 0], bool)) == 0
    assert bar_px(np.zeros(8, bool)) == 4


def test_long_videos_are_looked_at_by_key_frames_all_through(tmp_path: Path) -> None:
    frames = [
        av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
        for picture in boxed(moving_frames(50, 80, 160), 24, 24)
    ]

    def sparse(stream: VideoStream) -> None:
        stream.codec_context.gop_size = 10

    path = encode(tmp_path / "a.mp4", frames, "libx264", sparse)
    with open_video(str(path)) as container:
        long = find_content(container, 25.0)  # as if the header said so
    with open_video(str(path)) as container:
        assert long == find_content(container, 2.0) is not None
