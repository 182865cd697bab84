"""What a check is told and what it finds. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dynamonet.model.config import NetworkConfig
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

    shards: tuple[str, ...] = Field(
        default=("unlabelled",),
        min_length=1,
        description="Shard sets to learn from: bare names below shards_root, or paths. Several are "
        "mixed; a model takes frames as those of the first were made.",
    )
    shares: tuple[float, ...] | None = Field(
        default=None,
        description="Share of an epoch that each set gets, in any unit; null = by their segments, "
        "so that an epoch takes each once.",
    )
    model: NetworkConfig = Field(default=NetworkConfig(), description="The network.")

    @field_validator("shards", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _shares_fit(self) -> PreflightSettings:
        if len(set(self.shards_paths())) < len(self.shards):
            raise ValueError("shards names a set twice")
        if self.shares is not None:
            if len(self.shares) != len(self.shards):
                raise ValueError(f"{len(self.shares)} shares for {len(self.shards)} shard sets")
            if min(self.shares) <= 0:
                raise ValueError("shares must be above 0")
        return self

    def shards_paths(self) -> list[str]:
        """Returns the absolute paths or URIs of the sets to learn from."""
        return [self.shards_path(name) for name in self.shards]


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
