"""How a training begins: at which checkpoint, with how many clips at once, in which precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dynamonet.model.network import DynamoNet
from dynamonet.training.checkpoint import Learner, moving_average, read_state
from dynamonet.training.checkpoint_store import newest_sound
from dynamonet.training.memory import checkpoint_activations, fitting_micro_batch, largest_divisor
from dynamonet.training.pace import Pace
from dynamonet.training.precision import Precision, choose_precision, wanted_dtype
from dynamonet.training.ranks import Rank
from dynamonet.training.schedule import make_optimizer
from dynamonet.training.task import Task
from dynamonet.training.update import Update, copy_all
from dynamonet.video.transforms import ClipBatch, View, stack_views

Say = Callable[[str], None]
RESERVED = 4  # times the weights: gradients in buckets, two moments, a moving average


def find_start(home: Path, rank: Rank, say: Say) -> Path | None:
    """Returns the checkpoint to go on from, the same on all ranks; None = from the beginning.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    return rank.agree(newest_sound(home, say) if rank.leads else None)


def build(
    task: Task[Any], rank: Rank, start: Path | None, share: int, say: Say
) -> tuple[Learner, Precision, Update]:
    """Builds all that a worker needs to train.

    Args:
        start: The checkpoint that will be loaded: its micro-batch stays, as batch norm hangs on it.
        share: Clips of a rank each step.

    Raises:
        UserError: not even one clip fits, or the precision gives wrong gradients and may not.
    """
    settings = task.settings
    torch.manual_seed(settings.seed)
    model = task.build_model().to(rank.device)
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if settings.activation_checkpointing:
        checkpoint_activations(model.trunk)
    wanted = (read_state(start).micro_batch if start else settings.micro_batch) or share
    micro = largest_divisor(share, wanted)
    if rank.device.type == "cuda":  # elsewhere PyTorch does not tell

        def attempt(clips: int) -> None:
            _try(task, model, clips)

        micro = fitting_micro_batch(share, wanted, attempt, rank, say if rank.leads else _silent)
    if start and micro < wanted <= share:
        say(f"batch    {micro} clips at once instead of {wanted} before: batch norm sees fewer")
    size = model.config.frame_px
    example = torch.zeros((micro, 3, model.config.num_frames, size, size), device=rank.device)
    precision = choose_precision(model, example, settings.precision, rank, settings.wrong_gradients)
    average = None if settings.ema_decay is None else moving_average(model, settings.ema_decay)
    optimizer = make_optimizer(task.rate_groups(model), settings.optimizer)
    learner = Learner(model, optimizer, precision.scaler(), average)
    pace = Pace.of(model, example, precision, rank)
    return learner, precision, Update(task, learner, precision, rank, micro, pace)


def _silent(text: str) -> None:
    """Says nothing."""


def _try(task: Task[Any], model: DynamoNet, clips: int) -> None:
    """Runs forward and backward on empty clips, with the memory of the optimiser taken.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    device = next(model.parameters()).device
    reserved: list[torch.Tensor] = []
    kept = [buffer.clone() for buffer in model.buffers()]
    try:
        size = RESERVED * sum(p.numel() for p in model.parameters())
        reserved.append(torch.empty(size, device=device))
        frames, side = task.training_data().num_frames, model.config.frame_px
        shape = (clips, 3, frames, side, side)
        empty = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last_3d)
        dtype = wanted_dtype(task.settings.precision, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = task.loss(model.train(), empty, _blank(clips, frames), ceiling=False)
        loss.backward()
    finally:
        model.zero_grad(set_to_none=True)
        copy_all(kept, model.buffers())


def _blank(clips: int, frames: int) -> ClipBatch:
    return ClipBatch(
        luma=torch.zeros((clips, frames, 2, 2), dtype=torch.uint8),
        chroma=torch.zeros((clips, frames, 2, 1, 1), dtype=torch.uint8),
        views=stack_views([View.centred(1.0)] * clips),
        label=torch.zeros(clips, dtype=torch.int64),
        row=torch.zeros(clips, dtype=torch.int64),
    )
