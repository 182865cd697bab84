"""The arms of the learning benchmark and their settings: who gets what, with what budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.learning.networks import FrameDifferences, HandMadeMotion, OneFrame, VideoMae
from benchmarks.learning.tasks import (
    VICREG_BEYOND,
    Filters,
    ShuffledFrames,
    VicRegPretraining,
    VideoMaePretraining,
    only_norms,
    random_filters,
)
from dynamonet.model.config import ModelConfig
from dynamonet.model.network import DynamoNet
from finetune.settings import FinetuneSettings
from pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class Budget:
    """How long each training takes and how many there are."""

    pretrain_minutes: float = 0.5
    finetune_minutes: float = 0.1
    seeds: int = 3  # pretrainings a fold
    repeats: int = 2  # fine-tunings of each; of an arm that is no finalist 1
    folds: int = 3
    rendered: int = 540  # videos of the rendered set
    shares: tuple[float, ...] = (0.1, 0.25, 0.5)  # of the labels, below all of them
    curve_seeds: int = 2

    @property
    def scratch_minutes(self) -> float:
        """Minutes of a training from scratch, so that every arm takes the same time in all.

        A pretraining serves the fine-tunings of both real sets.
        """
        return self.finetune_minutes + self.pretrain_minutes / (2 * self.repeats)


QUICK = Budget(
    pretrain_minutes=0.2,
    finetune_minutes=0.04,
    seeds=1,
    repeats=1,
    folds=1,
    rendered=270,
    shares=(),
)
BATCH = 8
CLIPS = {"canvas_px": 48, "crop_scale": [0.8, 1.0], "stride_seconds": 0.08}
LOADER = {"batch_size": BATCH, "processes": 0, "decoded_gb": 2.0}
MODEL: dict[str, Any] = {
    "num_frames": 8,
    "frame_px": 48,
    "trunk": {
        "depth": 10,
        "width": 16,
        "stem_pool": False,
        "temporal_strides": [1, 2, 2, 1],
        "spatial_strides": [2, 2, 2, 1],
    },
    "filters": {"cell_px": 4},
    "dropout": 0.3,
}
PAPER_FILTERS = {"kind": "shared", "normalisation": "linear", "levels": [1], "cell_px": 4}
PRETRAIN_LR = 0.002
HEAD_LR = 0.003


@dataclass(frozen=True)
class Pretext:
    """A way to pretrain."""

    task: type[Filters]
    model: dict[str, Any]
    batch: int = BATCH


PRETEXTS = {
    "grid": Pretext(Filters, MODEL),
    "shared": Pretext(Filters, MODEL | {"filters": PAPER_FILTERS}),
    "videomae": Pretext(VideoMaePretraining, MODEL),
    # reads that many more frames
    "vicreg": Pretext(
        VicRegPretraining,
        MODEL | {"targets": "future", "horizon": VICREG_BEYOND},
        batch=2 * BATCH,  # its variances are a batch's
    ),
    "shuffled": Pretext(ShuffledFrames, MODEL),
}


@dataclass(frozen=True)
class Arm:
    """A way to a classifier."""

    name: str
    what: str
    pretext: str | None = None
    network: type[DynamoNet] = DynamoNet
    use_dmr: bool = False
    aux_weight: float = 0.0
    change: Callable[[DynamoNet], None] | None = None
    rate_of: str | None = None  # arm whose chosen rate is taken over; None = chosen for itself
    finalist: bool = False

    @property
    def rates(self) -> tuple[tuple[float, float], ...]:
        """Learning rates to choose from: (classifier's, trunk's)."""
        if self.pretext is None:
            return tuple((rate, rate) for rate in (0.001, 0.003, 0.01))
        return tuple((HEAD_LR, rate) for rate in (0.0003, 0.001, 0.003))


ARMS = (
    Arm("scratch", "from scratch, all minutes on it", finalist=True),
    Arm("differences", "the same on frame differences", network=FrameDifferences, finalist=True),
    Arm(
        "hand-made motion",
        "the same on a motion field by local matching",
        network=HandMadeMotion,
        finalist=True,
    ),
    Arm("grid", "pretrained, filters on a grid, DMR read", "grid", use_dmr=True, finalist=True),
    Arm("grid, no DMR", "the same, DMR not read", "grid", rate_of="grid"),
    Arm("shared", "pretrained, one filter a frame (the paper's), DMR read", "shared", use_dmr=True),
    Arm("shared, no DMR", "the same, DMR not read", "shared", rate_of="shared"),
    Arm(
        "joint",
        "from scratch, frame prediction (grid) beside the labels, DMR read",
        use_dmr=True,
        aux_weight=1.0,
        rate_of="scratch",
    ),
    Arm("VideoMAE", "pretrained, a small VideoMAE", "videomae", VideoMae, finalist=True),
    Arm("VICReg", "pretrained, VICReg of two views", "vicreg", finalist=True),
    Arm("one frame", "from scratch on the middle frame", network=OneFrame, rate_of="scratch"),
    Arm(
        "shuffled frames", "grid, pretrained on frames in random order", "shuffled", rate_of="grid"
    ),
    Arm(
        "random filters",
        "grid, the filters that are read made random",
        "grid",
        use_dmr=True,
        change=random_filters,
        rate_of="grid",
    ),
    Arm(
        "norms only",
        "from scratch but for grid's batch norms",
        "grid",
        change=only_norms,
        rate_of="scratch",
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}
BASELINE = "scratch"
OURS = ("grid", "shared")  # the better one, by validation, has a label curve


def pretrain_settings(
    pretext: Pretext, *, shards: str, split: int, seed: int, minutes: float, flip: bool
) -> PretrainSettings:
    """Returns the settings of a pretraining on a split of the pool."""
    return PretrainSettings(
        shards=shards,
        split=split,
        seed=seed,
        max_minutes=minutes,
        holdout_share=0.02,
        model=ModelConfig.model_validate(pretext.model),
        clips=CLIPS | {"flip": flip},  # type: ignore[arg-type]
        loader=LOADER | {"batch_size": pretext.batch},  # type: ignore[arg-type]
        optimizer={"lr": PRETRAIN_LR},  # type: ignore[arg-type]
        **_QUIET,
    )


def finetune_settings(
    arm: Arm,
    *,
    shards: str,
    split: int,
    seed: int,
    minutes: float,
    rate: tuple[float, float],
    flip: bool,
    share: float = 1.0,
    val_share: float = 0.0,
) -> FinetuneSettings:
    """Returns the settings of a fine-tuning on a split of a labelled set."""
    head, trunk = rate
    model = MODEL if arm.pretext is None else PRETEXTS[arm.pretext].model
    return FinetuneSettings(
        shards=shards,
        split=split,
        seed=seed,
        max_minutes=minutes,
        label_share=share,
        val_share=val_share,
        pretrained="none",
        model=ModelConfig.model_validate(model),
        use_dmr=arm.use_dmr,
        dropout=MODEL["dropout"],
        aux_weight=arm.aux_weight,
        trunk_rate=trunk / head,
        test_clips=4,
        clips=CLIPS | {"flip": flip},  # type: ignore[arg-type]
        loader=LOADER,  # type: ignore[arg-type]
        optimizer={"lr": head},  # type: ignore[arg-type]
        **_QUIET,
    )


_QUIET: dict[str, Any] = {"log_every_steps": 10**6, "checkpoint_every_steps": 10**6}
