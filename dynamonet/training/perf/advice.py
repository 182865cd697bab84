"""Names what holds a training up, and the setting to change: one sentence from the time split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dynamonet.training.numerics.precision import Precision, fastest_format
from dynamonet.training.perf.timer import OTHER_PARTS, STEP_PARTS
from dynamonet.training.settings import TrainSettings

ADVISES_AFTER_STEPS = 100
# shares of the time from which a part is worth a change; not studied
LIMITS = {
    "wait": 0.1,
    "copy": 0.15,
    "optimiser": 0.25,
    "logging": 0.05,
    "evaluation": 0.1,
    "checkpoint": 0.1,
}
GOOD_MFU = 0.4  # of the arithmetic alone; not studied


@dataclass(frozen=True)
class PerfContext:
    """What the advice depends on beside the time."""

    device_type: str
    precision: str  # bf16, fp16 or fp32
    fastest: str  # that the device multiplies fastest
    compiled: bool
    processes: int  # loader processes of a worker
    threads: int  # cores of a worker
    batch_size: int  # over all workers
    canvas_px: int
    log_every_steps: int
    checkpoint_every_steps: int

    @classmethod
    def of(
        cls,
        settings: TrainSettings,
        precision: Precision,
        *,
        compiled: bool,
        processes: int,
        threads: int,
    ) -> PerfContext:
        """Gathers them for a worker."""
        return cls(
            device_type=precision.device_type,
            precision=precision.format,
            fastest=fastest_format(torch.device(precision.device_type)),
            compiled=compiled,
            processes=processes,
            threads=threads,
            batch_size=settings.loader.batch_size,
            canvas_px=settings.clips.canvas_px,
            log_every_steps=settings.log_every_steps,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        )


def advise(seconds: Mapping[str, float], mfu: float, about: PerfContext) -> str:
    """Returns the bottleneck of a time split and the setting to change.

    The part that passes its limit by most is named; where none does, arithmetic is the bottleneck.

    Args:
        seconds: Of each part, as `Stopwatch.read` gives it.
        mfu: Over the whole time of the steps.
    """
    total = max(1e-9, sum(seconds[part] for part in STEP_PARTS + OTHER_PARTS))
    shares = {part: seconds[part] / total for part in STEP_PARTS + OTHER_PARTS}
    worst = max(LIMITS, key=lambda part: shares[part] / LIMITS[part])
    if shares[worst] < LIMITS[worst]:
        return _arithmetic(shares, mfu, about)
    return f"{shares[worst]:.0%} of the time {_REMEDIES[worst](about)}"


def _wait(about: PerfContext) -> str:
    text = "is spent waiting for clips: "
    if not about.processes:
        return text + "set loader.processes to 1 or more, they are decoded between the steps now"
    if about.device_type == "cpu" and about.processes >= about.threads:
        return (
            text + f"{about.processes} loader processes share {about.threads} cores with the "
            "arithmetic, so raise cpus_per_worker, or make shards of fewer pixels "
            f"(encode.short_side_px; clips are {about.canvas_px} px)"
        )
    return text + f"raise loader.processes (now {about.processes})"


def _copy(about: PerfContext) -> str:
    return "goes into bringing clips to the device and normalising them: lower model.frame_px"


def _optimiser(about: PerfContext) -> str:
    return (
        "goes into the update of the weights, whatever the batch: "
        f"raise loader.batch_size (now {about.batch_size})"
    )


def _logging(about: PerfContext) -> str:
    return f"goes into logging: raise log_every_steps (now {about.log_every_steps})"


def _evaluation(about: PerfContext) -> str:
    return "goes into evaluation: raise evaluate_every_steps, or measure on fewer clips"


def _checkpoint(about: PerfContext) -> str:
    return (
        "goes into writing checkpoints: raise checkpoint_every_steps "
        f"(now {about.checkpoint_every_steps})"
    )


_REMEDIES: dict[str, Callable[[PerfContext], str]] = {
    "wait": _wait,
    "copy": _copy,
    "optimiser": _optimiser,
    "logging": _logging,
    "evaluation": _evaluation,
    "checkpoint": _checkpoint,
}


def _arithmetic(shares: Mapping[str, float], mfu: float, about: PerfContext) -> str:
    share = shares["forward"] + shares["backward"]
    text = f"{share:.0%} of the time is the network's arithmetic, at {mfu:.0%} of the peak: "
    if mfu / max(share, 1e-9) >= GOOD_MFU:
        return text + "nothing holds it up; more num_workers or a smaller model.trunk go faster"
    if about.precision != about.fastest and about.device_type == "cuda":  # CPUs: it depends on size
        return text + f"set precision to auto, {about.fastest} is faster here"
    if about.device_type == "cuda" and not about.compiled:
        return text + "set compile to on"
    if about.device_type == "cuda":
        return text + f"raise loader.batch_size (now {about.batch_size})"
    return text + "its layers are small for this device; a wider model.trunk costs little more"
