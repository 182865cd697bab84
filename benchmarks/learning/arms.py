"""The arms of the learning benchmark: what each is pretrained on, for how long, and its settings.

Every training has a fixed number of steps, so a row is the same on a busy machine, and its price is
the processor time that it took. One core makes about `STEPS_PER_MINUTE` steps of our own
pretraining; the steps of the others are what the same core makes of theirs in the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from benchmarks.learning.networks import VideoMae
from benchmarks.learning.sets import FOLDS, LABELLED, UNLABELLED
from benchmarks.learning.tasks import (
    VICREG_BEYOND,
    Filters,
    VicRegPretraining,
    VideoMaePretraining,
)
from dynamonet.model.config import Reads
from dynamonet.model.network import DynamoNet

STEPS_PER_MINUTE = 645  # of 8 clips of 8 x 48 px: 93 ms on one core of a Xeon with AVX512-BF16
STEPS = {"weizmann": 400, "fights": 400, "jhmdb": 1200}  # of a fine-tuning
LONGER = 4  # times as many, which show whether scratch has converged by then
SHARES = (0.1, 0.25, 0.5)  # of the labels, below all of them
SEEDS = 3
PRECISION = "fp32"  # faster than bf16 at this size on a CPU without AMX: 46 against 64 ms
LR, DROPOUT = 0.003, 0.3
MODEL: dict[str, Any] = {
    "trunk": {
        "depth": 10,
        "width": 16,
        "stem_pool": False,
        "temporal_strides": [1, 2, 2, 1],
        "spatial_strides": [2, 2, 2, 1],
    },
    "filters": {"cell_px": 4},
    "dropout": DROPOUT,
}


@dataclass(frozen=True)
class Pretext:
    """A way to pretrain."""

    task: type[Filters] = Filters
    network: type[DynamoNet] = DynamoNet
    batch: int = 8
    num_frames: int = 8
    frame_px: int = 48
    lr: float = LR
    movers: float = 0.7  # share of clips
    model: tuple[tuple[str, Any], ...] = ()  # what it changes in `MODEL`
    cost: float = 1.0  # of a step, as a multiple of our own's; measured side by side on one core

    @property
    def config(self) -> dict[str, Any]:
        """The network's description."""
        return MODEL | dict(self.model) | {"num_frames": self.num_frames, "frame_px": self.frame_px}

    @property
    def clips(self) -> dict[str, Any]:
        return {
            "canvas_px": self.frame_px,
            "crop_scale": [0.8, 1.0],
            "stride_seconds": 0.08,
            "flip": True,
        }

    def steps(self, minutes: float) -> int:
        """Returns how many steps one core makes in some minutes."""
        return round(minutes * STEPS_PER_MINUTE / self.cost)


OWN = Pretext()
PRETEXTS = {
    "own": OWN,
    "VICReg": Pretext(
        VicRegPretraining,
        batch=16,  # its variances are those of a batch
        movers=0.0,
        model=(("targets", "future"), ("horizon", VICREG_BEYOND)),  # reads that many more frames
        cost=2.7,
    ),
    "VideoMAE": Pretext(VideoMaePretraining, VideoMae, movers=0.0, lr=0.001, cost=0.67),
    "no movers": Pretext(movers=0.0, cost=0.83),
    "all movers": Pretext(movers=1.0, cost=1.03),
    "batch 32": Pretext(batch=32, cost=3.05),
    "rate 0.001": Pretext(lr=0.001),
    "rate 0.01": Pretext(lr=0.01),
    "16 x 64 px": Pretext(num_frames=16, frame_px=64, cost=2.7),
    "16 x 64 px, batch 32": Pretext(num_frames=16, frame_px=64, batch=32, cost=11.2),
}


