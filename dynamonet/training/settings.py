"""Settings that pretraining and fine-tuning share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dynamonet.settings import Settings
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.stage import StageSettings

FormatName = Literal["auto", "bf16", "fp16", "fp32"]
COMPILE_PAYS_STEPS = 1000  # not studied
NO_LIMIT = 10**9  # steps of a training that the clock ends


class OptimizerSettings(Settings):
    """The update rule and its schedule: linear warm-up, then cosine to zero."""

    kind: Literal["sgd", "adamw"] = Field(
        default="adamw", description="sgd = with Nesterov momentum 0.9."
    )
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        default=0.05, ge=0, description="Decay of weights; not of norms and biases."
    )
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of all steps spent warming up."
    )
    clip_norm: float = Field(default=1.0, gt=0, description="Norm to which gradients are clipped.")


class TrainSettings(StageSettings):
    """What each training stage's settings begin with."""

    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after this many steps; null = never."
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Train for so long by the clock, instead of `epochs`; the learning rate "
        "follows the clock too. null = by epochs.",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the weights, the order and all randomness."
    )
    num_workers: int = Field(default=1, ge=1, description="Ray Train workers.")
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="Fewest workers to continue with when nodes are lost; null = num_workers.",
    )
    max_restarts: int = Field(
        default=3, ge=0, description="Times that lost workers are started again in one go."
    )
    collective_timeout_seconds: int = Field(
        default=600, ge=1, description="Longest wait for another worker before it counts as lost."
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto = one GPU a worker where the cluster has GPUs."
    )
    cpus_per_worker: int | None = Field(
        default=None,
        ge=1,
        description="Cores a worker reserves; null = an even share of the cluster's.",
    )
    precision: FormatName = Field(
        default="auto",
        description="Of the trunk; auto = bf16 where the hardware has it and it is faster.",
    )
    wrong_gradients: Literal["repair", "refuse"] = Field(
        default="repair",
        description="Layers whose gradients that precision gets wrong: run another way, or stop.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compile the trunk; auto = on GPUs, for trainings of 1,000 steps or more.",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="Most clips a worker takes at once, the rest of its share after; null = all.",
    )
    activation_checkpointing: bool = Field(
        default=False, description="Compute activations twice and keep fewer: less memory, slower."
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Measure and keep a moving average of the weights; null = the weights.",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="What a loss or gradient that is not finite does to its step."
    )
    max_skipped_share: float = Field(
        default=0.01, ge=0, le=1, description="skip: share of all steps at which the run stops."
    )
    resume: bool = Field(
        default=True,
        description="Go on with an unfinished run of the same name or the same settings.",
    )
    profile: bool = Field(
        default=False, description="Trace a few of the first steps with torch's profiler."
    )
    log_every_steps: int = Field(
        default=10, ge=1, description="Steps between two lines of the log."
    )
    checkpoint_every_steps: int = Field(
        default=200, ge=1, description="Steps between two checkpoints."
    )
    checkpoint_every_minutes: float | None = Field(
        default=None, gt=0, description="Also save after this many minutes; null = never."
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="Newest checkpoints to keep, besides the best one."
    )
    optimizer: OptimizerSettings = Field(default=OptimizerSettings(), description="Update rule.")
    clips: ClipSettings = Field(
        default=ClipSettings(), description="How clips are cut from segments."
    )
    loader: LoaderSettings = Field(
        default=LoaderSettings(), description="How clips reach the model."
    )

    @model_validator(mode="after")
    def _go_together(self) -> TrainSettings:
        if self.compile == "on" and self.activation_checkpointing:
            raise ValueError("compile: on and activation_checkpointing do not go together")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is above num_workers = {self.num_workers}")
        return self

    @property
    def weights_seed(self) -> int:
        """Decides the weights that start at random."""
        return self.seed

    @property
    def order_seed(self) -> int:
        """Decides the order of clips and how they are changed."""
        return self.seed

    def passes(self, steps_per_epoch: int) -> float:
        """Returns how many epochs the training takes, unless steps or minutes end it."""
        raise NotImplementedError

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns how many steps the whole training takes at most, at least one."""
        steps = max(1, round(self.passes(steps_per_epoch) * steps_per_epoch))
        if self.max_minutes is not None:
            steps = NO_LIMIT
        return min(steps, self.max_steps or steps)

    def compiles(self, device_type: str, total_steps: int) -> bool:
        """Tells whether the trunk is compiled.

        On CPUs compiling was measured to change a step by -11 to 3 % (benchmarks/bench_model.py),
        which does not repay the half minute that it takes. It depends on the whole length of the
        training, so that a resumed run computes as it began.
        """
        if self.activation_checkpointing:
            return False
        pays = device_type == "cuda" and total_steps >= COMPILE_PAYS_STEPS
        return pays if self.compile == "auto" else self.compile == "on"
