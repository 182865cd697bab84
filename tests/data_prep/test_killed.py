"""Stage 1 on files that crash, hang or blow up the decoder, and on files that were videos."""

from __future__ import annotations

import resource
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.mutants import lost, render_formats, write_mutants
from data_prep import verify
from data_prep.integrity.check_tar import check_tar
from data_prep.reasons import Rejected, RejectReason
from data_prep.settings import EncodeSettings, PrepSettings
from data_prep.shard import main as shard
from data_prep.shards.manifest import Record, read_record
from data_prep.shards.plan import ShardPlan, plan_shards
from data_prep.shards.writer import build_shard
from data_prep.sources.probe import VideoInfo, inspect
from dynamonet import child_process
from dynamonet.child_process import Limits
from dynamonet.errors import UserError
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from dynamonet.video.files import find_sources
from tests.conftest import moving_frames, write_video

LIMITS = Limits(stall_seconds=3.0, memory_mb=300)
SETTINGS = PrepSettings(
    segment_seconds=1.0,
    min_seconds=0.5,
    encode=EncodeSettings(short_side_px=32),
    limits=LIMITS,
)


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children whose decoder crashes on files named crash*, and never ends on hang*."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison/sitecustomize.py").write_text(
        "import os, signal\n"
        "from dynamonet.video import constant_rate\n"
        "decode = constant_rate._decode\n"
        "count = {}\n"
        "def poisoned(packet, decoder):\n"
        "    name = os.path.basename(packet.stream.container.name)\n"
        "    count[name] = count.get(name, 0) + 1\n"
        "    if count[name] > 20 and name.startswith('crash'):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    while count[name] > 20 and name.startswith('hang'):\n"
        "        pass\n"
        "    return decode(packet, decoder)\n"
        "constant_rate._decode = poisoned\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "poison"))
    child_process._end()  # children that began before know no poison


@pytest.fixture(autouse=True)
def fresh_children() -> None:
    child_process._end()


def plan(videos: Path) -> ShardPlan:
    folder = Folder.at(str(videos))
    looked = [(s, inspect(folder, s, 16, LIMITS)) for s in find_sources(folder)[0]]
    usable = [(source, info) for source, info in looked if isinstance(info, VideoInfo)]
    (only,) = plan_shards(usable, {}, [], SETTINGS)
    return only


def build(videos: Path, output: Path) -> Record:
    found = plan(videos)
    build_shard(found, str(videos), str(output), SETTINGS)
    record = read_record(Folder.at(str(output)), found.name)
    assert record
    return record


def samples(folder: Path) -> dict[str, bytes]:
    (path,) = folder.glob("*.tar")
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


@pytest.mark.slow
def test_files_that_crash_or_hang_the_decoder_are_quarantined_and_the_others_made(
    tmp_path: Path, poison: None
) -> None:
    videos = tmp_path / "videos"
    for name in ("a", "b", "crash", "hang"):
        write_video(videos / f"{name}.mp4", moving_frames(30, 48, 64, seed=len(name)), fps=12)
    record = build(videos, tmp_path / "set")
    rows = [(row["source"], row["start_seconds"]) for row in record.rows.to_pylist()]
    whole = [(name, at) for name in ("a.mp4", "b.mp4") for at in (0.0, 1.0, 2.0)]
    assert sorted(rows) == [*whole, ("crash.mp4", 0.0), ("hang.mp4", 0.0)]  # all before the poison
    lost = {row.pop("source"): row for row in record.quarantine.to_pylist()}
    assert lost["crash.mp4"]["reason"] == "crashed the decoder (SIGSEGV)"
    assert lost["hang.mp4"]["reason"] == "no progress for 3 s"
    assert {(row["start_seconds"], row["end_seconds"]) for row in lost.values()} == {(1.0, 2.5)}
    for name in ("crash", "hang"):
        (videos / f"{name}.mp4").unlink()
    build(videos, tmp_path / "clean")
    made = samples(tmp_path / "set")
    assert {key: made[key] for key in samples(tmp_path / "clean")} == samples(tmp_path / "clean")


def test_a_picture_too_large_for_memory_is_quarantined(tmp_path: Path) -> None:
    render_formats(tmp_path / "formats")
    videos = tmp_path / "videos"
    videos.mkdir()
    gif = bytearray((tmp_path / "formats/picture.gif").read_bytes())
    gif[6:10] = (16_000).to_bytes(2, "little") * 2
    (videos / "bomb.gif").write_bytes(gif)
    shutil.copy(tmp_path / "formats/h264.mp4", videos)
    record = build(videos, tmp_path / "set")
    assert set(record.rows["source"].to_pylist()) == {"h264.mp4"}
    assert {row["source"] for row in record.quarantine.to_pylist()} == {"bomb.gif"}
    assert "memory" in record.quarantine["reason"][0].as_py()


def test_a_header_that_hangs_or_lies_costs_its_file_alone(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", moving_frames(30, 48, 64), fps=12)
    data = bytearray(path.read_bytes())
    for box in (b"mdhd", b"mvhd"):
        at = data.index(box) + 4 + 16
        data[at : at + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(data)
    info = inspect(Folder.at(str(tmp_path)), find_sources(Folder.at(str(tmp_path)))[0][0], 16)
    assert isinstance(info, VideoInfo) and info.seconds <= len(data) / 1000


def test_time_stamps_that_jump_for_hours_make_no_endless_segment(tmp_path: Path) -> None:
    times = [*range(0, 2000, 100), 90_000_000, 90_000_100]
    write_video(tmp_path / "videos/a.mkv", moving_frames(22, 48, 64), times=times)
    record = build(tmp_path / "videos", tmp_path / "set")
    (last,) = record.quarantine.to_pylist()  # what came after the jump follows what came before
    assert last["reason"].startswith("too short") and last["end_seconds"] < 2.5
    assert record.rows.num_rows == 2
    assert all(row["end_seconds"] <= 2.5 for row in record.rows.to_pylist())


def test_a_sample_that_crashes_the_decoder_is_a_problem_of_its_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "videos/a.mp4", moving_frames(30, 48, 64), fps=12)
    record = build(tmp_path / "videos", tmp_path / "set")
    known = (record.rows, set(), SETTINGS.filters, True)
    assert check_tar(str(tmp_path / "set"), "shard-00000-of-00001.tar", *known).frames == 30
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison/sitecustomize.py").write_text(
        "from av import video\nfrom data_prep.integrity import check_tar\n"
        "def poisoned(container): import os; os.abort()\n"
        "check_tar.video_stream = poisoned\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "poison"))
    child_process._end()
    report = check_tar(str(tmp_path / "set"), "shard-00000-of-00001.tar", *known)
    assert [p.found for p in report.problems] == ["crashed the decoder (SIGABRT)"] * 3


def test_files_that_were_videos_are_taken_or_quarantined_with_a_reason(
    tmp_path: Path, cluster: None
) -> None:
    originals = render_formats(tmp_path / "whole")
    videos = tmp_path / "videos"
    write_mutants(originals, videos, 40)
    for path in originals:
        shutil.copy(path, videos)
    words = "--encode.short_side_px 32 --segment_seconds 1 --min_seconds 0.5 --shard_mb 0.05"
    words += " --limits.stall_seconds 20"
    shard([*words.split(), "--source", str(videos), "--output", str(tmp_path / "set")])
    taken = set(ShardSet.open(str(tmp_path / "set")).table["source"].to_pylist())
    rows = pq.read_table(tmp_path / "set/quarantine.parquet").to_pylist()
    assert not lost(videos, tmp_path / "set")
    verify.main([str(tmp_path / "set"), "--no-decode"])
    # a change that changed nothing is a second copy of the same file, of which one is taken
    same = {row["source"] for row in rows if row["kind"] == RejectReason.SAME_CONTENT}
    assert {path.name for path in originals} <= taken | same
    assert 5 < len({row["source"] for row in rows}) < 40


def test_a_sound_file_is_told_apart_in_a_child(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_frames(3, 32, 32)).rename(tmp_path / "a.strange")
    (tmp_path / "b.strange").write_text("words")
    found, others = find_sources(Folder.at(str(tmp_path)))
    assert [source.path for source in found] == ["a.strange"] and others[".strange"] == 1
    assert not isinstance(inspect(Folder.at(str(tmp_path)), found[0], 16), Rejected)


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # of the tar that was left open
def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for number in range(4):
        write_video(videos / f"{number}.mp4", moving_frames(30, 48, 64, seed=number), fps=12)
    build(videos, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as a quota
    try:
        with pytest.raises(UserError, match=r"File too large while shard-.*\.tar was written"):
            build(videos, tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    build(videos, tmp_path / "set")
    assert samples(tmp_path / "set") == samples(tmp_path / "whole")
