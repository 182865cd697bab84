"""Frozen networks, read in several ways by the product's ridge regression: seconds a row.

What a network makes of the clips of a set is computed once for all ways, folds and labels. A row's
price is its share of that, for the clips that it learns from, and the fit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learning.arms import (
    BY_NAME,
    FINALISTS,
    MOTION,
    MOTION_1,
    OWN_12,
    PEERS,
    READ_SCALES,
    SCRATCH,
    SHARES,
    Row,
    Start,
)
from benchmarks.learning.sets import FOLDS, LABELLED
from benchmarks.learning.settings import finetune_settings
from benchmarks.learning.tasks import Classification
from dynamonet.digest import digest_of_bytes
from dynamonet.frozen.ridge import Known, fit_heads
from dynamonet.model.classifier import Head, mean_and_std
from dynamonet.model.motion_field import MotionField, motion_numbers
from dynamonet.model.numbers import signed_root
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.measuring import Measuring
from dynamonet.training.numerics.precision import forward_precision
from finetune.evaluation.evaluator import Views, by_video
from finetune.evaluation.metrics import Predictions
from finetune.settings import FinetuneSettings

TOGETHER = " + "
BOTH = f"{MOTION}{TOGETHER}{OWN_12}"
POOLED, SPREAD, FILTERS, FIELD = "pooled mean", "pooled mean and std", "raw filters", "field"
TWO_HEADS, DIFFERENCES = "two heads", "differences of frames"
READINGS = {  # way -> what its heads read
    DIFFERENCES: ("differences",),
    POOLED: ("pooled",),
    SPREAD: ("spread",),
    FILTERS: ("filters",),
    FIELD: ("field",),
    TWO_HEADS: ("spread", "field"),
}
SIZES = ((8, 48), (16, 64))
SCALED = ("weizmann", "fights")  # by networks that saw few videos and many
_CELL_PX = 4  # of the differences' field
_EPS = {"field": 1e-10, "differences": 1e-10}  # as the classifier's


@dataclass(frozen=True)
class Reading:
    """A way to read a frozen network, or several together, on one fold."""

    arm: str  # from scratch: a random network; several joined by " + "
    set: str
    fold: int
    way: str
    num_frames: int = 8
    frame_px: int = 48
    share: float = 1.0  # of the labels
    seed: int = 0  # of the pretraining, and of what labels are drawn
    squares: int = 1  # of each clip

    @property
    def key(self) -> str:
        return "read " + " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @property
    def alone(self) -> list[Reading]:
        """The same of each network by itself."""
        return [replace(self, arm=arm) for arm in self.arm.split(TOGETHER)]

    @property
    def start(self) -> Start | None:
        """The pretraining that it waits for; there is at most one."""
        starts = (BY_NAME[row.arm].start(row.set, row.fold, row.seed) for row in self.alone)
        return next(filter(None, starts), None)

    def settings(self, shards: dict[str, str]) -> FinetuneSettings:
        """Returns the settings of the run that it stands for."""
        row = Row(
            self.alone[-1].arm, self.set, self.fold, self.seed, share=self.share, recipe="ridge"
        )
        own = finetune_settings(row, shards)
        assert own.model is not None
        size = {"num_frames": self.num_frames, "frame_px": self.frame_px}
        model = own.model.model_copy(update=size)
        clips = own.clips.model_copy(update={"canvas_px": self.frame_px})
        reads = "features" if self.arm in PEERS else "field"
        changed = {"model": model, "clips": clips, "reads": reads, "test_crops": self.squares}
        return own.model_copy(update=changed)


def readings() -> list[Reading]:
    """Returns all that are planned."""
    arms, found = (MOTION, OWN_12, SCRATCH), list[Reading]()
    for (frames, px), arm, name, way, fold in product(
        SIZES, arms, LABELLED, READINGS, range(FOLDS)
    ):
        if way != DIFFERENCES or arm == SCRATCH:  # they read no network
            found.append(Reading(arm, name, fold, way, frames, px))
    shown = product(SIZES, (MOTION, OWN_12), LABELLED, SHARES, range(3), range(FOLDS))
    for (frames, px), arm, name, share, seed, fold in shown:
        if seed == 0 or arm == MOTION:  # our own was pretrained once
            found.append(Reading(arm, name, fold, TWO_HEADS, frames, px, share, seed))
    for (frames, px), arm, name, fold in product(SIZES, (MOTION, OWN_12), LABELLED, range(FOLDS)):
        found.append(Reading(arm, name, fold, TWO_HEADS, frames, px, squares=3))
    for arm, name, way, fold in product(PEERS, LABELLED, (POOLED, SPREAD), range(FOLDS)):
        found.append(Reading(arm, name, fold, way))
    more = product(READ_SCALES, SCALED, range(2), range(FOLDS))
    found += [Reading(arm.name, name, fold, TWO_HEADS, seed=seed) for arm, name, seed, fold in more]
    more = product(SIZES, (MOTION_1, BOTH), LABELLED, range(FOLDS), (1, 3))
    for (frames, px), arm, name, fold, squares in more:
        found.append(Reading(arm, name, fold, TWO_HEADS, frames, px, squares=squares))
    assert set(arms) == set(FINALISTS)
    return found


@torch.no_grad()
def features(
    task: Classification, row: Reading, place: Path | None, home: Path
) -> dict[str, np.ndarray]:
    """Returns what a network makes of all clips of a set, and in how many seconds."""
    about = f"{place} {row.set} {row.num_frames} {row.frame_px} {task.views} {task.data.digest}"
    file = home / "features" / f"{digest_of_bytes(about.encode())}.npz"
    if file.exists():
        return dict(np.load(file))
    torch.manual_seed(0)
    model = task.build_model().eval()
    reader = task.reader(np.arange(len(task.data)))
    requests = [r for number in range(len(task.data)) for r in task.views.requests(number)]
    device = torch.device("cpu")
    measuring = Measuring.alone(device, forward_precision(model, "fp32", device), 32, 0)
    parts: list[dict[str, Tensor]] = []
    spent = 0.0
    for batch in measuring.batches(reader, requests):
        began = time.process_time()
        frames = batch.render()[:, :, : row.num_frames]
        output = model(frames, predict_frames=False)
        maps = output.features.float()
        part = {"pooled": output.pooled, "spread": mean_and_std(maps), "rows": batch.row}
        part["weights"] = task.views.weights(frames)
        if task.settings.reads == "field":
            assert model.classifier is not None
            _, field = model.classifier.inputs(maps, output.motion)
            part |= {"filters": output.dmr, "field": field}
        spent += time.process_time() - began
        part["differences"] = difference_numbers(frames, model.config.frame_seconds)
        parts.append(part)
    found = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    found["seconds"] = np.array(spent)
    file.parent.mkdir(exist_ok=True)
    growing = file.with_suffix(f".{os.getpid()}.npz")  # two processes may need the same
    np.savez(growing, allow_pickle=False, **found)
    growing.replace(file)
    return found


def difference_numbers(frames: Tensor, seconds: float) -> Tensor:
    """Describes the differences of frames as a field is described: how much, where, when."""
    change = F.avg_pool2d(frames.diff(dim=2).mean(1), _CELL_PX)
    size = F.avg_pool2d(frames.diff(dim=2).abs().mean(1), _CELL_PX)
    field = MotionField(change, torch.zeros_like(change), size, size.square())
    return signed_root(motion_numbers(field, size, seconds))


def read(
    task: Classification, row: Reading, networks: list[dict[str, np.ndarray]]
) -> tuple[Predictions, float]:
    """Learns the labels of the training part, and says the classes of the test part.

    Args:
        networks: What each network makes of the clips; one that does not help is not read.
    """
    began, rows = time.process_time(), networks[0]["rows"]
    some = [len(READINGS[row.way])] * len(networks)
    train, test = task.parts.train, task.parts.test
    said, asked = said_by(task, row.way, networks, train, test, seed=row.seed, each=some)
    spent = time.process_time() - began
    share = np.isin(rows, train).mean()
    spent += sum(float(found["seconds"]) for found in networks) * float(share)
    shares, none = said.double().softmax(1).numpy(), np.zeros((len(asked), 0))
    weights = networks[0]["weights"][asked]
    return by_video(Views(rows[asked], shares, weights, none), task.data), spent


@torch.no_grad()
def said_by(
    task: Classification,
    way: str,
    networks: list[dict[str, np.ndarray]],
    train: np.ndarray,
    test: np.ndarray,
    *,
    seed: int,
    each: Sequence[int] = (),
) -> tuple[Tensor, np.ndarray]:
    """Learns the labels of some rows of a set, and says the classes of others.

    Args:
        each: How many heads each network has, so that one that does not help is not read; without
            it all are.

    Returns:
        What is said of each clip asked about, and the places of those among the clips.
    """
    data, rows, names = task.data, networks[0]["rows"], READINGS[way]
    here, there = (np.flatnonzero(np.isin(rows, part)) for part in (train, test))
    inputs = [torch.from_numpy(found[name]) for found in networks for name in names]
    heads = [
        Head(x.shape[1], len(data.classes), 0.0, _EPS.get(name, 1e-5)).eval()
        for x, name in zip(inputs, names * len(networks), strict=True)
    ]
    looks = [([x[here] for x in inputs], rows[here])]
    alone, views = Rank(0, 1, torch.device("cpu")), len(task.views.requests(0))
    known = Known.of(data, train, seed)
    fitted = fit_heads(
        heads, looks, known, train, views=views, seed=seed, rank=alone, networks=each
    )
    kept = [p for p in range(len(heads)) if not each or p // len(names) in fitted.kept]
    return torch.stack([heads[p](inputs[p][there]) for p in kept]).mean(0), there
