from __future__ import annotations

import os
import wave
from fractions import Fraction
from pathlib import Path

import pytest

from data_prep.sources.probe import Rejected, VideoInfo, inspect
from dynamonet.storage import Folder
from dynamonet.video.files import find_sources, printable
from tests.conftest import REAL_DATA, moving_frames, write_video


def look(path: Path) -> VideoInfo | Rejected:
    folder = Folder.at(str(path.parent))
    (source,) = [s for s in find_sources(folder)[0] if s.path == path.name]
    return inspect(folder, source, min_side_px=16)


def reason(path: Path) -> str:
    found = look(path)
    assert isinstance(found, Rejected)
    return found.reason


def test_the_header_gives_length_rate_size_and_a_digest_of_the_content(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(24, 48, 64), fps=12)
    info = look(path)
    assert isinstance(info, VideoInfo)
    assert (info.fps, info.width, info.height) == (Fraction(12), 64, 48)
    assert info.seconds == pytest.approx(2.0, abs=0.1)
    twin = tmp_path / "b.mp4"
    twin.write_bytes(path.read_bytes())
    assert look(twin) == info


def test_what_is_no_video_is_rejected_with_ffmpegs_reason(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 50)
    whole = write_video(tmp_path / "whole.mp4", moving_frames(24, 48, 64)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / "small.mp4", moving_frames(5, 8, 8)[:, :4, :4])
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 8000)
    (tmp_path / "sound.wav").rename(tmp_path / "sound.avi")
    assert reason(tmp_path / "zero.mp4") == "empty file (0 bytes)"
    assert "Invalid data found" in reason(tmp_path / "text.mp4")
    assert "moov atom not found" in reason(tmp_path / "cut.mp4")
    assert reason(tmp_path / "small.mp4") == "too small: 4 x 4 pixels, min_side_px is 16"
    assert reason(tmp_path / "sound.avi") == "no video stream (found audio)"


def test_a_name_that_is_not_utf8_is_read_and_shown_escaped(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(3, 32, 32))
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    path.rename(strange)
    folder = Folder.at(str(tmp_path))
    ((source,), _) = find_sources(folder)
    assert isinstance(inspect(folder, source, 16), VideoInfo)
    assert printable(source.path) == "caf\\udce9.mp4"


@pytest.mark.real_data
def test_a_container_tag_that_is_not_utf8_does_no_harm() -> None:
    (path,) = (REAL_DATA / "singles/hmdb51/cartwheel").glob("Turnk_r_*.avi")
    info = look(path)
    assert isinstance(info, VideoInfo) and info.fps == 30
