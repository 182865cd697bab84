"""Settings of stage 3."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from dynamonet.model.config import NetworkConfig, PixelScale
from dynamonet.settings import Settings, whole_number
from dynamonet.training.settings import TrainSettings


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
        "hub id, or a file of weights of a known network (docs/transfer.md).",
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
    recipe: Literal["full", "linear", "attentive", "knn"] = Field(
        default="full",
        description="full = train everything; frozen features with a linear layer, an attentive "
        "probe, or nearest neighbours.",
    )
    use_dmr: bool = Field(
        default=True, description="The classifier reads the DMR as well as the features."
    )
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
        "null = 0.1 of a pretrained model, 1 from scratch.",
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
    test_crops: Annotated[Literal[1, 3], BeforeValidator(whole_number)] = Field(
        default=1, description="Square crops of each clip: 1 = the middle, 3 = both ends as well."
    )

    @model_validator(mode="after")
    def _probes_need_features(self) -> FinetuneSettings:
        if self.recipe != "full" and self.pretrained == "none" and self.model is None:
            raise ValueError(
                f"recipe: {self.recipe} reads the features of a pretrained model, and pretrained "
                "is none; to measure random ones give a model"
            )
        return self

    def shards_name(self) -> str:
        return self.shards or self.dataset

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns how many steps the training takes; nearest neighbours take none."""
        return 0 if self.recipe == "knn" else super().total_steps(steps_per_epoch)

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


class ScratchSettings(Settings):
    """What trainings from scratch have of their own; null = as the pretrained ones have it."""

    lr: float | None = Field(default=None, gt=0, description="Peak learning rate, of all parts.")
    max_steps: int | None = Field(default=None, ge=1, description="Steps.")
    max_minutes: float | None = Field(
        default=None, gt=0, description="Minutes, say those of the pretraining too."
    )

    def applied(self, settings: FinetuneSettings) -> FinetuneSettings:
        """Returns the settings of a training from scratch beside a pretrained one's."""
        update: dict[str, Any] = {"pretrained": "none", "trunk_rate": 1.0}
        if self.lr is not None:
            update["optimizer"] = settings.optimizer.model_copy(update={"lr": self.lr})
        given = {"max_steps": self.max_steps, "max_minutes": self.max_minutes}
        update |= {name: value for name, value in given.items() if value is not None}
        return settings.model_copy(update=update)


class SeriesSettings(FinetuneSettings):
    """Many trainings that are compared."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=(0, 1, 2), min_length=1, description="Seeds of each; null = 0, 1, 2."
    )
    val_share: float | None = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of training videos that choose the best step; they are labels too, "
        "which the comparison does not count. 0, null = none.",
    )

    @field_validator("seeds", "val_share", mode="before")
    @classmethod
    def _own_defaults(cls, value: object, info: ValidationInfo) -> object:
        """A file of settings of a single run has null here."""
        assert info.field_name is not None
        return cls.model_fields[info.field_name].default if value is None else value

    def single(self, **update: Any) -> FinetuneSettings:
        """Returns the settings of one of the trainings."""
        plain = {k: v for k, v in dict(self).items() if k in FinetuneSettings.model_fields}
        return FinetuneSettings.model_construct(**plain | update)


class CurveSettings(SeriesSettings):
    """Compares pretrained with from scratch at growing shares of the labels."""

    usual = tuple(
        "dataset shards split pretrained shares seeds max_steps max_minutes scratch.lr name "
        "dry_run".split()
    )

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
        description="Shares of each class's training videos.",
    )
    scratch: ScratchSettings = Field(
        default=ScratchSettings(), description="What trainings from scratch have of their own."
    )

    @field_validator("shares")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)):
            raise ValueError("expected different shares, the smallest first, e.g. 0.01,0.1,1")
        return value


class ComparisonSettings(SeriesSettings):
    """Compares networks to start from on a labelled set: frozen, and fine-tuned."""

    usual = tuple(
        "dataset shards split backbones recipes seeds max_steps max_minutes test_clips name "
        "dry_run".split()
    )

    backbones: tuple[str, ...] = Field(
        default=("none", "newest"),
        min_length=1,
        description="What is compared, each as --pretrained takes it; none = from scratch.",
    )
    recipes: tuple[Literal["linear", "attentive", "full"], ...] = Field(
        default=("linear", "attentive", "full"),
        min_length=1,
        description="Probes of frozen features, full fine-tuning. Encoders are kept frozen.",
    )
    batch_clips: int = Field(
        default=8, ge=1, description="Clips that go through a frozen network together."
    )

    @field_validator("backbones", "recipes")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected each once")
        return value
