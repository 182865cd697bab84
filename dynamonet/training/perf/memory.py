"""What fits into memory: clips taken at once, and activations computed twice instead of kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dynamonet.errors import UserError
from dynamonet.training.distributed.rank import Rank

logger = logging.getLogger(__name__)


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of `number` that is at most `limit`."""
    return next(n for n in range(min(number, max(1, limit)), 0, -1) if number % n == 0)


def fitting_micro_batch(
    share: int,
    wanted: int,
    attempt: Callable[[int], None],
    rank: Rank,
) -> int:
    """Returns how many clips go through the model at once; halved until they fit on every rank.

    Args:
        share: Clips of a rank each step; the result divides it, so that each part weighs the same.
        wanted: Most clips at once.
        attempt: Runs forward and backward on so many clips.

    Raises:
        UserError: not even one clip fits.
    """
    micro = largest_divisor(share, wanted)
    while True:
        try:
            attempt(micro)
            short = False
        except torch.OutOfMemoryError:
            short = True
        torch.cuda.empty_cache()
        if not rank.any(short)[0]:
            return micro
        if micro == 1:
            raise UserError(
                "out of memory with one clip at a time. Set activation_checkpointing, "
                "precision: bf16, or a smaller model.frame_px, num_frames or trunk"
            )
        smaller = largest_divisor(share, micro // 2)
        if rank.is_main:
            logger.warning(
                f"memory   {micro} clips at once do not fit, taking {smaller}: "
                f"{share // smaller} parts a step, whose gradients add up to the same batch"
            )
        micro = smaller


def checkpoint_activations(blocks: Sequence[nn.Module]) -> None:
    """Makes each block of a trunk keep its input only, and compute itself again going backward.

    Batch norm's running statistics are updated the first time only.
    """
    for block in blocks:
        block.forward = partial(_twice, block, block.forward)


def _twice(block: nn.Module, forward: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(x)
    again = partial(_statistics_kept, block)
    out = checkpoint(
        forward, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again())
    )
    assert isinstance(out, torch.Tensor)
    return out


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    own = [(m._buffers, dict(m._buffers)) for m in block.modules() if isinstance(m, _BatchNorm)]
    for buffers, kept in own:
        buffers.update({name: None if b is None else b.clone() for name, b in kept.items()})
    try:
        yield
    finally:
        for buffers, kept in own:
            buffers.update(kept)
