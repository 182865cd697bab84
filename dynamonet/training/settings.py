"""Settings that pretraining and fine-tuning share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynamonet.settings import Settings
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.stage import StageSettings

COMPILE_PAYS_STEPS = 1000  # not studied


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

    epochs: float = Field(default=10.0, gt=0, description="Passes over the data.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after so many steps; null = never."
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the weights, the order and all randomness."
    )
    num_workers: int = Field(default=1, ge=1, description="Ray Train workers.")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto = one GPU a worker where the cluster has GPUs."
    )
    cpus_per_worker: int | None = Field(
        default=None,
        ge=1,
        description="Cores a worker reserves; null = an even share of the cluster's.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Of the trunk; auto = bf16 where the hardware multiplies it fast.",
    )
    wrong_gradients: Literal["repair", "refuse"] = Field(
        default="repair",
        description="Layers whose gradients that precision gets wrong: run another way, or stop.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compile the trunk; auto = on GPUs, for trainings of 1,000 steps or more.",
    )
    resume: bool = Field(
        default=True,
        description="Go on with an unfinished run of the same name or the same settings.",
    )
    log_every_steps: int = Field(
        default=10, ge=1, description="Steps between two lines of the log."
    )
    checkpoint_every_steps: int = Field(
        default=200, ge=1, description="Steps between two checkpoints."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept.")
    optimizer: OptimizerSettings = Field(default=OptimizerSettings(), description="Update rule.")
    clips: ClipSettings = Field(
        default=ClipSettings(), description="How clips are cut from segments."
    )
    loader: LoaderSettings = Field(
        default=LoaderSettings(), description="How clips reach the model."
    )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns how many steps the whole training takes, at least one."""
        steps = max(1, round(self.epochs * steps_per_epoch))
        return min(steps, self.max_steps or steps)

    def compiles(self, device_type: str, total_steps: int) -> bool:
        """Tells whether the trunk is compiled.

        On CPUs compiling was measured to change a step by -11 to 3 % (benchmarks/bench_model.py),
        which does not repay the half minute that it takes. It hangs on the whole length of the
        training, so that a resumed run computes as it began.
        """
        pays = device_type == "cuda" and total_steps >= COMPILE_PAYS_STEPS
        return pays if self.compile == "auto" else self.compile == "on"
