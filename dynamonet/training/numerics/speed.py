"""How long a convolution, or a whole network, takes there and back in a format: measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dynamonet.training.numerics.forms import FORMS, take

ROUNDS = 3  # of which the fastest counts; one before them warms up
TIMED_CLIPS = 4  # through a convolution
TIMED_PIXELS = 2**20  # through a network


def finish(device: torch.device) -> None:
    """Waits for what a device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    layer: nn.Conv3d, form: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> float:
    """Times a convolution of pixels, which need no gradient, in a form and a format.

    Args:
        shape: (B, C, T, H, W) of what it is given; few of the B clips are taken.
    """
    twin = copy.deepcopy(layer).requires_grad_()
    twin.__class__ = FORMS[form]
    x = torch.randn((min(TIMED_CLIPS, shape[0]), *shape[1:]), device=device)
    x = x.contiguous(memory_format=torch.channels_last_3d)

    def run() -> None:
        with torch.autocast(device.type, dtype):
            out = twin(x)
        out.backward(torch.ones_like(out))

    return _best(run, device)


def seconds_of_network(
    model: nn.Module, forms: Mapping[str, str], clip: Tensor, dtype: torch.dtype
) -> float:
    """Times a network to its features and back, few of the clips (B, 3, T, H, W) at once.

    Args:
        forms: Of its convolutions, see `take`.
    """
    twin, device = copy.deepcopy(model).train().requires_grad_(), clip.device
    take(forms, twin)
    few = clip[: max(1, TIMED_PIXELS // clip[0, 0].numel())]
    x = torch.randn_like(few, memory_format=torch.channels_last_3d)

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = twin(x)
        features: Tensor = getattr(out, "features", out)
        features.float().square().mean().backward()

    return _best(run, device)


def _best(run: Callable[[], None], device: torch.device) -> float:
    found = []
    for _ in range(1 + ROUNDS):
        finish(device)
        began = time.perf_counter()
        run()
        finish(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])
