"""How fast the machine multiplies matrices, and how fast a network's convolutions run on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler tells of its starts and stops

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import interleaved
from dynamonet.model.network import DynamoNet
from dynamonet.training.numerics.precision import Precision


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Returns the best rate of a square matrix product in FLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = interleaved({"": lambda: a @ b}, rounds=10, warmups=3)[""]
    return 2 * size**3 / min(seconds)


@dataclass(frozen=True)
class ConvRate:
    """How fast a network's convolutions run. FLOPs count forward and both gradients."""

    usable: float  # FLOP/s of those that the chosen precision gets right as they are
    share: float  # of all convolution FLOPs that those make up


def conv_rate(model: DynamoNet, precision: Precision, clip: Tensor) -> ConvRate:
    """Times every convolution of the trunk on its own input, forward and backward, as it is run."""
    inputs: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.trunk.named_modules() if isinstance(m, nn.Conv3d)}
    hooks = []
    for name, layer in layers.items():

        def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            inputs[name] = given[0].detach()

        hooks.append(layer.register_forward_pre_hook(note))
    with torch.no_grad(), precision.autocast():
        model.trunk(clip)
    for hook in hooks:
        hook.remove()
    flops, seconds = {}, {}
    for name, layer in layers.items():
        given = inputs[name].to(precision.dtype).requires_grad_(name != "stem.conv")

        def step(layer: nn.Module = layer, given: Tensor = given) -> None:
            with precision.autocast():
                out = layer(given)
            out.backward(torch.ones_like(out))

        with FlopCounterMode(display=False) as counter:
            step()
        flops[name] = counter.get_total_flops()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(3):
                step()
        seconds[name] = sum(
            event.self_cpu_time_total for event in seen.key_averages() if "convolution" in event.key
        ) / (3 * 1e6)
    right = [name for name in layers if f"trunk.{name}" not in precision.forms]
    usable = sum(flops[n] for n in right)
    return ConvRate(usable / sum(seconds[n] for n in right), usable / sum(flops.values()))
