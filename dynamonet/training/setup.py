"""How a training begins: at which checkpoint, with how many clips at once, in which precision."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynamonet.model.network import DynamoNet
from dynamonet.shards.order import EpochPlan
from dynamonet.shards.reader import ClipReader
from dynamonet.training.checkpoint.state import (
    LoopState,
    MovingAverage,
    TrainState,
    load_checkpoint,
    read_state,
)
from dynamonet.training.checkpoint.store import newest_sound
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import (
    Precision,
    choose_precision,
    fastest_format,
    forward_precision,
)
from dynamonet.training.perf.advice import PerfContext
from dynamonet.training.perf.memory import (
    checkpoint_activations,
    fitting_micro_batch,
    largest_divisor,
)
from dynamonet.training.perf.monitor import PerfMonitor
from dynamonet.training.schedule import make_optimizer
from dynamonet.training.task import Job, Task
from dynamonet.training.train_step import TrainStep, copy_all
from dynamonet.video.transforms import ClipBatch

logger = logging.getLogger(__name__)
RESERVED = 4  # times the weights: gradients in buckets, two moments, a moving average


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to train, as it stands before the first step."""

    reader: ClipReader
    plan: EpochPlan
    total_steps: int
    train_state: TrainState
    precision: Precision
    train_step: TrainStep
    state: LoopState  # where the training stands
    compiled: bool

    def lines(self, job: Job, rank: Rank) -> list[str]:
        """Returns a line each about clips, batch, order, device, work, and where it goes on."""
        settings, plan = job.task.settings, self.plan
        micro = self.train_step.micro_batch
        parts = plan.batch_size // micro
        how = f"{plan.batch_size} x {plan.num_ranks} workers"
        if parts > 1:
            how = f"{micro} at once x {parts} parts x {plan.num_ranks} workers"
        order, cache = "all samples shuffled", self.reader.sets.cache
        if settings.loader.shuffle == "shard_window":
            order = f"samples shuffled within {settings.loader.window_shards} tars at a time"
        if cache is not None:
            order += f"; tars kept in {cache.home}, at most {settings.loader.cache_gb:g} GB"
        device = f"{rank.device}, channels last, {self.precision}"
        device += ", compiled" if self.compiled else ", not compiled"
        if settings.activation_checkpointing:
            device += ", activations computed twice"
        if settings.ema_decay:
            device += f", weights averaged (decay {settings.ema_decay:g})"
        several = [
            f"         {source.taken / plan.num_samples:.1%} of {place}: {source.taken:,} of "
            f"{source.samples:,} clips, {source.taken / source.samples:.3g} passes an epoch"
            for source, place in zip(plan.sources, self.reader.places(), strict=True)
        ]
        return [
            f"clips    {plan.num_samples:,} in {plan.steps:,} steps an epoch; "
            f"{plan.left_out:,} left out and {plan.repeated:,} repeated each epoch, "
            f"{self.reader.too_short:,} segments shorter than a clip",
            *(several if len(several) > 1 else ()),
            f"batch    {plan.global_batch} = {how}, {job.processes} loader processes and "
            f"{job.threads} threads each",
            f"order    {order}",
            f"device   {device}",
            f"work     {self.train_step.perf.capacity}",
            *([self._resumed(settings.max_minutes)] if self.state.step else ()),
        ]

    def _resumed(self, most: float | None) -> str:
        end = f" of {self.total_steps:,}" if most is None else f", {most:g} minutes in all"
        return f"resumed  after step {self.state.step:,}{end}"

    def perf_context(self, job: Job) -> PerfContext:
        """Returns what advice on the training's speed depends on."""
        return PerfContext.of(
            job.task.settings,
            self.precision,
            compiled=self.compiled,
            processes=job.processes,
            threads=job.threads,
        )


