"""Settings of stage 1."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dynamonet.child_process import Limits
from dynamonet.settings import Settings
from dynamonet.shards.settings import FrameSettings
from dynamonet.stage import StageSettings

LABELLED_SECONDS = 0.1  # shortest labelled video: all that the lists name are kept
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


class FilterSettings(Settings):
    """Which segments the index leaves out for what they show; all null = none, as in labelled sets.

    A segment whose score is beyond the threshold is in quarantine with it. It stays in its tar, so
    that a threshold can be changed in seconds.
    """

    min_brightness: float | None = Field(
        default=None, ge=0, le=1, description="Least mean brightness, 0 = black; null = off."
    )
    max_black_share: float | None = Field(
        default=0.95, ge=0, le=1, description="Greatest share of black frames; null = off."
    )
    max_static_share: float | None = Field(
        default=0.99,
        ge=0,
        le=1,
        description="Greatest share of time in which nothing moves; null = off.",
    )
    max_slideshow: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Greatest share of still time between jumps of the picture; null = off.",
    )
    max_border_share: float | None = Field(
        default=None, ge=0, le=1, description="Greatest share of black bars; null = off."
    )
    min_motion: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least mean change of brightness in a quarter of a second; null = off.",
    )
    max_motion: float | None = Field(
        default=None, ge=0, le=1, description="Greatest such change; null = off."
    )


class PrepSettings(StageSettings):
    """Cuts raw videos into segments and writes them as WebDataset shards."""

    configs = "data_prep"
    usual = tuple(
        "source output dataset lists group_pattern segment_seconds cut encode.short_side_px "
        "near_duplicates exclude name".split()
    )

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
    group_pattern: str | None = Field(
        default=None,
        description="folder without a CSV: regular expression whose first bracket, in a file's "
        "name, is its group; null = v_X_g01_c01 and the like are of group v_X_g01.",
    )
    segment_seconds: float = Field(
        default=10.0, gt=0, description="Length of a segment in seconds."
    )
    cut: Literal["fixed", "shots"] = Field(
        default="fixed",
        description="fixed = segments follow each other; shots = one ends at a scene cut, too.",
    )
    min_seconds: float = Field(
        default=1.0,
        ge=0,
        description="Shortest last piece, shot or whole video that is kept, in seconds; 0.1 where "
        "videos are labelled.",
    )
    max_segments_per_video: int | None = Field(
        default=None,
        ge=1,
        description="Segments taken of a video, spread evenly over it; null = all.",
    )
    min_side_px: int = Field(
        default=16, ge=2, description="Videos with a shorter side are not taken."
    )
    shard_mb: float = Field(default=16.0, gt=0, description="Aimed size of a tar in megabytes.")
    retry_quarantined: bool = Field(
        default=False,
        description="Try again what the quarantine table holds; the rest stays.",
    )
    near_duplicates: Literal["report", "drop", "off"] = Field(
        default="report",
        description="Segments that are copies of others, encoded, cropped or cut differently: only "
        "report them, drop all but the first, or do not look.",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="Shard sets, by name or path: what is a copy of a segment of theirs is left "
        "out, so that no test video is trained on.",
    )
    encode: EncodeSettings = Field(default=EncodeSettings(), description="Scaling and encoding.")
    filters: FilterSettings = Field(
        default=FilterSettings(), description="What segments must be like to be kept."
    )
    limits: Limits = Field(
        default=Limits(), description="When decoding one video is given up, and it is quarantined."
    )

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern

    @model_validator(mode="before")
    @classmethod
    def _keeps_what_is_listed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Labelled sets keep all that their lists name, unless a filter is asked for."""
        if values.get("dataset") is None:
            return values
        none = dict.fromkeys(FilterSettings.model_fields)
        filters = values.get("filters", {})
        if isinstance(filters, dict):
            filters = none | filters
        return {"min_seconds": LABELLED_SECONDS} | values | {"filters": filters}

    def output_path(self) -> str:
        """Returns the absolute folder (or URI) of the shard set."""
        return self.shards_path(self.output or self.dataset or "unlabelled")

    def excluded_paths(self) -> list[str]:
        """Returns the absolute folders (or URIs) of the excluded sets."""
        return [self.shards_path(name) for name in self.exclude]

    def content(self) -> dict[str, object]:
        """Returns the settings that decide what the shards hold."""
        keys = {"dataset", "test_share", "min_side_px", "max_segments_per_video", "shard_mb"}
        keys |= {"group_pattern"} if self.group_pattern else set()
        return self.model_dump(mode="json", include=keys) | self.encoding()

    def encoding(self) -> dict[str, object]:
        """Returns the settings that decide what segments a time range of a video gives."""
        keys = {"segment_seconds", "cut", "min_seconds", "encode"}
        return self.model_dump(mode="json", include=keys)
