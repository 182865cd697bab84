"""How fast a training is, and how fast its device could be.

    MFU = arithmetic of the model in a step / (seconds of the step x peak of the device)

The peak is measured where the training runs: a matrix product in the training's own format.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynamonet.training.numerics.speed import finish
from dynamonet.training.perf.timer import OTHER_PARTS, STEP_PARTS

PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices; a device's pipelines are full with these
PEAK_SECONDS = 0.1
BACKWARD = 2  # times the forward arithmetic: gradients of inputs and of weights. Source: PaLM


@dataclass(frozen=True)
class Capacity:
    """What a step costs one worker, and what its device can do at most."""

    flops_per_clip: float  # forward and backward
    peak: float  # FLOP/s

    def mfu(self, clips_per_second: float) -> float:
        """Returns the share of the device's peak that so many clips/s of this worker use."""
        return self.flops_per_clip * clips_per_second / self.peak

    def __str__(self) -> str:
        return (
            f"{self.flops_per_clip / 1e9:,.1f} GFLOP a clip, forward and backward; this device "
            f"multiplies matrices at {self.peak / 1e9:,.0f} GFLOP/s"
        )


def measure_capacity(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> Capacity:
    """Counts a step's arithmetic and measures the device's peak; takes a fraction of a second.

    Args:
        clip: (B, 3, T, H, W) on the device; the first clip is run through the model.
        dtype: Format of the training.
    """
    flops = count_flops(model, clip[:1]) * (1 + BACKWARD)
    return Capacity(flops, measure_peak(clip.device, dtype))


def count_flops(model: nn.Module, clip: Tensor) -> float:
    """Returns the arithmetic of a forward pass, counted by torch: convolutions and products.

    The backward pass is not counted: torch takes the weight gradients of grouped convolutions for
    dense ones.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clip)
    model.train(was_training)
    return float(counter.get_total_flops())


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns FLOP/s of the best of several square matrix products."""
    side = PEAK_SIDE.get(device.type, PEAK_SIDE["cpu"])
    generator = torch.Generator().manual_seed(0)  # zeros would be multiplied faster than data
    matrix = torch.randn(side, side, generator=generator).to(device, dtype)
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < 1 or spent < PEAK_SECONDS:  # one round of fp16 takes seconds on a CPU
        finish(device)
        before = time.perf_counter()
        torch.mm(matrix, matrix)
        finish(device)
        seconds = time.perf_counter() - before
        best, spent, rounds = min(best, seconds), spent + seconds, rounds + 1
    return 2 * side**3 / best


def speed_metrics(
    seconds: Mapping[str, float], *, steps: int, clips: int, num_ranks: int, capacity: Capacity
) -> dict[str, float]:
    """Returns the metrics of a window of steps: rates, times of a step, times of all else.

    Args:
        seconds: Of each part, as `Stopwatch.read` gives it.
        clips: That this worker saw.
    """
    spent = max(1e-9, sum(seconds[part] for part in STEP_PARTS))
    rate = clips / spent
    metrics = {
        "train/clips_per_second": rate * num_ranks,
        "train/data_wait_share": seconds["wait"] / spent,
        "train/mfu": capacity.mfu(rate),
    }
    metrics |= {f"time/{part}_ms": 1000 * seconds[part] / max(1, steps) for part in STEP_PARTS}
    return metrics | {f"time/{part}_s": seconds[part] for part in OTHER_PARTS if seconds[part]}
