"""Settings of many fine-tunings that are compared: label curves, networks to start from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dynamonet.settings import Settings
from finetune.settings import FinetuneSettings, Recipe


class ScratchSettings(Settings):
    """What trainings from scratch have of their own; null = as the pretrained ones have it."""

    lr: float | None = Field(default=None, gt=0, description="Peak learning rate, of all parts.")
    max_steps: int | None = Field(default=None, ge=1, description="Steps.")
    max_minutes: float | None = Field(
        default=None, gt=0, description="Minutes, say those of the pretraining too."
    )

    def applied(self, settings: FinetuneSettings) -> FinetuneSettings:
        """Returns the settings of a training from scratch beside a pretrained one's."""
        update: dict[str, Any] = {"pretrained": "none", "recipe": "full", "trunk_rate": 1.0}
        if self.lr is not None:
            update["optimizer"] = settings.optimizer.model_copy(update={"lr": self.lr})
        given = {"max_steps": self.max_steps, "max_minutes": self.max_minutes}
        update |= {name: value for name, value in given.items() if value is not None}
        return settings.model_copy(update=update)


class SeriesSettings(FinetuneSettings):
    """Many trainings that are compared."""

    recipe: Recipe = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # not auto
        default="full", description="What is trained; a training from scratch is always full."
    )
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
    recipes: tuple[Literal["ridge", "attentive", "full"], ...] = Field(
        default=("ridge", "attentive", "full"),
        min_length=1,
        description="Frozen networks read in two ways, full fine-tuning; encoders are kept frozen.",
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
