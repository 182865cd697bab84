"""What searches can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dynamonet.command_line import positional
from dynamonet.model.config import PixelScale
from dynamonet.settings import Settings


class SearchSettings(Settings):
    """What each command of `finetune/search.py` can be told."""

    features: Path = positional("The file or folder that predict.py --features wrote.")
    by: Literal["features", "motion", "dmr", "both"] = Field(
        default="both",
        description="What distances are computed from; both = features and the numbers of motion.",
    )
    output: Path | None = Field(default=None, description="FILE.csv or FILE.json to write.")
    overwrite: bool = Field(default=False, description="Replace outputs that are there already.")
    gallery: Path | None = Field(default=None, description="FILE.html to write, with pictures.")


class NearestSettings(SearchSettings):
    """The windows nearest to a query."""

    query: str = Field(description="VIDEO or VIDEO@SECONDS, in the file or new.")
    model: str | None = Field(
        default=None, description="The model of the features, for a video that is not in the file."
    )
    pixel_scale: PixelScale | None = Field(
        default=None, description="As for predict.py, for a new video and other people's weights."
    )
    top: int = Field(default=20, ge=1, description="Windows to find.")


class OutlierSettings(SearchSettings):
    """The windows farthest from those of all other videos."""

    neighbours: int = Field(default=10, ge=1, description="Nearest windows that are averaged.")
    top: int = Field(default=20, ge=1, description="Windows to find.")


class LabelNextSettings(SearchSettings):
    """The videos to label next: diverse, and unlike labelled ones."""

    labelled: Path | None = Field(
        default=None,
        description="CSV of path[,label]: the videos that are labelled already. The same file as "
        "--output: new rows go below those that are there.",
    )
    budget: int = Field(default=20, ge=1, description="Videos to choose.")
