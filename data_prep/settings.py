"""Settings of stage 1."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynamonet.killable import Limits
from dynamonet.shards.settings import FrameSettings
from dynamonet.stage import StageSettings

DatasetName = Literal["ucf101", "hmdb51", "kinetics400", "folder"]


class EncodeSettings(FrameSettings):
    """How segments are scaled and encoded."""

    crf: int = Field(
        default=23, ge=0, le=51, description="H.264 quality: lower is better and larger."
    )
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = (
        Field(default="veryfast", description="H.264 speed against size.")
    )
    keyframe_seconds: float = Field(
        default=1.0,
        gt=0,
        description="Seconds between key frames; a reader decodes from the nearest.",
    )


class PrepSettings(StageSettings):
    """Everything that `data_prep/shard.py` can be told."""

    source: str | None = Field(
        default=None, description="Folder of raw videos, searched to any depth."
    )
    output: str | None = Field(
        default=None,
        description="Shard set to make: a bare name below shards_root, or a path; "
        "null = the data set's name, else `unlabelled`.",
    )
    dataset: DatasetName | None = Field(
        default=None, description="Layout of a labelled set; null = unlabelled videos."
    )
    lists: str | None = Field(
        default=None,
        description="Official split lists, or the CSV of a folder set; null = look near source.",
    )
    test_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="folder without splits: share of groups drawn for testing.",
    )
    segment_seconds: float = Field(
        default=10.0, gt=0, description="Length of a segment in seconds."
    )
    min_seconds: float = Field(
        default=1.0,
        ge=0,
        description="Shortest last piece, or whole video, that is kept, in seconds.",
    )
    min_side_px: int = Field(
        default=16, ge=2, description="Videos with a shorter side are not taken."
    )
    shard_mb: float = Field(default=16.0, gt=0, description="Aimed size of a tar in megabytes.")
    retry_quarantined: bool = Field(
        default=False,
        description="Try again what the quarantine table holds; the rest stays.",
    )
    encode: EncodeSettings = Field(default=EncodeSettings(), description="Scaling and encoding.")
    limits: Limits = Field(
        default=Limits(), description="When decoding one video is given up, and it is quarantined."
    )

    def output_path(self) -> str:
        """Returns the absolute folder (or URI) of the shard set."""
        return self.shards_path(self.output or self.dataset or "unlabelled")

    def content(self) -> dict[str, object]:
        """Returns the settings that decide what the shards hold."""
        keys = {"dataset", "test_share", "segment_seconds", "min_seconds", "min_side_px"}
        return self.model_dump(mode="json", include=keys | {"shard_mb", "encode"})
