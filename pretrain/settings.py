"""Settings of stage 2."""

from __future__ import annotations

from pydantic import Field, model_validator

from dynamonet.doctor.check import PreflightSettings
from dynamonet.model.config import LossName
from dynamonet.settings import Settings

PASSES, LEAST_CLIPS = 100, 60_000  # over the data, and seen, by default
# what a frozen network names right on two other sets, by clips seen: docs/results.md
CURVE = {2_000: 0.686, 8_000: 0.785, 32_000: 0.809}
WORTH_CLIPS = 30_000  # seen; with fewer no sure gain at equal steps, measured: docs/results.md


class ProbeSettings(Settings):
    """Clips whose classes are read off the frozen network at each measurement, and at the end."""

    shards: str | None = Field(
        default=None,
        description="Labelled shard set: bare name below shards_root, or path; null = no probe.",
    )
    split: int = Field(default=1, ge=1, description="Only the training part of this split is used.")
    max_clips: int = Field(
        default=1000, ge=2, description="Most of them; groups of videos are held out in turn."
    )
    drawn_clips: int = Field(
        default=96,
        ge=0,
        description="Without labelled ones: clips of drawn actions that no training has; 0 = none.",
    )


class MoverSettings(Settings):
    """Patches of other clips that move over training clips by displacements that are known."""

    share: float = Field(
        default=0.7, ge=0, le=1, description="Share of clips that get movers; 0 = none."
    )
    weight: float = Field(
        default=0.3,
        ge=0,
        description="Of the cross-entropy between filters and displacements; softmax filters only.",
    )


class DrawnSettings(Settings):
    """Clips of drawn figures whose actions and displacements are known, beside those read."""

    share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a step's clips that are drawn, in addition to loader.batch_size.",
    )
    weight: float = Field(
        default=0.1, ge=0, description="Of the cross-entropy of drawn actions in the loss."
    )

    def clips(self, read: int) -> int:
        """Returns how many clips are drawn beside so many that are read."""
        return max(1, round(read * self.share / (1 - self.share))) if self.share else 0


class PretrainSettings(PreflightSettings):
    """Pretrains a 3D-CNN with dynamic motion filters on a shard set."""

    configs = "pretrain"
    usual = tuple(
        "shards pretrained epochs max_steps max_minutes loader.batch_size optimizer.lr num_workers "
        "probe.shards name".split()
    )

    epochs: float | None = Field(
        default=None,
        gt=0,
        description=f"Passes over the data; null = {PASSES}, and more on a small set, until "
        f"{LEAST_CLIPS:,} clips are seen.",
    )
    split: int = Field(
        default=1,
        ge=1,
        description="Labelled sets: learn from the training part of this split only.",
    )
    pretrained: str = Field(
        default="none",
        description="Weights to go on from: none = from scratch; motion = the small network that "
        "the package brings; else a model's folder or a Hugging Face hub id.",
    )
    loss: LossName = Field(
        default="mse",
        description="Difference between predicted and true frames, on normalised RGB.",
    )
    movers: MoverSettings = Field(
        default=MoverSettings(), description="Moving patches pasted over clips."
    )
    drawn: DrawnSettings = Field(
        default=DrawnSettings(), description="Drawn figures beside the clips that are read."
    )
    holdout_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of videos kept from training to measure skill on.",
    )
    holdout_clips: int = Field(default=64, ge=1, description="Most clips used to measure skill.")
    evaluate_every_steps: int = Field(
        default=200, ge=1, description="Steps between two measurements."
    )
    probe: ProbeSettings = Field(
        default=ProbeSettings(), description="What does the frozen network know?"
    )

    @model_validator(mode="after")
    def _displacements_need_distributions(self) -> PretrainSettings:
        if self.displacement_weight and self.model.filters.normalisation != "softmax":
            raise ValueError(
                "movers.weight compares filters with displacements, which linear filters are not: "
                "set movers.weight to 0, movers.share to 0 (no movers at all), or "
                "model.filters.normalisation to softmax"
            )
        return self

    def passes(self, steps_per_epoch: int) -> float:
        least = LEAST_CLIPS / (self.loader.batch_size * steps_per_epoch)
        return max(PASSES, least) if self.epochs is None else self.epochs

    @property
    def displacement_weight(self) -> float:
        """The weight of known displacements, of movers and drawn figures, in the loss."""
        return self.movers.weight if self.movers.share or self.drawn.share else 0.0
