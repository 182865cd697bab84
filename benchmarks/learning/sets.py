"""The labelled sets of the learning benchmark and the pool that is pretrained on, as shards.

Every clip of a set is tested once: split k tests on fold k. Split k of the pool leaves out fold k
of every set, so that no test clip is pretrained on, not even without its label.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.shard import main as shard
from demo.motion_videos import write_motion_videos
from dynamonet.errors import UserError
from dynamonet.shards.card import CARD
from dynamonet.storage import Folder
from dynamonet.video.files import find_sources

REAL = ("fights", "weizmann")  # each has a split.csv of path, class, group, fold
UNLABELLED = "unlabelled"
POOL, MOTION = "pool", "motion"
_ALWAYS_TRAINED_ON = 3  # the fold after the three that are tested
_SHARDED = "--encode.short_side_px 64 --encode.crf 18 --min_seconds 0.2 --near_duplicates off"


class Video(NamedTuple):
    """A line of the CSV that stage 1 reads."""

    path: str
    label: str
    group: str
    fold: int


@dataclass(frozen=True)
class LabelledSet:
    """A set that is tested on."""

    shards: Path
    pool: Path  # what is pretrained on for it


def make_sets(home: Path, videos: Path, *, rendered: int) -> dict[str, LabelledSet]:
    """Makes the shards that are not there yet.

    Args:
        videos: Folder of the real sets.
        rendered: Videos of the rendered set, two thirds of them for training.

    Raises:
        UserError: the real videos are not there.
    """
    if not (videos / UNLABELLED).is_dir():
        raise UserError(
            f"{videos}: no real videos (expected {', '.join((*REAL, UNLABELLED))}). "
            "DYNAMONET_REAL_DATA=DIR names a folder of them"
        )
    labelled = {name: list(_listed(videos, name)) for name in REAL}
    unlabelled, _ = find_sources(Folder.at(str(videos / UNLABELLED)))
    pool = [
        Video(f"{UNLABELLED}/{video.path}", "none", video.path, _ALWAYS_TRAINED_ON)
        for video in unlabelled
    ]
    for name, own in labelled.items():
        _shard(home / name, videos / name, own)
        pool += [
            each._replace(path=f"{name}/{each.path}", group=f"{name} {each.group}") for each in own
        ]
    _shard(home / POOL, videos, pool)
    if not (home / MOTION / CARD).is_file():
        write_motion_videos(
            home / "motion_videos", train_videos=rendered * 2 // 3, test_videos=rendered // 3
        )
        _run_stage_1(home / MOTION, home / "motion_videos", home / "motion_videos/labels.csv")
    real = {name: LabelledSet(home / name, home / POOL) for name in REAL}
    return real | {MOTION: LabelledSet(home / MOTION, home / MOTION)}


def _listed(videos: Path, name: str) -> Iterator[Video]:
    with (videos / name / "split.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield Video(line["path"], line["class"], line["group"], int(line["fold"]))


def _shard(output: Path, source: Path, listed: list[Video]) -> None:
    """Makes a labelled set of some videos of a folder."""
    if (output / CARD).is_file():
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    table = output.parent / f"{output.name}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Video._fields, *listed])
    _run_stage_1(output, source, table)


def _run_stage_1(output: Path, source: Path, table: Path) -> None:
    words = f"--dataset folder --source {source} --lists {table} --output {output}"
    shard([*words.split(), *_SHARDED.split(), "--runs", str(output.parent / "runs")])
