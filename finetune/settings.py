"""Settings of stage 3."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dynamonet.model.config import READS, NetworkConfig, PixelScale, Reads
from dynamonet.settings import Settings, whole_number
from dynamonet.shards.settings import ClipSettings
from dynamonet.training.settings import TrainSettings

Recipe = Literal["full", "ridge", "attentive"]
Crops = Annotated[Literal[1, 3], BeforeValidator(whole_number)]
CROPS = (
    "Squares of each clip that are averaged: 1 = the middle, 3 = both ends as well, weighed by how "
    "much changes in each."
)


class LabelledClipSettings(ClipSettings):
    """How clips are cut from labelled segments; colours vary, so that they do not tell classes."""

    colour_jitter: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Range of the brightness, contrast and saturation factors.",
    )


class AugmentSettings(Settings):
    """How training clips and labels are changed, beside crop, mirror and colour of `clips`."""

    mixup: float = Field(
        default=0.0,
        ge=0,
        description="Mix two clips and their labels by a share from Beta(a, a); 0 = off.",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        description="Put a box of one clip into another by a share from Beta(a, a); 0 = off.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of each label spread over all classes."
    )
    erase: float = Field(
        default=0.0, ge=0, le=1, description="Share of clips in which a box is greyed out."
    )
    photometric: int = Field(
        default=0, ge=0, le=4, description="Photometric changes applied to each clip; 0 = none."
    )
    photometric_strength: float = Field(
        default=0.5, gt=0, le=1, description="How strong they are at most; 1 = hardly recognisable."
    )
    no_flip: tuple[str, ...] = Field(
        default=(), description="Classes that a mirror changes: their clips are not mirrored."
    )


class SeedSettings(Settings):
    """What a seed decides, each of which can be held still while the others vary; null = seed."""

    labels: int | None = Field(
        default=None, ge=0, description="Which videos label_share keeps, and val_share cuts off."
    )
    weights: int | None = Field(default=None, ge=0, description="The weights that start at random.")
    order: int | None = Field(
        default=None, ge=0, description="The order of clips, their crops and other changes."
    )


class FinetuneSettings(TrainSettings):
    """Fine-tunes a pretrained model on a labelled shard set and measures it."""

    configs = "finetune"
    usual = tuple(
        "dataset shards split pretrained recipe label_share seeds max_minutes optimizer.lr name "
        "dry_run".split()
    )

    epochs: float = Field(default=60.0, gt=0, description="Passes over the data.")
    clips: LabelledClipSettings = Field(  # type: ignore[assignment]
        default=LabelledClipSettings(), description="How clips are cut from segments."
    )
    dataset: Literal["hmdb51", "ucf101", "kinetics400", "folder"] = Field(
        default="folder", description="Labelled set; also chooses configs/finetune/<dataset>.yaml."
    )
    shards: str | None = Field(
        default=None,
        description="Its shard set: bare name below shards_root, or path; null = dataset.",
    )
    split: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=1, description="Which of the set's splits, from 1; all = one run each."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="One run for each of these seeds; null = seed alone."
    )
    hold: SeedSettings = Field(
        default=SeedSettings(), description="Seeds of parts of the training alone."
    )
    test_part: Literal["test", "val"] = Field(
        default="test", description="Part that is measured; Kinetics publishes labels of val only."
    )
    test: bool = Field(
        default=True, description="Measure the test part at the end; off to choose settings."
    )
    dry_run: bool = Field(
        default=False,
        description="Say what would be trained, on how much, and take two steps for an estimate of "
        "minutes and memory; nothing is kept.",
    )
    allow_seen_test_videos: bool = Field(
        default=False,
        description="Measure though the weights were trained on test videos; the result says so.",
    )
    label_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of each class's training videos that is used; the seed says which.",
    )
    val_share: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of training videos, whole groups, by which the best step is chosen and "
        "that is not trained on; null = the set's own val part, else 0.1; 0 = none.",
    )
    validate_every_steps: int = Field(
        default=200, ge=1, description="Steps between two measurements on those."
    )
    pretrained: str = Field(
        default="newest",
        description="newest = of the tracking store; none = from scratch; motion = the small "
        "network that the package brings; else a model's folder, an MLflow run id, a Hugging Face "
        "hub id, or a file of weights of a known network (docs/transfer.md). Several, after "
        "commas, are read together by ridge.",
    )
    pixel_scale: PixelScale | None = Field(
        default=None,
        description="Pixels that other people's weights were trained on; null = as they usually "
        "are.",
    )
    min_loaded_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of trunk and filter weights that must fit."
    )
    model: NetworkConfig | None = Field(
        default=None, description="The network; null = as pretrained, or the default from scratch."
    )
    recipe: Recipe | Literal["auto"] = Field(
        default="auto",
        description="full = train everything; a frozen network with ridge regression, which takes "
        "seconds, or an attentive probe. auto = ridge, then full, of which the one is kept that "
        "validation videos prefer.",
    )
    reads: Reads = Field(default="field", description=READS)
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout before the classifier.")
    aux_weight: float = Field(
        default=1.0,
        ge=0,
        description="full: weight of frame prediction added to cross-entropy; 0 = off.",
    )
    trunk_rate: float | None = Field(
        default=None,
        gt=0,
        description="full: learning rate of trunk and filters, as a share of the classifier's; "
        "null = 0.1 of weights that others trained, else 1.",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="full: each stage of the trunk learns by so much slower than the one above.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced = rare classes weigh more in the loss."
    )
    augment: AugmentSettings = Field(
        default=AugmentSettings(), description="Changes of training clips and labels."
    )
    test_clips: int = Field(
        default=4, ge=1, description="Clips of each test segment that are averaged, spread evenly."
    )
    test_crops: Crops = Field(default=3, description=CROPS)

    @model_validator(mode="after")
    def _probes_need_features(self) -> FinetuneSettings:
        frozen = self.recipe not in ("auto", "full")
        if frozen and self.pretrained == "none" and self.model is None:
            raise ValueError(
                f"recipe: {self.recipe} reads the features of a pretrained model, and pretrained "
                "is none; to measure random ones give a model"
            )
        return self

    @model_validator(mode="after")
    def _several_are_read(self) -> FinetuneSettings:
        if len(self.starts) > 1 and (self.recipe != "ridge" or "none" in self.starts):
            raise ValueError(
                f"pretrained: {self.pretrained} names several models, which only frozen ones can "
                "be read together: set recipe to ridge, and leave out none"
            )
        return self

    @property
    def starts(self) -> tuple[str, ...]:
        """The models that `pretrained` names; a folder may have commas in its name."""
        whole = "," not in self.pretrained or Path(self.pretrained).expanduser().exists()
        return (self.pretrained,) if whole else tuple(self.pretrained.split(","))

    def passes(self, steps_per_epoch: int) -> float:
        return self.epochs

    def shards_name(self) -> str:
        return self.shards or self.dataset

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns how many steps the training takes; ridge takes none."""
        return super().total_steps(steps_per_epoch) if self.recipe != "ridge" else 0

    @property
    def auxiliary(self) -> float:
        """The weight of frame prediction in the loss; frozen filters have nothing to learn."""
        return self.aux_weight if self.recipe == "full" else 0.0

    @property
    def labels_seed(self) -> int:
        """Which videos are kept, and which are validated on."""
        return self.seed if self.hold.labels is None else self.hold.labels

    @property
    def weights_seed(self) -> int:
        return self.seed if self.hold.weights is None else self.hold.weights

    @property
    def order_seed(self) -> int:
        return self.seed if self.hold.order is None else self.hold.order

    @property
    def this_split(self) -> int:
        """The split of a single run."""
        assert self.split != "all"
        return self.split