def set_up(task: Task[Any], rank: Rank, home: Path) -> Setup:
    """Finds the checkpoint to go on from, builds everything, and restores it.

    Raises:
        UserError: all checkpoints are damaged, or one is of another architecture; not even one
            clip fits; or the precision gives wrong gradients and may not.
    """
    settings = task.settings
    reader = task.training_data()
    plan = reader.plan(settings.loader, rank.count, settings.order_seed, task.shares())
    total_steps = settings.total_steps(plan.steps)
    start = rank.broadcast(newest_sound(home) if rank.is_main else None)
    train_state, precision, train_step = _build(task, rank, start, plan.batch_size)
    state = load_checkpoint(start, train_state) if start else LoopState()
    state.micro_batch, state.format = train_step.micro_batch, precision.format
    compiled = settings.compiles(rank.device.type, total_steps)
    if compiled:
        train_state.model.trunk.compile()
    return Setup(reader, plan, total_steps, train_state, precision, train_step, state, compiled)


def _build(
    task: Task[Any], rank: Rank, start: Path | None, share: int
) -> tuple[TrainState, Precision, TrainStep]:
    """Builds model, optimiser and step.

    Args:
        start: The checkpoint to load; its micro-batch is kept, as batch norm depends on it, and
            so is its format, if this device has it.
        share: Clips of a rank each step.
    """
    settings = task.settings
    torch.manual_seed(settings.weights_seed)
    model = task.build_model().to(rank.device)
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if settings.activation_checkpointing:
        checkpoint_activations(model.trunk.blocks)
    before = read_state(start) if start else LoopState(micro_batch=settings.micro_batch or 0)
    wanted, wanted_format = before.micro_batch or share, str(settings.precision)
    if wanted_format == "auto" and before.format in ("fp32", fastest_format(rank.device)):
        wanted_format = before.format
    micro = largest_divisor(share, wanted)
    if rank.device.type == "cuda":  # elsewhere PyTorch does not tell
        form = forward_precision(model, wanted_format, rank.device)

        def attempt(clips: int) -> None:
            _try(task, model, form, share, clips)

        micro = fitting_micro_batch(share, wanted, attempt, rank)
    if start and micro < wanted <= share:
        logger.warning(
            f"batch    {micro} clips at once instead of {wanted} as before: batch norm sees fewer"
        )
    size = model.config.frame_px
    example = torch.zeros((micro, 3, model.config.num_frames, size, size), device=rank.device)
    precision = choose_precision(model, example, wanted_format, rank, settings.wrong_gradients)
    decay = settings.ema_decay
    average = None if decay is None else MovingAverage.of(model, decay)
    optimizer = make_optimizer(task.rate_groups(model), settings.optimizer)
    train_state = TrainState(model, optimizer, precision.scaler(), average)
    perf = PerfMonitor.of(model, example, precision, rank)
    return train_state, precision, TrainStep(task, train_state, precision, rank, micro, perf)


def _try(task: Task[Any], model: DynamoNet, precision: Precision, share: int, clips: int) -> None:
    """Trains and evaluates on empty clips, beside what else takes memory then.

    That is the optimiser, the step's whole batch, and the next one on its way.

    Args:
        share: Clips of a rank each step.
        clips: Of those, that go through the model at once.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    device = next(model.parameters()).device
    kept = [buffer.clone() for buffer in model.buffers()]
    taken: list[object] = []  # in a list, so that an error's traceback does not keep it
    try:
        size = RESERVED * sum(p.numel() for p in model.parameters())
        taken += [torch.empty(size, device=device), _blank(task, model, share, device)]
        batch = _blank(task, model, share, device).parts(clips)[0]
        frames = batch.render()
        with precision.autocast():
            loss, _ = task.loss(model.train(), frames, batch)
        loss.backward()
        del loss
        with torch.no_grad(), precision.autocast():
            task.rehearse(model.eval(), frames)
    finally:
        taken.clear()
        model.train()
        model.zero_grad(set_to_none=True)
        copy_all(kept, model.buffers())


def _blank(task: Task[Any], model: DynamoNet, clips: int, device: torch.device) -> ClipBatch:
    """Returns black clips as they come from the loader, on a device."""
    frames, side = task.training_data().num_frames, model.config.frame_px
    jitter = task.settings.clips.colour_jitter
    return ClipBatch(
        pixels=torch.zeros((clips, frames, side, side, 3), dtype=torch.uint8, device=device),
        colour=torch.ones((clips, 3), device=device) if jitter else None,
        label=torch.zeros(clips, dtype=torch.int64, device=device),
        row=torch.zeros(clips, dtype=torch.int64),
    )