@dataclass(frozen=True)
class Start:
    """A pretraining, which serves every fine-tuning that starts from it."""

    pretext: str
    steps: int
    sets: tuple[str, ...]
    split: int  # of the labelled ones among them, whose training part alone is read
    seed: int
    held_out: float  # share of the videos that is not read

    @property
    def key(self) -> str:
        return "pretrain " + " ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Arm:
    """A way to a classifier."""

    name: str
    what: str
    pretext: str | None = None
    minutes: float = 0.0
    own_domain: bool = False  # pretrained on the training part of the same set as well
    brought: str | None = None  # a model of the package, instead of a pretext
    clips: int | None = None  # seen in pretraining, instead of minutes
    videos: int | None = None  # about so many are pretrained on; None = all
    lr: float = LR  # of the fine-tuning
    field: bool = False  # fine-tuned with a head for the motion field, instead of the raw filters
    clips_of: str = "own"  # pretext whose size of clips it has, where it has none itself
    colour_jitter: float = 0.0  # of the fine-tuning

    @property
    def way(self) -> Pretext:
        return PRETEXTS[self.pretext or self.clips_of]

    @property
    def reads(self) -> Reads:
        """What the classifier reads."""
        own = self.brought is not None or (self.pretext is not None and self.way.task is Filters)
        return "field" if self.field else "dmr" if own else "features"

    @property
    def steps(self) -> int:
        """Of its pretraining."""
        return self.clips // self.way.batch if self.clips else self.way.steps(self.minutes)

    def start(self, name: str, fold: int, seed: int) -> Start | None:
        """Returns the pretraining for a fold of a set; None = there is none to be done."""
        if self.pretext is None:
            return None
        sets, split = _POOLS[name], 1
        if self.own_domain:  # one serves the same fold of every set: none of their tests is read
            sets, split = (UNLABELLED, *LABELLED), fold + 1
        held_out = 0.0 if self.videos is None else round(1 - self.videos / _POOL_VIDEOS, 3)
        return Start(self.pretext, self.steps, sets, split, seed, max(0.0, held_out))


_POOLS = {
    "weizmann": (UNLABELLED, "jhmdb"),
    "fights": (UNLABELLED, "jhmdb"),
    "jhmdb": (UNLABELLED, "weizmann", "fights"),
}
_POOL_VIDEOS = 938  # unlabelled and the training part of jhmdb

SCRATCH, OWN_12, MOTION, MOTION_1 = "scratch", "own, 12 minutes", "motion", "motion@1"
ARMS = (
    Arm(SCRATCH, "from random weights"),
    Arm("own, 3 minutes", "grid of filters with movers, on other sets' videos", "own", 3),
    Arm(OWN_12, "the same for longer", "own", 12),
    Arm("own, 40 minutes", "the same for longer still", "own", 40),
    Arm("own, 12 minutes, own domain", "also on the set's training videos", "own", 12, True),
    Arm(MOTION, "the network that ships with the package, two hours of one core", brought=MOTION),
    Arm(MOTION_1, "the one before, of rendered videos alone", brought=MOTION_1),
    Arm(
        f"{OWN_12}, field",
        "with a head for the motion field, not the raw filters",
        "own",
        12,
        field=True,
    ),
    Arm(
        f"{MOTION}, field",
        "with a head for the motion field, not the raw filters",
        brought=MOTION,
        field=True,
    ),
    Arm("VICReg, 12 minutes", "VICReg of two views, on the videos of `own`", "VICReg", 12),
    # at 0.001 it is better than at 0.003 on groups of training folds
    Arm("VideoMAE, 12 minutes", "a small VideoMAE, tuned at rate 0.001", "VideoMAE", 12, lr=0.001),
)
AUTO = Arm(
    f"{MOTION}, seconds then training",
    "ridge, then a training; a quarter of the training groups chooses",
    brought=MOTION,
    field=True,
    clips_of="16 x 64 px",
    colour_jitter=0.2,
)
CLIPS_SEEN, VIDEOS = (2_000, 8_000, 32_000, 128_000), (100, 300, 900)
SCALES: dict[str, tuple[int | None, ...]] = {"weizmann": VIDEOS, "fights": VIDEOS, "jhmdb": (None,)}
SCALE = tuple(
    Arm(f"{clips:,} clips of {videos or 'all'} videos", "", "own", clips=clips, videos=videos)
    for videos, clips in product((*VIDEOS, None), CLIPS_SEEN)
)
READ_SCALES = [arm for arm in SCALE if arm.videos in VIDEOS[::2] and arm.clips != CLIPS_SEEN[-1]]
VARIANTS = tuple(
    Arm(f"3 minutes, {name}", "", name, 3)
    for name in PRETEXTS
    if name not in ("VICReg", "VideoMAE")
)
CLOSE = ("3 minutes, own", "3 minutes, all movers")  # the best two, which have three seeds
PEER_RATES = tuple(
    Arm(f"VideoMAE, 12 minutes, rate {lr:g}", "", "VideoMAE", 12, lr=lr) for lr in (0.001, 0.003)
)
BY_NAME = {arm.name: arm for arm in (*ARMS, AUTO, *SCALE, *VARIANTS, *PEER_RATES)}
FINALISTS = (SCRATCH, OWN_12, MOTION)  # which have three seeds and a label curve
BY_FIELD = (f"{MOTION}, field", f"{OWN_12}, field")
PEERS = ("VICReg, 12 minutes", "VideoMAE, 12 minutes")


