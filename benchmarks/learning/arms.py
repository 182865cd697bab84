"""The arms of the learning benchmark and their settings: who gets what, with what budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.learning.networks import HandMadeMotion, OneFrame, VideoMae
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
from pretrain.settings import MoverSettings, PretrainSettings


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
ON_FRAMES = MODEL | {"input": "rgb"}
PAPER = ON_FRAMES | {
    "filters": {"kind": "shared", "normalisation": "linear", "levels": [1], "cell_px": 4}
}
PRETRAIN_LR = 0.003
HEAD_LR = 0.003


NO_MOVERS = MoverSettings(share=0)


@dataclass(frozen=True)
class Pretext:
    """A way to pretrain."""

    task: type[Filters]
    model: dict[str, Any]
    batch: int = BATCH
    movers: MoverSettings = NO_MOVERS


PRETEXTS = {
    "movers": Pretext(Filters, MODEL, movers=MoverSettings()),
    "grid": Pretext(Filters, MODEL),
    "paper": Pretext(Filters, PAPER),
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
    start: str | None = None  # instead of a pretext: a model that the package brings
    network: type[DynamoNet] = DynamoNet
    own_model: dict[str, Any] | None = None
    use_dmr: bool = False
    aux_weight: float = 0.0
    change: Callable[[DynamoNet], None] | None = None
    rate_of: str | None = None  # arm whose chosen rate is taken over; None = chosen for itself
    finalist: bool = False

    @property
    def model(self) -> dict[str, Any]:
        """The network's description."""
        return self.own_model or (PRETEXTS[self.pretext].model if self.pretext else MODEL)

    @property
    def rates(self) -> tuple[tuple[float, float], ...]:
        """Learning rates to choose from: (classifier's, trunk's)."""
        if self.pretext is None and self.start is None:
            return tuple((rate, rate) for rate in (0.001, 0.003, 0.01))
        return tuple((HEAD_LR, rate) for rate in (0.0003, 0.001, 0.003))


ARMS = (
    Arm("scratch", "from scratch, all minutes on it", finalist=True),
    Arm("frames", "the same on frames instead of their differences", own_model=ON_FRAMES),
    Arm(
        "hand-made motion",
        "the same on a motion field by local matching",
        network=HandMadeMotion,
        finalist=True,
    ),
    Arm("pretrained", "grid of filters, movers; DMR read", "movers", use_dmr=True, finalist=True),
    Arm(
        "motion",
        "from the network that the package brings, all minutes on it; DMR read",
        start="motion",
        use_dmr=True,
        finalist=True,
    ),
    Arm("no DMR", "pretrained, DMR not read", "movers", rate_of="pretrained"),
    Arm("no movers", "pretrained without them", "grid", use_dmr=True, rate_of="pretrained"),
    Arm(
        "paper",
        "pretrained on frames, one linear filter a frame, DMR read",
        "paper",
        use_dmr=True,
    ),
    Arm(
        "joint",
        "from scratch, frame prediction beside the labels",
        aux_weight=1.0,
        rate_of="scratch",
    ),
    Arm("VideoMAE", "pretrained, a small VideoMAE", "videomae", network=VideoMae, finalist=True),
    Arm("VICReg", "pretrained, VICReg of two views", "vicreg", finalist=True),
    Arm(
        "one frame",
        "from scratch on the middle frame",
        network=OneFrame,
        own_model=ON_FRAMES,
        rate_of="frames",
    ),
    Arm(
        "shuffled frames",
        "no movers, pretrained on frames in random order",
        "shuffled",
        use_dmr=True,
        rate_of="pretrained",
    ),
    Arm(
        "random filters",
        "pretrained, the filters that are read made random",
        "movers",
        use_dmr=True,
        change=random_filters,
        rate_of="pretrained",
    ),
    Arm(
        "norms only",
        "from scratch but for pretrained batch norms",
        "movers",
        change=only_norms,
        rate_of="scratch",
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}
BASELINE = "scratch"
OURS = ("pretrained", "motion")  # the better one, by validation, has a label curve


def pretrain_settings(
    pretext: Pretext, *, shards: str, split: int, seed: int, minutes: float, flip: bool
) -> PretrainSettings:
    """Returns the settings of a pretraining on a split of the pool."""
    return PretrainSettings(
        shards=(shards,),
        split=split,
        seed=seed,
        max_minutes=minutes,
        holdout_share=0.02,
        movers=pretext.movers,
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
    return FinetuneSettings(
        shards=shards,
        split=split,
        seed=seed,
        max_minutes=minutes,
        label_share=share,
        val_share=val_share,
        pretrained="none",
        model=ModelConfig.model_validate(arm.model),
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
