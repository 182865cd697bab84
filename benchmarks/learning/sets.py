"""The sets of the learning benchmark as shards: three labelled ones and the unlabelled videos."""

from __future__ import annotations

import csv
from pathlib import Path

from data_prep.shard import main as shard
from dynamonet.errors import UserError
from dynamonet.shards.card import CARD

TESTED = {"weizmann": "10 actions", "fights": "fight or not", "jhmdb": "21 actions"}
LABELLED = tuple(TESTED)  # each has a split.csv of path, class, group, fold
UNLABELLED = "unlabelled"
FOLDS = 3
_SHARDED = "--encode.short_side_px 64 --encode.crf 18 --min_seconds 0.2 --near_duplicates off"


def make_sets(home: Path, videos: Path) -> dict[str, str]:
    """Makes the shard sets that are missing and returns the folder of each by name.

    Args:
        videos: Folder of the real sets.

    Raises:
        UserError: the videos are not there.
    """
    missing = [name for name in (*LABELLED, UNLABELLED) if not (videos / name).is_dir()]
    if missing:
        raise UserError(
            f"{videos}: no real videos (missing: {', '.join(missing)}). "
            "Set DYNAMONET_REAL_DATA to a folder that has them"
        )
    home.mkdir(parents=True, exist_ok=True)
    for name in (*LABELLED, UNLABELLED):
        if (home / name / CARD).is_file():
            continue
        words = f"--source {videos / name} --output {home / name} --runs {home / 'runs'}".split()
        if name in LABELLED:
            words += ["--dataset", "folder", "--lists", str(_list(videos / name, home))]
        shard([*words, *_SHARDED.split()])
    return {name: str(home / name) for name in (*LABELLED, UNLABELLED)}


def _list(source: Path, home: Path) -> Path:
    """Writes the labels and folds of a set as stage 1 reads them."""
    table = home / f"{source.name}.csv"
    with (source / "split.csv").open(newline="", encoding="utf-8") as file:
        lines = [[e[k] for k in ("path", "class", "group", "fold")] for e in csv.DictReader(file)]
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "group", "fold"), *lines])
    return table
