from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.reasons import Rejected
from data_prep.segments.transcode import Segment, transcode
from data_prep.settings import EncodeSettings, PrepSettings
from dynamonet.video.constant_rate import TimeRange, output_rate
from dynamonet.video.decode import DecodeError, open_video, video_stream
from dynamonet.video.letterbox import find_content
from tests.conftest import REAL_DATA, moving_frames, write_video

SMALL = EncodeSettings(short_side_px=32, crf=10)
WHOLE = TimeRange(Fraction(0), None)


def cut(
    path: Path,
    time_range: TimeRange = WHOLE,
    *,
    seconds: float = 10.0,
    least: float = 0.1,
    encode: EncodeSettings = SMALL,
    most: int | None = None,
    **more: object,
) -> list[Segment | Rejected]:
    values = {"segment_seconds": seconds, "min_seconds": least, **more}
    settings = PrepSettings(encode=encode, **values)  # type: ignore[arg-type]
    with open_video(str(path)) as container:
        box = find_content(container, 1.0) if encode.crop_letterbox else None
    with open_video(str(path)) as container:
        fps = video_stream(container).average_rate
        assert fps is not None
        rate = output_rate(Fraction(fps), encode.max_fps)
        return list(transcode(container, time_range, rate, settings, box=box, most=most))


def segments(path: Path, **words: object) -> list[Segment]:
    found = cut(path, **words)  # type: ignore[arg-type]
    assert all(isinstance(item, Segment) for item in found)
    return found  # type: ignore[return-value]


def pictures(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_a_video_is_cut_into_segments_that_join_without_gap(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(60, 48, 64), fps=12)
    found = segments(path, seconds=2.0)
    assert [s.frames for s in found] == [24, 24, 12]
    assert [(s.start_seconds, s.end_seconds) for s in found] == [(0, 2), (2, 4), (4, 5)]
    assert {(s.width, s.height, s.fps) for s in found} == {(42, 32, 12)}
    assert all(len(pictures(s.data)) == s.frames for s in found)


def test_a_stretch_begins_and_ends_where_it_says(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None, None] * 4, 3, 3)
    frames = np.broadcast_to(frames, (60, 32, 32, 3))
    path = write_video(tmp_path / "a.mp4", np.ascontiguousarray(frames), fps=12)
    whole = np.concatenate([pictures(s.data) for s in segments(path, seconds=1.0)])
    (part,) = segments(path, time_range=TimeRange(Fraction(2), Fraction(3)))
    assert (part.start_seconds, part.frames) == (2.0, 12)
    difference = pictures(part.data).astype(int) - whole[24:36].astype(int)
    assert np.abs(difference).max() <= 3


def test_the_last_piece_is_kept_from_min_seconds_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(30, 48, 64), fps=12)
    assert len(segments(path, seconds=2.0, least=0.5)) == 2
    kept, dropped = cut(path, seconds=2.0, least=0.6)
    assert isinstance(kept, Segment) and isinstance(dropped, Rejected)
    assert dropped.reason == "too short: 0.50 s, min_seconds is 0.6"


def test_one_frame_is_no_segment(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(1, 48, 64))
    (found,) = cut(path, least=0.0)
    assert isinstance(found, Rejected) and found.reason == "one frame only"


def test_the_same_input_gives_the_same_bytes_whatever_lies_in_memory(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(30, 48, 64), fps=12)
    rng, results = np.random.default_rng(0), set()
    for _ in range(12):
        rubbish = [rng.bytes(int(size)) for size in rng.integers(100, 300_000, 20)]
        del rubbish
        results.add(b"".join(s.data for s in segments(path)))
    assert len(results) == 1


def test_frames_are_placed_by_their_time_stamps(tmp_path: Path) -> None:
    # ten frames in the first second, two in the next: by counting, black would last 11 of 12
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    times = [*range(0, 1000, 100), 1000, 1500, 2000]
    frames = np.stack([black] * 10 + [white] * 3)
    path = write_video(tmp_path / "a.mkv", frames, times=times)
    (found,) = segments(path)
    bright = pictures(found.data).mean((1, 2, 3)) > 128
    half = int(np.argmax(bright)) / float(found.fps)
    assert half == pytest.approx(1.0, abs=1.5 / float(found.fps))


def test_fast_videos_are_thinned_to_max_fps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(60, 32, 32), fps=60)
    (found,) = segments(path)
    assert (found.fps, found.frames) == (30, 30)


def test_pixels_are_made_square_and_never_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for index, picture in enumerate(moving_frames(12, 64, 64)):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert [(s.width, s.height) for s in segments(path)] == [(64, 32)]
    tiny = write_video(tmp_path / "b.mp4", moving_frames(12, 20, 26), fps=12)
    assert [(s.width, s.height) for s in segments(tiny)] == [(26, 20)]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "ending"),
    [
        ("libx264", "yuv444p", "mp4"),
        ("libx264", "yuvj420p", "mp4"),
        ("libx264", "yuv420p10le", "mkv"),
        ("ffv1", "bgra", "mkv"),
        ("mpeg4", "yuv420p", "avi"),
        ("mjpeg", "yuvj422p", "mov"),
        ("libvpx-vp9", "yuv420p", "webm"),
    ],
)
def test_every_pixel_format_becomes_the_same_colours(
    tmp_path: Path, codec: str, pix_fmt: str, ending: str
) -> None:
    red = np.zeros((12, 48, 64, 3), np.uint8)
    red[..., 0] = 200
    path = write_video(tmp_path / f"a.{ending}", red, codec=codec, pix_fmt=pix_fmt)
    (found,) = segments(path)
    from dynamonet.video.decode import decode_pixels

    seen = decode_pixels(found.data, np.arange(found.frames)).mean((0, 1, 2))
    assert np.allclose(seen, (200, 0, 0), atol=12), seen


def test_damage_costs_the_segments_it_touches_and_no_others(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.avi", moving_frames(96, 64, 96), codec="mjpeg", pix_fmt="yuvj420p"
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    at = data.index(b"00dc", middle) + 8
    data[at + 700 : at + 760] = bytes(60)
    path.write_bytes(data)
    found = cut(path, seconds=2.0)
    broken = [item for item in found if isinstance(item, Rejected)]
    assert len(found) == 4 and len(broken) == 1
    start, end = broken[0].start_seconds, broken[0].end_seconds
    assert start is not None and end is not None and start <= 4.1 <= end + 0.2


def test_a_file_without_a_frame_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(12, 48, 64))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(DecodeError):
        cut(path)


@pytest.mark.real_data
@pytest.mark.slow
def test_phone_videos_come_out_upright() -> None:
    sizes = {}
    for path in sorted((REAL_DATA / "awkward").glob("*.mov")):
        found = cut(path, encode=EncodeSettings(short_side_px=64))
        sizes[path.stem] = next((s.width, s.height) for s in found if isinstance(s, Segment))
    assert sizes["Kickflip75"] == (64, 114)  # held upright, stored lying
    assert sizes["Kickflip26"] == (114, 64)
    assert sizes["Kickflip110"] == (138, 64)
