"""How videos become frames, how clips are cut of them and brought to the model. Light to import."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from dynamonet.settings import Settings

MAX_PROCESSES = 16  # one decodes about 250 clips/s, so more than these would only take memory


class FrameSettings(Settings):
    """How the frames of segments are made of a video's."""

    short_side_px: int = Field(
        default=128, ge=16, multiple_of=2, description="Shorter side of a segment; never enlarged."
    )
    max_fps: float = Field(
        default=30.0, gt=0, le=240, description="Frame rate above which frames go."
    )
    crop_letterbox: bool = Field(
        default=False, description="Cut off black bars that a whole video has on opposite sides."
    )


class ClipSettings(Settings):
    """How clips are cut from segments."""

    stride_frames: int = Field(
        default=1, ge=1, description="Frames of the segment between a clip's."
    )
    stride_seconds: float | None = Field(
        default=None, gt=0, description="Seconds between a clip's frames; wins over stride_frames."
    )
    canvas_px: int = Field(
        default=128,
        ge=16,
        multiple_of=2,
        description="Side that a clip's square is thought scaled to; an evaluation looks at its "
        "middle model.frame_px.",
    )
    crop_scale: tuple[float, float] = Field(
        default=(0.75, 1.0),
        description="Least and greatest side of the random crop, share of the square.",
    )
    flip: bool = Field(default=True, description="Mirror every second clip left to right.")
    colour_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Range of the brightness, contrast and saturation factors.",
    )

    def seconds_apart(self, fps: float) -> float:
        """Returns the time between a clip's frames, of a segment of so many frames a second."""
        return self.stride_frames / fps if self.stride_seconds is None else self.stride_seconds

    @property
    def spacing(self) -> str:
        """How far a clip's frames are apart, in words."""
        if self.stride_seconds is not None:
            return f"{self.stride_seconds:.3g} s apart"
        return f"{self.stride_frames} frame{'s' if self.stride_frames > 1 else ''} apart"


class LoaderSettings(Settings):
    """How clips are brought to the model."""

    batch_size: int = Field(default=32, ge=1, description="Clips of a step, over all workers.")
    processes: int | None = Field(
        default=None,
        ge=0,
        description="Loader processes a worker; null = from its cores, 0 = none.",
    )
    prefetch_batches: int = Field(
        default=2, ge=1, description="Batches each loader process keeps ready."
    )
    max_failed_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of an epoch's samples that may be damaged before the run stops.",
    )
    retry_seconds: float = Field(
        default=120.0,
        ge=0,
        description="Remote sets: for so long a read that fails is tried again; then the worker "
        "is started again.",
    )
    shuffle: Literal["samples", "shard_window"] = Field(
        default="samples",
        description="samples = one permutation of the set; shard_window = some tars at a time.",
    )
    window_shards: int = Field(
        default=8, ge=1, description="shard_window: tars among which samples are shuffled."
    )
    cache_gb: float = Field(
        default=20.0, ge=0, description="Remote sets: local disk for tars; 0 = none is kept."
    )
    decoded_gb: float = Field(
        default=0.0,
        ge=0,
        description="Memory in which each loader process keeps segments decoded, for small sets "
        "that are read many times; 0 = none.",
    )


def default_processes(cpus: int | None = None) -> int:
    """Returns how many loader processes suit a worker with so many cores; None = this process's."""
    cpus = len(os.sched_getaffinity(0)) if cpus is None else cpus
    return min(MAX_PROCESSES, max(1, cpus - 1))
