"""How much of a training is done, its learning rate by that, and which parameters decay."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from dynamonet.training.distributed.rank import Rank
from dynamonet.training.settings import OptimizerSettings


class Clock:
    """How much of a training is done: by its steps, and by rank 0's clock where that ends it."""

    def __init__(self, rank: Rank, most: float | None) -> None:
        """Args:
        most: Minutes that a training may take, all its starts together; None = any.
        """
        self.rank, self.most = rank, most
        self.began = time.monotonic()
        self.share_done = 0.0  # of the training

    @property
    def minutes(self) -> float:
        """Those of earlier starts included."""
        return (time.monotonic() - self.began) / 60

    def go_on(self, minutes: float) -> None:
        """Starts it anew as one that has run for that long."""
        self.began = time.monotonic() - 60 * minutes

    @property
    def spent(self) -> float:
        """Rank 0's share of the time that is spent, to be summed over ranks; 0 = no matter."""
        return 0.0 if self.most is None or not self.rank.is_main else self.minutes / self.most

    def step(self, done: int, total_steps: int, spent: float = 0.0) -> None:
        """Notes that `done` steps are done, and rank 0's share of the time."""
        self.share_done = min(1.0, max(done / total_steps, spent))

    def expected_steps(self, done: int) -> int:
        """Returns how many steps the whole training will have, if it goes on as so far."""
        return round(done / self.share_done)


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
    # one loop over each tensor's memory, which must lie as that of its gradient and its moments do:
    # nobody checks it, but autograd and `load_checkpoint` see to it
    fused = all(p.is_cpu for group in params for p in group["params"])
    return torch.optim.AdamW(params, lr=settings.lr, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its peak times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
