"""Stage 1 as a user runs it, on real files."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from webdataset.compat import WebDataset

from data_prep.shard import main as shard
from dynamonet.errors import SettingsError, UserError
from dynamonet.shards.shard_set import ShardSet
from dynamonet.video.decode import decode_pixels
from tests.conftest import REAL_DATA, ROOT, moving_frames, stop_driver, write_video

SMALL = "--encode.short_side_px 32 --min_seconds 0.5 --shard_mb 0.02".split()


def prepare(source: Path, output: Path, *words: str) -> ShardSet:
    shard(["--source", str(source), "--output", str(output), *SMALL, *words])
    return ShardSet.open(str(output))


def tars(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.tar"))}


def test_the_index_says_where_each_sample_lies_and_what_it_is(
    shard_set: Path, video_folder: Path
) -> None:
    found = ShardSet.open(str(shard_set))
    rows = found.table.to_pylist()
    assert len(rows) == 12 and len(tars(shard_set)) > 1
    for row in rows:
        with (shard_set / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        assert hashlib.blake2b(data, digest_size=16).hexdigest() == row["digest"]
        pixels = decode_pixels(data, np.arange(row["frames"]))
        assert pixels.shape[:3] == (24, 32, 42) == (row["frames"], row["height"], row["width"])
        source = (video_folder / row["source"]).read_bytes()
        assert hashlib.blake2b(source, digest_size=16).hexdigest() == row["source_digest"]
        assert (row["start_seconds"], row["end_seconds"], row["fps"]) == (0.0, 2.0, 12.0)
        assert row["class_name"] == row["source"].split("/")[0] == found.classes[row["label"]]
        assert row["splits"] in (["train"], ["test"])
    assert found.card.counts.samples == 12 and len(found.digest) == 32
    train = found.rows(split=1, part="train")
    assert 0 < len(train) < 12 and len(train) + len(found.rows(split=1, part="test")) == 12


def test_any_webdataset_program_reads_the_tars(shard_set: Path) -> None:
    names = [str(path) for path in sorted(shard_set.glob("*.tar"))]
    found = WebDataset(names, shardshuffle=False)
    samples = {sample["__key__"]: json.loads(sample["json"]) for sample in found}
    index = ShardSet.open(str(shard_set)).table.to_pylist()
    assert samples.keys() == {row["key"] for row in index}
    for row in index:
        own = {key: value for key, value in row.items() if key not in ("shard", "offset")}
        assert samples[row["key"]] == own


def test_the_run_is_in_mlflow_with_its_digest(shard_set: Path) -> None:
    from mlflow import MlflowClient

    card = json.loads((shard_set / "card.json").read_text())
    run = MlflowClient(card["run"]["tracking_uri"]).get_run(card["run"]["id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dynamonet.stage"] == "data_prep"
    assert run.data.tags["dynamonet.digest"] == card["digest"]
    assert run.data.metrics["samples"] == 12
    assert run.data.params["segment_seconds"] == "10.0"


def test_running_again_makes_only_what_is_missing(
    video_folder: Path, tmp_path: Path, cluster: None
) -> None:
    output = tmp_path / "set"
    first = prepare(video_folder, output)
    before, times = tars(output), {p: p.stat().st_mtime_ns for p in output.glob("*.tar")}
    prepare(video_folder, output)
    assert {p: p.stat().st_mtime_ns for p in output.glob("*.tar")} == times
    lost = sorted(output.glob("*.tar"))[0]
    lost.write_bytes(lost.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"(?s)1,000 bytes instead of .*data_prep/verify.py .* --repair"
    ):
        ShardSet.open(str(output))
    again = prepare(video_folder, output)
    assert tars(output) == before and again.digest == first.digest
    changed = [p for p in output.glob("*.tar") if p.stat().st_mtime_ns != times[p]]
    assert changed == [lost]
    assert again.card.run == first.card.run  # the same content keeps the run that made it


def test_what_cannot_be_used_is_quarantined_and_the_run_goes_on(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    good = write_video(videos / "good.mp4", moving_frames(24, 48, 64), fps=12)
    (videos / "zero.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("words " * 100)
    (videos / "cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    write_video(videos / "one.mp4", moving_frames(1, 48, 64), fps=12)
    write_video(videos / "short.mp4", moving_frames(4, 48, 64), fps=12)
    write_video(videos / "tiny.mp4", moving_frames(24, 8, 8)[:, :4, :4], fps=12)
    (videos / "notes.txt").write_text("not counted as a video")
    found = prepare(videos, tmp_path / "set")
    assert found.table["source"].to_pylist() == ["good.mp4"]
    rows = pq.read_table(tmp_path / "set/quarantine.parquet").to_pylist()
    reasons = {row["source"]: row["reason"] for row in rows}
    assert reasons.keys() == {"zero.mp4", "text.mp4", "cut.mp4", "one.mp4", "short.mp4", "tiny.mp4"}
    assert "moov atom not found" in reasons["cut.mp4"]
    assert reasons["one.mp4"] == "one frame only"
    assert reasons["short.mp4"].startswith("too short")
    counts = found.card.counts
    assert sum(counts.videos_quarantined.values()) == 6
    # of those with a header: good and short, one frame of one
    assert counts.seconds_declared == pytest.approx(2 + 4 / 12 + 1 / 12, abs=0.01)
    assert counts.seconds + counts.seconds_quarantined == pytest.approx(
        counts.seconds_declared, abs=0.01
    )
    printed = capsys.readouterr().out
    assert "too short" in printed and "videos taken" in printed


def test_adding_and_removing_videos_does_the_difference(tmp_path: Path, cluster: None) -> None:
    videos = tmp_path / "videos"
    for number in range(6):
        write_video(videos / f"{number}.mp4", moving_frames(24, 48, 64, seed=number), fps=12)
    first = prepare(videos, tmp_path / "set")
    write_video(videos / "new.mp4", moving_frames(24, 48, 64, seed=9), fps=12)
    (videos / "0.mp4").unlink()
    second = prepare(videos, tmp_path / "set")
    assert set(second.table["source"].to_pylist()) == {
        *(f"{n}.mp4" for n in range(1, 6)),
        "new.mp4",
    }
    assert second.digest != first.digest
    fresh = prepare(videos, tmp_path / "fresh")
    assert tars(tmp_path / "fresh") == tars(tmp_path / "set") and fresh.digest == second.digest


def test_users_mistakes_are_refused_before_anything_is_written(
    video_folder: Path, tmp_path: Path, cluster: None
) -> None:
    with pytest.raises(UserError, match=r"(?s)--source is missing.*ucf101"):
        shard([])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no video found"):
        prepare(empty, tmp_path / "set")
    (empty / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"no video found \(other files: 1 .txt\)"):
        prepare(empty, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    (empty / "a.mp4").write_text("text")
    with pytest.raises(UserError, match=r"(?s)no usable video among 1:.*Invalid data"):
        prepare(empty, tmp_path / "set")
    with pytest.raises(SettingsError, match="dataset: expected"):
        prepare(video_folder, tmp_path / "set", "--dataset", "ucf")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        prepare(video_folder, tmp_path / "file" / "set")


def test_an_output_made_with_other_settings_is_not_touched(
    video_folder: Path, tmp_path: Path, cluster: None
) -> None:
    prepare(video_folder, tmp_path / "set")
    before = tars(tmp_path / "set")
    with pytest.raises(UserError, match=r"(?s)made with other settings:.*segment_seconds: 10.0"):
        prepare(video_folder, tmp_path / "set", "--segment_seconds", "5")
    assert tars(tmp_path / "set") == before


def test_a_set_of_another_version_is_refused(shard_set: Path, tmp_path: Path) -> None:
    card = json.loads((shard_set / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "version": 99}))
    with pytest.raises(
        UserError, match="version 99; this program reads dynamonet-shards versions 1 to 4"
    ):
        ShardSet.open(str(tmp_path))
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        ShardSet.open(str(tmp_path))
    with pytest.raises(UserError, match=r"(?s)no shards here.*data_prep/shard.py --source"):
        ShardSet.open(str(tmp_path / "nothing"))


def test_runs_stopped_midway_end_with_the_same_tars_when_run_again(
    tmp_path: Path, cluster: None
) -> None:
    videos, output = tmp_path / "videos", tmp_path / "set"
    for number in range(40):
        write_video(videos / f"{number}.mp4", moving_frames(96, 96, 128, seed=number), fps=12)
    words = ["--source", str(videos), "--shard_mb", "0.1", "--output"]
    command = [sys.executable, str(ROOT / "data_prep/shard.py"), *words]
    shard([*words, str(tmp_path / "whole")])
    whole = tars(tmp_path / "whole")

    def begun() -> int:
        """Counts the files that are there or growing."""
        return len(list(output.glob("*.tar"))) + len(list(output.glob(".incomplete/*")))

    def stopped(stop: signal.Signals) -> tuple[int, bytes]:
        before = begun()
        running = subprocess.Popen([*command, str(output)], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while begun() <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        error = stop_driver(running, stop)
        # no half-written tar under a final name
        assert tars(output).items() <= whole.items()
        return running.returncode, error

    status, error = stopped(signal.SIGINT)
    assert status == 130 and b"Run the same command again" in error and b"Traceback" not in error
    assert len(tars(output)) < len(whole)
    assert not list(output.glob(".incomplete/*"))
    # the workers of a driver that was killed may write more whole tars before they notice
    assert stopped(signal.SIGKILL)[0] == -signal.SIGKILL
    shard([*words, str(output)])
    assert tars(output) == whole
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) % 2 == 0
    assert ShardSet.open(str(output)).digest == ShardSet.open(str(tmp_path / "whole")).digest


@pytest.mark.real_data
def test_real_videos_of_every_kind_become_shards(tmp_path: Path, cluster: None) -> None:
    words = ["--encode.short_side_px", "64"]
    for name, least in (("awkward", 8), ("singles", 60)):
        found = prepare(REAL_DATA / name, tmp_path / name, *words)
        assert len(found) >= least
        counts = found.card.counts
        assert not counts.videos_quarantined and "no frames" not in counts.stretches_quarantined
        accounted = counts.seconds + counts.seconds_quarantined
        assert accounted == pytest.approx(counts.seconds_declared, abs=counts.videos_found / 24)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("dataset", "lists", "classes", "taken"),
    [
        ("ucf101", "ucfTrainTestlist", 101, 4),
        ("hmdb51", "hmdb51_testTrainMulti_7030_splits", 51, 4),
        ("kinetics400", "kinetics400", 400, 3),
    ],
)
def test_labelled_sets_go_through_their_official_lists(
    tmp_path: Path, cluster: None, dataset: str, lists: str, classes: int, taken: int
) -> None:
    source = REAL_DATA / "singles" / dataset
    words = ["--dataset", dataset, "--lists", str(REAL_DATA / "splits" / lists)]
    found = prepare(source, tmp_path / "set", *words)
    counts = found.card.counts
    assert len(found.classes) == classes and counts.videos_taken == taken
    assert counts.listed_but_missing > 6000 and found.num_splits == (1 if "k" in dataset else 3)
