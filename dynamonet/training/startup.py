"""The lines in which a training tells what it is about to run."""

from __future__ import annotations

from dynamonet.shards.order import EpochPlan
from dynamonet.shards.reader import ClipReader
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision
from dynamonet.training.task import Job


def startup_lines(
    job: Job,
    rank: Rank,
    plan: EpochPlan,
    reader: ClipReader,
    precision: Precision,
    *,
    micro_batch: int,
    compiled: bool,
) -> list[str]:
    """Returns a line each about clips, batch, order of reading and device."""
    settings = job.task.settings
    parts = plan.batch_size // micro_batch
    how = f"{plan.batch_size} x {plan.num_ranks} workers"
    if parts > 1:
        how = f"{micro_batch} at once x {parts} parts x {plan.num_ranks} workers"
    order, cache = "all samples shuffled", reader.tars.cache
    if plan.windows is not None:
        order = f"samples shuffled within {settings.loader.window_shards} tars at a time"
    if cache is not None:
        order += f"; tars kept in {cache.home}, at most {settings.loader.cache_gb:g} GB"
    device = f"{rank.device}, channels last, {precision}"
    device += ", compiled" if compiled else ", not compiled"
    if settings.activation_checkpointing:
        device += ", activations computed twice"
    if settings.ema_decay:
        device += f", weights averaged (decay {settings.ema_decay:g})"
    return [
        f"clips    {plan.num_samples:,} in {plan.steps:,} steps an epoch; "
        f"{plan.left_out:,} left out and {plan.repeated:,} repeated each epoch, "
        f"{reader.too_short:,} segments shorter than a clip",
        f"batch    {plan.global_batch} = {how}, {job.processes} loader processes and "
        f"{job.threads} threads each",
        f"order    {order}",
        f"device   {device}",
    ]
