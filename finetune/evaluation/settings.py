"""What a finished model can be measured on, and compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dynamonet.command_line import positional
from dynamonet.model.config import PixelScale
from dynamonet.settings import Settings
from dynamonet.stage import StageSettings
from dynamonet.training.settings import FormatName
from finetune.settings import CROPS, Crops


class ModelSettings(Settings):
    """A finished model, and how it is run."""

    model: str = positional(
        "Folder of a model or of its run, its Hugging Face hub id, or other people's weights."
    )
    pixel_scale: PixelScale | None = Field(
        default=None,
        description="Pixels that other people's weights were trained on; null = as they usually "
        "are.",
    )
    crops: Crops = Field(default=1, description=CROPS)
    batch_size: int = Field(default=8, ge=1, description="Clips run together.")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto = a GPU where there is one."
    )
    precision: FormatName = Field(default="auto", description="Of the trunk; auto = as trained.")
    processes: int | None = Field(
        default=None,
        ge=0,
        description="Processes that read and decode; null = from the cores, 0 = none.",
    )


class MeasureSettings(StageSettings, ModelSettings):
    """Measures a finished model on a labelled set, with all that the test of a training leaves."""

    shards: str = Field(description="The labelled set: bare name below shards_root, or path.")
    split: int = Field(default=1, ge=1, description="Which of the set's splits, from 1.")
    part: Literal["test", "val"] = Field(default="test", description="Part that is measured.")
    clips: int = Field(
        default=4, ge=1, description="Clips of each segment that are averaged, spread evenly."
    )
    crops: Crops = Field(default=3, description=CROPS)
    allow_seen_test_videos: bool = Field(
        default=False,
        description="Measure though the model was trained on these videos; the result says so.",
    )


class CompareSettings(Settings):
    """Compares two fine-tuned models video by video, with an interval and a paired test."""

    a: tuple[Path, ...] = Field(
        min_length=1, description="Folders of finished fine-tuning runs, e.g. seeds: averaged."
    )
    b: tuple[Path, ...] = Field(min_length=1, description="The same of the other side.")
