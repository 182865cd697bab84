"""What frozen networks know, on training groups only: `make bench-frozen`, seconds a network.

    python -m benchmarks.bench_frozen --models motion a/step-00004000 motion+a/step-00004000

Ridge regression with the product's two heads, on folds made of the training parts' own groups: no
test part is looked at, so that what is decided by this can be claimed on them. Models joined by a
plus have their heads added.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from benchmarks.bench_learning import REAL_DATA, ROOT
from benchmarks.learning.arms import MOTION
from benchmarks.learning.readings import FIELD, SPREAD, TWO_HEADS, Reading, features, said_by
from benchmarks.learning.sets import FOLDS, LABELLED, make_sets
from benchmarks.learning.tasks import Classification
from benchmarks.report import show, table
from dynamonet import cluster
from dynamonet.command_line import load
from dynamonet.errors import run_entry
from dynamonet.frozen.ridge import Known, right_videos
from dynamonet.model.files import locate
from dynamonet.settings import Settings
from dynamonet.training.perf.allocator import keep_freed_memory
from finetune.pretrained.load import pretrained_config
from finetune.settings import FinetuneSettings
from finetune.train.splits import kept_apart

CUT, CUTS = 0.34, 2  # share of a training part's groups that is asked about, and how often
WAYS = (SPREAD, FIELD, TWO_HEADS)


class FrozenSettings(Settings):
    """Reads frozen networks on the training groups of three sets of real video."""

    models: tuple[str, ...] = Field(
        default=("motion",), description="Models' folders; several joined by +: together."
    )
    num_frames: int = Field(default=8, description="Frames of a clip.")
    frame_px: int = Field(default=48, description="Its height and width in pixels.")
    home: Path = Field(
        default=ROOT / "data/learning", description="Folder of shards and of features."
    )


@dataclass(frozen=True)
class Read:
    """What networks make of the clips of one set."""

    task: Classification
    found: list[dict[str, np.ndarray]]  # of each network

    @classmethod
    def of(cls, places: list[Path], name: str, shards: dict[str, str], how: FrozenSettings) -> Read:
        row = Reading(MOTION, name, 0, TWO_HEADS, how.num_frames, how.frame_px)
        tasks = [
            Classification(_settings(place, row, shards), shards[name], str(place))
            for place in places
        ]
        home = how.home.absolute()
        found = [features(*each, home) for each in zip(tasks, repeat(row), places, strict=False)]
        return cls(tasks[0], found)

    def accuracy(self, way: str, fold: int, seed: int) -> float:
        """Returns the share of videos right, of those cut from a training part."""
        data = self.task.data
        train = data.rows(split=fold + 1, part="train").numbers()
        stay, apart = kept_apart(data, train, CUT, seed)
        said, there = said_by(self.task, way, self.found, stay, apart, seed=seed)
        asked, known = self.found[0]["rows"][there], Known.of(data, stay, seed)
        label = torch.from_numpy(known.label[asked])
        return float(right_videos(said.double(), label, known.video[asked]).mean())


def _settings(place: Path, row: Reading, shards: dict[str, str]) -> FinetuneSettings:
    """Returns the settings of a run that reads a model."""
    own = row.settings(shards)
    size = {"num_frames": row.num_frames, "frame_px": row.frame_px}
    return own.model_copy(update={"model": pretrained_config(place).model_copy(update=size)})


def main(argv: list[str]) -> None:
    """Prints a row for each network; see --help."""
    settings = load(FrozenSettings, argv, prog="python -m benchmarks.bench_frozen")
    keep_freed_memory()
    home = settings.home.absolute()
    with cluster.connected():  # for stage 1 only
        shards = make_sets(home, REAL_DATA.resolve())
    title = f"per cent right, {FOLDS} folds x {CUTS} cuts: features / field / both"
    made = table(title, "networks", *LABELLED, "mean of both")
    for names in settings.models:
        places, cells, both = [locate(each) for each in names.split("+")], [], []
        for name in LABELLED:
            read = Read.of(places, name, shards, settings)
            cuts = [(fold, seed) for fold in range(FOLDS) for seed in range(CUTS)]
            right = {way: np.mean([read.accuracy(way, *cut) for cut in cuts]) for way in WAYS}
            cells.append(" / ".join(f"{100 * value:.1f}" for value in right.values()))
            both.append(right[TWO_HEADS])
        made.add_row(names, *cells, f"{100 * np.mean(both):.1f}")
    show([made], [])


if __name__ == "__main__":
    run_entry(main)