@dataclass(frozen=True)
class Row:
    """A fine-tuning on one fold."""

    arm: str
    set: str
    fold: int
    seed: int = 0  # of pretraining and fine-tuning
    longer: int = 1  # times the usual steps
    share: float = 1.0  # of the labels
    recipe: str = "full"
    part: str = "test"  # val = groups of the training part, by which variants are compared

    @property
    def key(self) -> str:
        return "finetune " + " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @property
    def start(self) -> Start | None:
        return BY_NAME[self.arm].start(self.set, self.fold, self.seed)


def plan() -> list[Row]:
    """Returns all rows, those that decide most first."""

    def rows(arms: Sequence[str], sets: Sequence[str] = LABELLED, **more: Any) -> list[Row]:
        return [Row(a, s, fold, **more) for a, s, fold in product(arms, sets, range(FOLDS))]

    def scale(videos: Sequence[int | None], clips: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        for arm in (arm for arm in SCALE if arm.videos in videos and arm.clips in clips):
            sets = [name for name, sizes in SCALES.items() if arm.videos in sizes]
            found += rows([arm.name], sets)
        return found

    pair, rest = ("weizmann", "fights"), [a.name for a in ARMS if a.name not in FINALISTS + PEERS]
    peer_rates = rows([arm.name for arm in PEER_RATES], pair, part="val")
    planned = rows(FINALISTS) + rows((SCRATCH, OWN_12), longer=LONGER) + peer_rates
    for share in SHARES:
        planned += rows((OWN_12, SCRATCH), share=share)
    planned += rows((AUTO.name,), recipe="auto") + rows(BY_FIELD) + rows(PEERS)
    for seed in (1, 2):
        planned += rows(FINALISTS, pair, seed=seed)
        planned += rows(CLOSE, pair, seed=seed, part="val")
    planned += scale((VIDEOS[-1], None), CLIPS_SEEN[:-1])
    planned += rows([arm.name for arm in VARIANTS], pair, part="val")
    for seed in range(SEEDS):
        planned += rows((*FINALISTS, MOTION_1), seed=seed)
    planned += rows((SCRATCH, OWN_12), share=SHARES[1], longer=LONGER)
    planned += scale((*VIDEOS, None), CLIPS_SEEN) + rows(rest)
    for seed, share in product(range(SEEDS), SHARES):
        planned += rows(FINALISTS, seed=seed, share=share)
    return list(dict.fromkeys(planned))
