"""Settings of stage 3, and what its predictions can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from dynamonet.model.config import ModelConfig
from dynamonet.training.settings import TrainSettings


class FinetuneSettings(TrainSettings):
    """Everything that `finetune/run.py` can be told."""

    dataset: Literal["hmdb51", "ucf101", "kinetics400", "folder"] = Field(
        default="folder", description="Labelled set; also chooses configs/finetune/<dataset>.yaml."
    )
    shards: str | None = Field(
        default=None,
        description="Its shard set: bare name below shards_root, or path; null = dataset.",
    )
    split: int = Field(default=1, ge=1, description="Which of the set's splits, from 1.")
    test_part: Literal["test", "val"] = Field(
        default="test", description="Part that is measured; Kinetics publishes labels of val only."
    )
    label_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of each class's training videos that is used."
    )
    pretrained: str = Field(
        default="newest",
        description="newest = of the tracking store; none = from scratch; else a model's "
        "folder, an MLflow run id, a Hugging Face hub id, or a file of weights of a known network "
        "(docs/transfer.md).",
    )
    min_loaded_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of trunk and filter weights that must fit."
    )
    model: ModelConfig | None = Field(
        default=None, description="The network; null = as pretrained, or the default from scratch."
    )
    use_dmr: bool = Field(
        default=True, description="The classifier reads the DMR beside the features."
    )
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout before the classifier.")
    aux_weight: float = Field(
        default=1.0, ge=0, description="Weight of frame prediction beside cross-entropy; 0 = off."
    )
    trunk_rate: float = Field(
        default=0.1,
        gt=0,
        description="Learning rate of trunk and filters, as a share of the classifier's.",
    )
    test_clips: int = Field(
        default=4, ge=1, description="Clips of each test segment that are averaged, spread evenly."
    )

    def shards_name(self) -> str:
        return self.shards or self.dataset


@dataclass(frozen=True)
class PredictOptions:
    """What `finetune/predict.py` can be asked; its --help says more."""

    model: str
    videos: list[str]
    window_seconds: float | None
    step_seconds: float | None
    top: int
    batch_size: int
    output: Path | None
    filmstrip: Path | None
    features: Path | None
