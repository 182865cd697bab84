"""What a check is told and what it finds. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from dynamonet.model.config import ModelConfig
from dynamonet.training.settings import TrainSettings


@dataclass(frozen=True)
class Check:
    """What one check found; warn and fail come with what to do about it."""

    state: Literal["pass", "warn", "fail"]
    name: str
    text: str
    remedy: str = ""


class PreflightSettings(TrainSettings):
    """What a pretraining's settings begin with: all that the checks read."""

    shards: str = Field(
        default="unlabelled",
        description="Shard set to learn from: bare name below shards_root, or path.",
    )
    model: ModelConfig = Field(default=ModelConfig(), description="The network.")


def nearest_folder(path: str) -> Path:
    """Returns a local folder, or the nearest one above it that exists.

    Raises:
        NotADirectoryError: a file stands in the way.
    """
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, and {path} should be a folder")
    return folder
