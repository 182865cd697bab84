"""Every second of a source is in a segment or in the quarantine, whatever its file is like."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from av.container import InputContainer
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from data_prep.reasons import Rejected
from data_prep.settings import PrepSettings
from data_prep.shards.manifest import Inspected, read_record
from data_prep.shards.plan import plan_shards
from data_prep.shards.tables import quarantine_table
from data_prep.shards.writer import build_shard
from data_prep.sources.probe import VideoInfo, _DigestedReader, inspect, read_header
from dynamonet import child_process
from dynamonet.child_process import ChildFailed, Limits, heartbeat, stream
from dynamonet.digest import digest_of_bytes
from dynamonet.shards import index
from dynamonet.storage import Folder
from dynamonet.video import files
from dynamonet.video.files import find_sources
from tests.conftest import moving_frames, write_video

FPS = 12
SETTINGS = PrepSettings(segment_seconds=1.0, min_seconds=0.0)


class Made:
    """What stage 1 makes of a folder, less the search for copies."""

    def __init__(self, videos: Path, output: Path, **more: float) -> None:
        settings = SETTINGS.model_copy(update=more)
        folder = Folder.at(str(videos))
        self.inspected = []
        for source in find_sources(folder)[0]:
            found = inspect(folder, source, 16)
            rejected = found if isinstance(found, Rejected) else None
            self.inspected.append(
                Inspected(source, None if isinstance(found, Rejected) else found, rejected)
            )
        usable = [(item.source, item.info) for item in self.inspected if item.info]
        self.rows, quarantines = [], []
        plans = plan_shards(usable, {}, [], settings) if usable else []
        self.num_pieces = sum(len(plan.pieces) for plan in plans)
        for plan in plans:
            build_shard(plan, str(videos), str(output), settings)
            record = read_record(Folder.at(str(output)), plan.name)
            assert record is not None
            self.rows += record.rows.to_pylist()
            quarantines.append(record.quarantine)
        none = index.DUPLICATES_SCHEMA.empty_table()
        self.lost = quarantine_table(self.inspected, quarantines, none).to_pylist()

    @property
    def frames(self) -> int:
        return sum(row["frames"] for row in self.rows)

    @property
    def lost_seconds(self) -> float:
        return sum((row["end_seconds"] or 0) - (row["start_seconds"] or 0) for row in self.lost)

    @property
    def kinds(self) -> set[str]:
        return {kind for row in self.rows for kind in row["normalised"]}

    def info(self) -> VideoInfo:
        (item,) = self.inspected
        assert item.info is not None
        return item.info


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_two_transport_streams_that_were_joined_are_both_taken(
    tmp_path: Path, videos: Path
) -> None:
    one = write_video(tmp_path / "one.ts", moving_frames(48, 48, 64, seed=1), fps=FPS)
    two = write_video(tmp_path / "two.ts", moving_frames(36, 48, 64, seed=2), fps=FPS)
    joined(videos / "camera.ts", one, two)
    made = Made(videos, tmp_path / "set")
    assert made.frames == 84 and not made.lost
    assert "jumping_times" in made.kinds
    assert made.info().seconds == pytest.approx(7.0, abs=0.1) and not made.info().steady


@pytest.mark.parametrize("codec, ending", [("libx264", "h264"), ("libx265", "hevc")])
def test_streams_without_time_stamps_are_taken_at_a_guessed_rate(
    tmp_path: Path, videos: Path, codec: str, ending: str
) -> None:
    write_video(videos / f"raw.{ending}", moving_frames(50, 48, 64), fps=25, codec=codec)
    made = Made(videos, tmp_path / "set")
    assert made.frames == 50 and not made.lost
    assert "guessed_times" in made.kinds


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_what_a_header_promises_beyond_the_end_is_in_the_quarantine(
    tmp_path: Path, videos: Path, ending: str
) -> None:
    path = videos / f"cut.{ending}"
    write_video(path, moving_frames(96, 48, 64), fps=FPS)
    if ending == "mp4":
        with av.open(str(path)) as given:
            copied_to_the_front(given, tmp_path / "front.mp4")
        path.write_bytes((tmp_path / "front.mp4").read_bytes())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    made = Made(videos, tmp_path / "set")
    assert 12 <= made.frames < 72
    assert made.frames / FPS + made.lost_seconds == pytest.approx(8.0, abs=1.5 / FPS)
    assert any(row["reason"].startswith("ends early") for row in made.lost)


def test_uneven_frames_are_shown_across_the_borders_of_pieces(tmp_path: Path, videos: Path) -> None:
    draw = np.random.default_rng(0)
    gaps = draw.choice([40, 80, 300, 700], size=119)
    times = [0, *(int(at) for at in np.cumsum(gaps))]
    noise = draw.integers(0, 255, (120, 48, 64, 3), np.uint8)
    write_video(videos / "uneven.mkv", noise, times=times)
    whole = Made(videos, tmp_path / "whole")
    pieces = Made(videos, tmp_path / "pieces", shard_mb=0.05)
    assert pieces.num_pieces > 3 and not whole.lost and not pieces.lost
    assert whole.frames / FPS == pytest.approx(whole.info().seconds, abs=1 / FPS)
    digests = [{row["key"]: row["digest"] for row in made.rows} for made in (whole, pieces)]
    assert digests[0] == digests[1]


def test_a_wild_time_stamp_costs_no_frame(tmp_path: Path, videos: Path) -> None:
    path = write_video(tmp_path / "good.ts", moving_frames(48, 48, 64), fps=FPS)
    with av.open(str(path)) as given, av.open(str(videos / "wild.ts"), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            if packet.dts is not None and packet.pts is not None:
                packet.pts += round(40 / packet.time_base) if number == 20 else 0
                packet.stream = stream
                container.mux(packet)
    made = Made(videos, tmp_path / "set")
    assert not made.info().steady and "jumping_times" in made.kinds and made.frames >= 48


def copied_to_the_front(given: InputContainer, path: Path) -> None:
    """Copies a file so that its header stands before its packets."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)


