from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from dynamonet.video.decode import DecodeError, decode_pixels, open_video, rgb, video_stream
from dynamonet.video.packets import PacketTable
from tests.conftest import moving_frames, write_video

LAYOUTS = {
    "as stage 1 writes": {"bframes": "0"},
    "frames out of order": {"bframes": "3", "b-adapt": "0"},
    "key frames only": {"keyint": "1"},
}


def encoded(
    file: Path, params: dict[str, str], *, codec: str = "libx264", movflags: str = ""
) -> bytes:
    """Fifty frames of a moving texture, a key frame at least every twelve."""
    options = {"movflags": movflags} if movflags else {}
    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", 12
        if params:
            words = {"scenecut": "0", **params}
            stream.options = {"x264-params": ":".join(f"{k}={v}" for k, v in words.items())}
        for picture in moving_frames(50, 32, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return file.read_bytes()


@pytest.mark.parametrize("movflags", ["", "faststart"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_table_agrees_with_ffmpegs_demuxer(layout: str, movflags: str, tmp_path: Path) -> None:
    data = encoded(tmp_path / "a.mp4", LAYOUTS[layout], movflags=movflags)
    table = PacketTable.of(data)
    with open_video(data) as container:
        stream = video_stream(container)
        packets = [p for p in container.demux(stream) if p.size]
        assert stream.codec_context.extradata == table.extradata
    assert [p.size for p in packets] == table.sizes.tolist()
    assert [p.pos for p in packets] == table.offsets.tolist()
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == table.keys.tolist()
    times = [p.pts for p in packets]
    assert [sorted(times).index(t) for t in times] == table.numbers.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_are_those_that_ffmpeg_shows(layout: str, tmp_path: Path) -> None:
    data = encoded(tmp_path / "a.mp4", LAYOUTS[layout])
    with open_video(data) as container:
        frames = [rgb(frame).copy() for frame in container.decode(video_stream(container))]
    for first in (0, 11, 12, 13, 30, 46):
        pixels = decode_pixels(data, np.arange(first, first + 4))
        assert (pixels == np.stack(frames[first : first + 4])).all()


def test_another_codec_is_named(tmp_path: Path) -> None:
    data = encoded(tmp_path / "a.mp4", {}, codec="mpeg4")
    with pytest.raises(DecodeError, match="its codec is 'mp4v'"):
        decode_pixels(data, np.array([0]))


def test_a_damaged_count_is_refused_before_memory_is_taken_for_it(tmp_path: Path) -> None:
    data = bytearray(encoded(tmp_path / "a.mp4", LAYOUTS["frames out of order"]))
    count = data.index(b"ctts") + 12  # after the name, the flags and the number of rows
    data[count : count + 4] = b"\x7f\xff\xff\xff"
    with pytest.raises(DecodeError, match="packets have a time, 50 a size"):
        decode_pixels(bytes(data), np.array([3]))


def test_whatever_is_damaged_is_an_error_or_a_frame(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", moving_frames(20, 32, 48), fps=12).read_bytes()
    head = data.index(b"moov")
    for seed in range(400):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for place in rng.integers(head, len(data), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        with suppress(DecodeError):
            decode_pixels(bytes(damaged), np.array([3, 17]))
    for length in range(0, len(data), 37):
        with pytest.raises(DecodeError):
            decode_pixels(data[:length], np.array([3]))
