"""What predictions can be asked."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dynamonet.command_line import positional
from finetune.evaluation.settings import ModelSettings


class PredictSettings(ModelSettings):
    """Tells what a finished model sees in videos, window by window."""

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
    output: Path | None = Field(
        default=None, description="FILE.json, FILE.csv or FILE.parquet to write."
    )
    filmstrip: Path | None = Field(default=None, description="Folder for a picture of each video.")
    quiet: bool = Field(default=False, description="Print mistakes and what was written alone.")
    overwrite: bool = Field(default=False, description="Replace outputs that are there already.")
    features: Path | None = Field(
        default=None,
        description="FILE.parquet for the features of each window; or a folder, for those of an "
        "archive of videos and shard sets in parts.",
    )

    @property
    def in_parts(self) -> bool:
        """Tells whether features go into a folder."""
        return self.features is not None and not self.features.suffix
