from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dynamonet.video.constant_rate import Damage, TimeRange, constant_rate_frames, output_rate
from dynamonet.video.decode import open_video
from tests.conftest import moving_frames, write_video

WHOLE = TimeRange(Fraction(0), None)


def joined(first: Path, second: Path, target: Path) -> Path:
    """Puts the packets of two videos at 25 frames/s one after the other."""
    with av.open(str(target), "w") as output:
        stream, number = None, 0
        for path in (first, second):
            with av.open(str(path)) as container:
                stream = stream or output.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.time_base = Fraction(1, 25)
                        packet.pts = packet.dts = number
                        packet.stream, number = stream, number + 1
                        output.mux(packet)
    return target


def brightness(
    path: Path, rate: int, short_side_px: int = 32
) -> tuple[list[float], set[tuple[int, int, str]]]:
    with open_video(str(path)) as container:
        frames = list(constant_rate_frames(container, WHOLE, Fraction(rate), short_side_px))
    good = [frame for frame in frames if not isinstance(frame, Damage)]
    assert len(good) == len(frames)
    sizes = {(frame.width, frame.height, frame.format.name) for frame in good}
    return [float(frame.to_ndarray(format="gray").mean()) for frame in good], sizes


def test_a_video_that_changes_size_midway_keeps_its_length_and_first_size(tmp_path: Path) -> None:
    words = {"fps": 25, "codec": "mpeg2video"}
    dark, bright = np.full((25, 48, 64, 3), 20, np.uint8), np.full((25, 64, 96, 3), 220, np.uint8)
    path = joined(
        write_video(tmp_path / "a.ts", dark, **words),  # type: ignore[arg-type]
        write_video(tmp_path / "b.ts", bright, **words),  # type: ignore[arg-type]
        tmp_path / "c.ts",
    )
    values, sizes = brightness(path, 25)
    assert len(values) == 50 and sizes == {(42, 32, "yuv420p")}
    assert max(values[:24]) < 60 and min(values[26:]) > 180


def test_in_a_part_of_a_video_a_jump_of_hours_is_damage(tmp_path: Path) -> None:
    times = [*range(0, 2000, 100), 90_000_000, 90_000_100]
    path = write_video(tmp_path / "a.mkv", moving_frames(22, 48, 64), times=times)
    with open_video(str(path)) as container:
        part = TimeRange(Fraction(0), Fraction(100_000))
        found = list(constant_rate_frames(container, part, Fraction(10), 32))
    damage = [item.reason for item in found if isinstance(item, Damage)]
    assert damage == ["time stamps jump by 89998 s"]
    assert 19 <= len(found) - 1 <= 20


def test_the_rate_is_the_videos_own_up_to_a_limit(tmp_path: Path) -> None:
    assert output_rate(Fraction(30000, 1001), 30.0) == Fraction(30000, 1001)
    assert output_rate(Fraction(60), 30.0) == 30
    path = write_video(tmp_path / "a.mp4", moving_frames(60, 32, 32), fps=60)
    assert len(brightness(path, 30)[0]) == 30