def test_of_several_streams_the_best_is_taken_and_told(tmp_path: Path, videos: Path) -> None:
    with av.open(str(videos / "two.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=FPS) for _ in range(2)]
        for stream, side in zip(streams, (32, 96), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for t in range(24):
            for stream in streams:
                picture = np.full((stream.height, stream.width, 3), 8 * t, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = t, Fraction(1, FPS)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    made = Made(videos, tmp_path / "set")
    assert {row["width"] for row in made.rows} == {96} and "other_streams" in made.kinds


def test_the_alpha_of_webm_is_laid_over_black(tmp_path: Path, videos: Path) -> None:
    with av.open(str(videos / "clear.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=FPS)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for t in range(24):
            picture = np.full((64, 64, 4), 255, np.uint8)
            picture[:, :32, 3] = 0  # the left half is clear
            picture[t, :, :3] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = t, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    made = Made(videos, tmp_path / "set")
    assert made.kinds >= {"alpha"} and made.frames == 24
    assert made.rows[0]["brightness"] == pytest.approx(0.5, abs=0.05)


def test_links_that_lead_nowhere_and_pipes_are_told(tmp_path: Path, videos: Path) -> None:
    write_video(videos / "good.mp4", moving_frames(24, 48, 64), fps=FPS)
    (videos / "lost.mp4").symlink_to(tmp_path / "not mounted/lost.mp4")
    os.mkfifo(videos / "pipe.mp4")
    made = Made(videos, tmp_path / "set")
    assert made.frames == 24
    reasons = {row["source"]: row["reason"] for row in made.lost}
    assert reasons == {"lost.mp4": "a link that leads nowhere", "pipe.mp4": "not a file"}


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile 'good.mp4'\n", "#EXTM3U\ngood.mp4\n"])
def test_a_list_of_other_files_is_no_video(tmp_path: Path, videos: Path, text: str) -> None:
    write_video(videos / "good.mp4", moving_frames(24, 48, 64), fps=FPS)
    (videos / "list.mp4").write_text(text)
    made = Made(videos, tmp_path / "set")
    assert {row["source"] for row in made.rows} == {"good.mp4"}
    (lost,) = made.lost
    assert lost["source"] == "list.mp4"
    assert lost["reason"] == "a list of other files, not a video" or "EXTM3U" in text


def slow_but_steady() -> Iterator[int]:
    for number in range(100):
        time.sleep(0.05)
        heartbeat()
        yield number


def test_a_slow_but_steady_decoder_is_stopped() -> None:
    child_process._end()
    limits = Limits(stall_seconds=5, video_seconds=0.5)
    taken = []
    with pytest.raises(ChildFailed, match=r"not done after 0\.5 s"):
        taken += list(stream(slow_but_steady, limits=limits))
    assert len(taken) < 100


def test_labelled_sets_keep_all_that_their_lists_name() -> None:
    for config in (None, "tiny"):
        given = PrepSettings.from_config(config) if config else PrepSettings()
        labelled = PrepSettings.model_validate(
            given.model_dump(exclude_unset=True) | {"dataset": "folder"}
        )
        assert all(value is None for value in vars(labelled.filters).values())
        assert labelled.min_seconds == 0.1
    asked = PrepSettings.model_validate({"dataset": "folder", "filters": {"min_motion": 0.1}})
    assert asked.filters.min_motion == 0.1 and asked.filters.max_static_share is None


class Far:
    """A folder whose files are read as an object store's are, by requests that are counted."""

    def __init__(self, root: Path) -> None:
        requests: list[int] = []

        class Counted(io.FileIO):
            def read(self, size: int | None = -1) -> bytes:
                data = super().read(-1 if size is None else size) or b""
                requests.append(len(data))
                return data

        class Store(pafs.FSSpecHandler):
            def open_input_file(self, path: str) -> pa.PythonFile:
                return pa.PythonFile(Counted(path), mode="r")

        self.requests = requests
        self.folder = Folder("store", pafs.PyFileSystem(Store(LocalFileSystem())), str(root))
        (self.source,), _ = find_sources(Folder.at(str(root)))


@pytest.fixture
def far(videos: Path) -> Far:
    noise = np.random.default_rng(0).integers(0, 255, (24, 240, 320, 3), np.uint8)
    write_video(videos / "far.mp4", noise, fps=FPS)
    found = Far(videos)
    assert not found.folder.is_local and found.source.size > 500_000
    return found  # FFmpeg reads 32 kB at a time


@pytest.mark.parametrize("whole_bytes, most", [(0, 6), (64 << 20, 2)])
def test_a_remote_source_is_fetched_in_few_requests(
    far: Far, monkeypatch: pytest.MonkeyPatch, whole_bytes: int, most: int
) -> None:
    monkeypatch.setattr(files, "WHOLE_BYTES", whole_bytes)
    with files.open_source(far.folder, far.source) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24
    assert len(far.requests) <= most


@pytest.mark.parametrize("whole_bytes", [0, 64 << 20])
def test_a_remote_source_is_hashed_as_its_header_is_read(
    far: Far, videos: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(files, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 16)
    here = inspect(Folder.at(str(videos)), far.source, 16)
    assert read_header(far.folder, far.source, None, 16) == here
    assert sum(far.requests) <= 1.5 * far.source.size


def test_the_digest_of_a_file_is_the_same_in_whatever_order_it_is_read() -> None:
    data = np.random.default_rng(0).bytes(10_000)
    file = _DigestedReader(io.BytesIO(data))
    for place, size in ((0, 100), (9_000, 1_000), (50, 3_000), (5_000, 100), (3_050, 1)):
        file.seek(place)
        assert file.read(size) == data[place : place + size]
    assert file.digest() == digest_of_bytes(data)
