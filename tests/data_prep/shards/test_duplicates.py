"""Copies: of files, of segments, and of the segments of a set that must not be trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import verify
from data_prep.integrity.check_set import check_set
from data_prep.shard import main as shard
from data_prep.shards import duplicates
from data_prep.shards.duplicates import decide
from dynamonet.copies.matching import Match
from dynamonet.errors import UserError
from dynamonet.shards.card import ExcludedSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from tests.conftest import write_video
from tests.dynamonet.copies.test_matching import COPIES, FPS, encoded, motion_video

SMALL = "--encode.short_side_px 64 --min_seconds 0.5 --shard_mb 0.02".split()


def test_the_first_of_a_group_stays_and_an_excluded_one_decides() -> None:
    near, far = Match(1.0, 1.0), Match(5.0, 1.0)
    # 0 is excluded; 1, 2 and 3 are alike, and 3 is also like 0; 4 is only like a copy
    matches = {2: [(1, far)], 3: [(1, near), (2, near), (0, far)], 4: [(2, near)]}
    assert decide(5, 1, matches) == {2: (1, far), 3: (0, far)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, two copies of the first two, and one file twice."""
    folder = tmp_path_factory.mktemp("copies")
    for number in range(6):
        data = encoded(motion_video(number))
        (folder / f"{number}.mp4").write_bytes(data)
    (folder / "7.mp4").write_bytes(COPIES["cropped"](motion_video(0)))
    (folder / "8.mp4").write_bytes(COPIES["all of it"](motion_video(1)))
    shutil.copy(folder / "2.mp4", folder / "9.mp4")
    return folder


def made(source: Path, output: Path, *words: str) -> ShardSet:
    shard(["--source", str(source), "--output", str(output), *SMALL, *words])
    return ShardSet.open(str(output))


def taken(shards: ShardSet) -> set[str]:
    return set(shards.table["source"].to_pylist())


def reasons(output: Path) -> dict[str, str]:
    rows = pq.read_table(output / "quarantine.parquet").to_pylist()
    return {row["source"]: row["reason"] for row in rows}


ALL = {f"{number}.mp4" for number in (*range(6), 7, 8)}


def test_copies_are_reported_or_dropped_without_new_tars(
    videos: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    reported = made(videos, output)
    assert taken(reported) == ALL
    assert reasons(output) == {"9.mp4": "same content as 2.mp4"}
    table = pq.read_table(output / "duplicates.parquet").to_pylist()
    assert {(row["source"], row["of_source"]) for row in table} == {
        ("7.mp4", "0.mp4"),
        ("8.mp4", "1.mp4"),
    }
    assert reported.card.counts.near_duplicates == 2
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}

    dropped = made(videos, output, "--near_duplicates", "drop")
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.tar")} == times
    assert taken(dropped) == ALL - {"7.mp4", "8.mp4"} and dropped.digest != reported.digest
    row = next(row for row in dropped.table.to_pylist() if row["source"] == "0.mp4")
    reason = reasons(output)["7.mp4"]
    assert reason.startswith(f"near duplicate: like {row['key']} of 0.mp4, ")
    assert dropped.card.counts.samples == sum(dropped.tars["samples"].to_pylist()) == 6
    assert "near duplicate" in capsys.readouterr().out
    assert not check_set(Folder.at(str(output)), decode=False, on_progress=lambda *_: None).problems

    off = made(videos, output, "--near_duplicates", "off")
    assert taken(off) == ALL and off.digest == reported.digest
    assert not pq.read_table(output / "duplicates.parquet").num_rows


