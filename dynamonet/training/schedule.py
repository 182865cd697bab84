"""Learning rate as a function of what is done, and which parameters decay."""

from __future__ import annotations

import math

import torch
from torch import nn

from dynamonet.training.settings import OptimizerSettings


def rate_factor(done: float, warmup_share: float) -> float:
    """Returns the learning rate as a share of its peak: linear up, cosine down to 0.

    Args:
        done: Share of the training that is done, 0 to 1.
    """
    if done < warmup_share:
        return done / warmup_share
    progress = (done - warmup_share) / (1 - warmup_share)
    return 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    groups: list[tuple[nn.Module, float]], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Builds the optimiser over the trainable parameters of some modules.

    Norms, biases and other vectors do not decay.

    Args:
        groups: (module, factor on the learning rate), disjoint.
    """
    params = []
    for module, factor in groups:
        trainable = [p for p in module.parameters() if p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in trainable if (p.ndim > 1) == decays]
            if chosen:
                decay = settings.weight_decay if decays else 0.0
                peak = settings.lr * factor
                params.append({"params": chosen, "weight_decay": decay, "lr": peak, "peak": peak})
    if settings.kind == "sgd":
        return torch.optim.SGD(params, lr=settings.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(params, lr=settings.lr)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its peak times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
