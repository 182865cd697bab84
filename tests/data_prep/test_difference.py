"""Only the difference: what is finished in an older tar is never encoded again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import builder
from data_prep.shard import main as shard
from data_prep.shards.pieces import encode_piece
from dynamonet.cluster import TwoSteps, in_two_steps
from dynamonet.shards.shard_set import ShardSet
from tests.conftest import moving_frames, write_video

SMALL = "--encode.short_side_px 32 --segment_seconds 1 --min_seconds 0.5".split()
FPS = 12


class Stage:
    """Stage 1 on one folder, with a count of what it encodes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.videos = root, root / "videos"
        self.encoded: list[str] = []

        def counted(
            first: Callable[..., Any], second: Callable[..., Any], work: Iterable[TwoSteps[int]]
        ) -> Iterator[tuple[TwoSteps[int], int | None, Any]]:
            for item, key, result in in_two_steps(first, second, work):
                if key is not None and first is encode_piece:
                    self.encoded.append(item.parts[key][0].source.path)
                yield item, key, result

        monkeypatch.setattr(builder.cluster, "in_two_steps", counted)

    def render(self, name: str, seed: int) -> Path:
        return write_video(self.videos / name, moving_frames(2 * FPS, 48, 64, seed), fps=FPS)

    def run(self, *words: str, output: str = "set") -> tuple[list[str], dict[str, bytes]]:
        """Returns the sources of the pieces that were encoded, and the tars."""
        self.encoded.clear()
        given = ["--source", str(self.videos), "--output", str(self.root / output)]
        shard([*given, *SMALL, "--shard_mb", "0.01", *words])
        tars = {p.name: p.read_bytes() for p in sorted((self.root / output).glob("*.tar"))}
        return sorted(self.encoded), tars

    def blank_all(self) -> None:
        """Empties the videos, so that whatever reads one again would lose it."""
        for path in self.videos.rglob("*.mp4"):
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def stage(tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage(tmp_path, monkeypatch)
    for number in range(8):
        found.render(f"{number}.mp4", number)
    return found


def test_an_added_video_is_all_that_is_encoded(stage: Stage) -> None:
    first, before = stage.run()
    assert {f"{n}.mp4" for n in range(8)} == set(first) and before
    whole = stage.root / "whole"
    shutil.copytree(stage.videos, whole)
    stage.blank_all()
    shutil.copy(stage.render("new.mp4", 99), whole)
    encoded, tars = stage.run()
    assert set(encoded) == {"new.mp4"}
    stage.videos = whole
    assert stage.run(output="fresh")[1] == tars
    assert len(ShardSet.open(str(stage.root / "set"))) == 18


def test_nothing_is_encoded_for_moved_and_removed_videos(stage: Stage) -> None:
    stage.run()
    stage.videos.rename(stage.root / "elsewhere")
    for number in range(8):
        new = stage.videos / f"folder/moved {number}.mp4"
        new.parent.mkdir(parents=True, exist_ok=True)
        (stage.root / f"elsewhere/{number}.mp4").rename(new)
    encoded, moved = stage.run()
    assert not encoded and moved == stage.run(output="fresh moved")[1]
    (stage.videos / "folder/moved 3.mp4").unlink()
    encoded, fewer = stage.run()
    assert not encoded and fewer == stage.run(output="fresh fewer")[1]
    names = ShardSet.open(str(stage.root / "set")).table["source"].to_pylist()
    assert set(names) == {f"folder/moved {n}.mp4" for n in range(8) if n != 3}


def test_a_set_that_grows_and_shrinks_is_divided_anew_without_encoding(stage: Stage) -> None:
    _, few = stage.run()
    for number in range(8, 24):
        stage.render(f"{number}.mp4", number)
    encoded, many = stage.run()
    assert set(encoded) == {f"{n}.mp4" for n in range(8, 24)}
    assert not few.keys() & many.keys()  # another number of tars
    assert many == stage.run(output="fresh")[1]
    for number in range(8, 24):
        (stage.videos / f"{number}.mp4").unlink()
    encoded, again = stage.run()
    assert not encoded and again == few


def test_what_is_damaged_in_an_older_tar_is_not_taken_over(stage: Stage) -> None:
    _, before = stage.run()
    path = stage.root / "set" / next(iter(before))
    row = next(
        row
        for row in ShardSet.open(str(stage.root / "set")).table.to_pylist()
        if row["shard"] == path.name
    )
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 1
    path.write_bytes(data)
    (stage.videos / row["source"]).rename(stage.videos / "renamed.mp4")  # its tar is made anew
    assert stage.run()[1] == stage.run(output="fresh")[1]


def test_the_pieces_of_one_tar_are_tasks_of_their_own(stage: Stage) -> None:
    encoded, tars = stage.run("--shard_mb", "16")
    assert len(encoded) == 8 and len(tars) == 1