def test_a_set_of_many_blocks_has_the_same_copies(
    videos: Path, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "set"
    small = ["--shard_mb", "0.002"]  # 32 tars: where segments fall depends on the encoder's bytes
    made(videos, output, *small)
    once = pq.read_table(output / "duplicates.parquet")
    assert len(list(output.glob("*.tar"))) > 2 and once.num_rows == 2
    monkeypatch.setattr(duplicates, "BLOCK_SECONDS", 1.0)  # a tar is a block
    made(videos, output, *small)
    assert pq.read_table(output / "duplicates.parquet") == once


def test_the_tables_of_copies_are_repaired_from_the_fingerprints(
    videos: Path, tmp_path: Path, cluster: None
) -> None:
    output = tmp_path / "set"
    made(videos, output, "--near_duplicates", "drop")
    before = {path.name: path.read_bytes() for path in output.glob("*.parquet")}
    for name in before:
        (output / name).unlink()
    with pytest.raises(UserError, match="problems"):
        verify.main([str(output), "--no-decode"])
    verify.main([str(output), "--no-decode", "--repair"])
    assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == before
    table = pq.read_table(output / "duplicates.parquet")
    pq.write_table(table.slice(1), output / "duplicates.parquet")
    verify.main([str(output), "--no-decode", "--repair"])
    assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == before


def test_copies_of_an_excluded_test_set_are_kept_out(
    videos: Path, tmp_path: Path, cluster: None
) -> None:
    labelled = tmp_path / "labelled"
    for number in (3, 4):
        data = COPIES["trimmed"](motion_video(number))
        (labelled / "class").mkdir(parents=True, exist_ok=True)
        (labelled / f"class/{number}.mp4").write_bytes(data)
    tests = made(labelled, tmp_path / "tests", "--dataset", "folder")
    words = ["--exclude", str(tmp_path / "tests"), "--near_duplicates", "off"]
    clean = made(videos, tmp_path / "set", *words)
    assert taken(clean) == ALL - {"3.mp4", "4.mp4"}
    reason = reasons(tmp_path / "set")["3.mp4"]
    assert reason.startswith(f"in an excluded set, {tmp_path}/tests: like ")
    assert "class/3.mp4" in reason
    assert clean.card.counts.in_excluded_sets == 2
    path = str(tmp_path / "tests")
    assert clean.card.excluded == (ExcludedSet(name="tests", path=path, digest=tests.digest),)
    uses = [(use["context"], use["digest"]) for use in (clean.card.run or {})["datasets"]]
    assert uses == [("output", clean.digest), ("excluded", tests.digest)]
    kept = tmp_path / "set/records/fingerprints"
    assert not [path for path in kept.iterdir() if tests.digest in path.name]  # that set has them
    shutil.rmtree(tmp_path / "tests/records")
    again = made(videos, tmp_path / "set", *words)
    assert again.card.run == clean.card.run
    files = {path: path.stat().st_mtime_ns for path in kept.iterdir() if tests.digest in path.name}
    assert files and not (tmp_path / "tests/records").exists()  # nothing is written into it
    made(videos, tmp_path / "set", *words)
    assert {path: path.stat().st_mtime_ns for path in files} == files  # made once
    made(videos, tmp_path / "set")
    assert not [path for path in files if path.exists()]


def test_an_excluded_set_of_which_the_index_leaves_segments_out_needs_no_new_fingerprints(
    videos: Path, tmp_path: Path, cluster: None
) -> None:
    tests = made(videos, tmp_path / "tests", "--near_duplicates", "drop")
    assert tests.card.counts.near_duplicates
    with pytest.raises(UserError, match="no usable segment"):
        made(videos, tmp_path / "set", "--exclude", str(tmp_path / "tests"))
    kept = tmp_path / "set/records/fingerprints"
    assert not [path for path in kept.iterdir() if tests.digest in path.name]


def test_an_excluded_set_that_is_none_is_refused_before_anything_is_written(
    videos: Path, tmp_path: Path, cluster: None
) -> None:
    with pytest.raises(UserError, match="no shards here"):
        made(videos, tmp_path / "set", "--exclude", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="is the set being made"):
        made(videos, tmp_path / "set", "--exclude", str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_one_file_under_two_labels_is_taken_once_and_said(tmp_path: Path, cluster: None) -> None:
    videos = tmp_path / "videos"
    write_video(videos / "a/x.mp4", motion_video(0), fps=FPS)
    write_video(videos / "b/z.mp4", motion_video(1), fps=FPS)
    shutil.copy(videos / "a/x.mp4", videos / "b/y.mp4")
    found = made(videos, tmp_path / "set", "--dataset", "folder")
    assert taken(found) == {"a/x.mp4", "b/z.mp4"}
    assert "another label" in reasons(tmp_path / "set")["b/y.mp4"]
    card = json.loads((tmp_path / "set/card.json").read_text())
    assert card["counts"]["videos_quarantined"] == {"same content as": 1}


def test_a_set_of_which_the_filters_keep_nothing_has_no_copies(
    videos: Path, tmp_path: Path, cluster: None
) -> None:
    with pytest.raises(UserError, match="no usable segment"):
        made(videos, tmp_path / "set", "--filters.min_brightness", "1")
