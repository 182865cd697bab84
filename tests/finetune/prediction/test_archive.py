"""An archive's features, in parts: the same as of single videos, nothing twice, nothing lost."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from av.container import InputContainer

from dynamonet.errors import UserError
from dynamonet.model.numbers import NUMBERS
from dynamonet.video.files import VideoFile
from finetune import search
from finetune.predict import main as predict
from finetune.prediction import archive
from finetune.prediction.archive import Embedded
from finetune.prediction.writers import part_files
from tests.conftest import moving_frames, write_video
from tests.finetune.prediction.test_predict import save_model

WORDS = ["--precision", "fp32", "--device", "cpu", "--batch_size", "4"]


@pytest.fixture
def bare(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "bare", None))


def embed(model: str, *words: object) -> Embedded:
    found = predict([model, *map(str, words), *WORDS])
    assert isinstance(found, Embedded)
    return found


def rows_of(place: Path) -> Iterator[dict[str, Any]]:
    for file in part_files(place) if place.is_dir() else [place]:
        yield from pq.read_table(file).to_pylist()


def test_an_archive_has_the_features_of_its_videos_and_grows_with_it(
    bare: str, video_folder: Path, tmp_path: Path, cluster: None
) -> None:
    place, single = tmp_path / "features", tmp_path / "single.parquet"
    few = [video_folder / "left", "--features", place]
    assert embed(bare, *few).done == 6
    assert embed(bare, *few).done_before == 6 and len(part_files(place)) == 1
    found = embed(bare, video_folder, "--features", place)
    assert (found.done, found.done_before, len(part_files(place))) == (6, 6, 2)
    predict([bare, str(video_folder), "--features", str(single), *WORDS])
    by_time = {(row["path"], row["start_seconds"]): row for row in rows_of(place)}
    wanted = list(rows_of(single))
    assert len(by_time) == len(wanted) == found.windows * 2 > 12
    for row in wanted:
        own = by_time[row["path"], row["start_seconds"]]
        assert own["end_seconds"] == row["end_seconds"]
        assert row["speed_mean"] > 0
        for part in ("features", "dmr", *(number.name for number in NUMBERS)):
            np.testing.assert_allclose(own[part], row[part], atol=1e-4)
    hits = {}
    for source in (place, single):
        query = ["--query", str(video_folder / "left/plain.mp4")]
        hits[source] = search.main(["nearest", str(source), *query, "--top", "4"])
    assert [hit.path for hit in hits[place]] == [hit.path for hit in hits[single]]
    with pytest.raises(UserError, match="made with another windows, clips or crops"):
        embed(bare, *few, "--crops", "3")
    other = str(save_model(tmp_path / "other", ["a", "b"]))
    with pytest.raises(UserError, match=r"made with another model, by \S+/bare"):
        embed(other, *few)
    with (place / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            embed(bare, video_folder / "left", "--features", place, "--overwrite")
    with pytest.raises(UserError, match="--output: of videos"):
        embed(bare, *few, "--output", tmp_path / "o.csv")


def test_segments_of_a_shard_set_stand_where_they_lie_in_their_videos(
    bare: str, video_folder: Path, shard_set: Path, tmp_path: Path, cluster: None
) -> None:
    found = embed(bare, shard_set, "--features", tmp_path / "features")
    index = pq.read_table(shard_set / "index.parquet")
    assert found.done == len(index) and not found.failed
    rows = list(rows_of(tmp_path / "features"))
    assert {row["path"] for row in rows} == {
        str(video_folder / source) for source in index["source"].to_pylist()
    }
    assert min(row["start_seconds"] for row in rows) == 0
    again = embed(bare, shard_set, "--features", tmp_path / "features")
    assert again.done_before == len(index) and not again.done


@dataclass(frozen=True)
class Deadly(VideoFile):
    """A video that ends the process which reads it, as a defect in a decoder does."""

    def open(self) -> InputContainer:
        os._exit(1)


def test_what_cannot_be_read_is_named_and_takes_no_other_with_it(
    bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None
) -> None:
    videos, place = tmp_path / "videos", tmp_path / "features"
    for number in range(3):
        write_video(videos / f"{number}.mp4", moving_frames(12, 48, 64, seed=number))
    (videos / "broken.mp4").write_bytes(b"no video")
    plain = archive.find_units

    def with_a_deadly_one(places: list[str]) -> Any:
        units, failed = plain(places)
        videos = [unit for unit in units if isinstance(unit, VideoFile)]
        kinds = [Deadly if video.name.endswith("1.mp4") else VideoFile for video in videos]
        made = [k(v.name, v.folder, v.source) for k, v in zip(kinds, videos, strict=True)]
        return made, failed

    monkeypatch.setattr(archive, "find_units", with_a_deadly_one)
    with pytest.raises(UserError, match=r"(?s)2 could not be read, e\.g\. .*failed\.csv"):
        embed(bare, videos, "--features", place)
    assert {Path(row["path"]).name for row in rows_of(place)} == {"0.mp4", "2.mp4"}
    failed = (place / "failed.csv").read_text()
    assert re.search(r"1\.mp4,.*crash", failed) and "broken.mp4," in failed
    monkeypatch.undo()
    (videos / "broken.mp4").unlink()
    found = embed(bare, videos, "--features", place)
    assert (found.done, found.done_before) == (1, 2) and not (place / "failed.csv").exists()
