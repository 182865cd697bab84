"""What predictions can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dynamonet.command_line import positional
from dynamonet.settings import Settings, whole_number
from dynamonet.training.settings import FormatName


class PredictSettings(Settings):
    """Tells what a finished model sees in videos, window by window."""

    model: str = positional("Folder of a model, or its Hugging Face hub id.")
    videos: tuple[str, ...] = positional("Videos, or folders searched to any depth.", min_length=1)
    window_seconds: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Length of a window, whose clips are averaged; null and least: what a clip "
        "covers.",
    )
    step_seconds: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="From one window's start to the next; null = the window's length.",
    )
    top: int = Field(default=5, ge=1, description="Classes to tell.")
    batch_size: int = Field(
        default=8, ge=1, description="Clips run together, of several videos too."
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto = a GPU where there is one."
    )
    precision: FormatName = Field(default="auto", description="Of the trunk; auto = as trained.")
    processes: int | None = Field(
        default=None,
        ge=0,
        description="Processes that read and decode; null = from the cores, 0 = none.",
    )
    output: Path | None = Field(
        default=None, description="FILE.json, FILE.csv or FILE.parquet to write."
    )
    filmstrip: Path | None = Field(default=None, description="Folder for a picture of each video.")
    crops: Annotated[Literal[1, 3], BeforeValidator(whole_number)] = Field(
        default=1, description="Square crops of each clip: 1 = the middle, 3 = both ends as well."
    )
    quiet: bool = Field(default=False, description="Print mistakes and what was written alone.")
    overwrite: bool = Field(default=False, description="Replace outputs that are there already.")
    features: Path | None = Field(
        default=None, description="FILE.parquet to write the features of each window to."
    )
