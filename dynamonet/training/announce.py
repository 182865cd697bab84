"""The lines in which a training says what it is about to run."""

from __future__ import annotations

from dynamonet.shards.order import EpochPlan
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import LoaderSettings
from dynamonet.training.precision import Precision
from dynamonet.training.ranks import Rank
from dynamonet.training.settings import TrainSettings


def clips_line(plan: EpochPlan, reader: ClipReader) -> str:
    """Says how many clips an epoch has, and what of the set it leaves out."""
    return (
        f"clips    {plan.num_samples:,} in {plan.steps:,} steps an epoch; "
        f"{plan.left_out:,} left out and {plan.repeated:,} repeated each epoch, "
        f"{reader.too_short:,} segments shorter than a clip"
    )


def batch_line(plan: EpochPlan, micro_batch: int, processes: int, threads: int) -> str:
    """Says how a step's batch comes about."""
    parts = plan.batch_size // micro_batch
    how = f"{plan.batch_size} x {plan.num_ranks} workers"
    if parts > 1:
        how = f"{micro_batch} at once x {parts} parts x {plan.num_ranks} workers"
    return (
        f"batch    {plan.global_batch} = {how}, "
        f"{processes} loader processes and {threads} threads each"
    )


def order_line(plan: EpochPlan, reader: ClipReader, loader: LoaderSettings) -> str:
    """Says in which order samples are read."""
    order, cache = "all samples shuffled", reader.tars.cache
    if plan.windows is not None:
        order = f"samples shuffled within {loader.window_tars} tars at a time"
    kept = "" if cache is None else f"; tars kept in {cache.home}, at most {loader.cache_gb:g} GB"
    return f"order    {order}{kept}"


def device_line(
    settings: TrainSettings, rank: Rank, precision: Precision, *, compiled: bool
) -> str:
    """Says on what and how the arithmetic is done."""
    average = settings.ema_decay
    return (
        f"device   {rank.device}, channels last, {precision}, "
        f"{'compiled' if compiled else 'not compiled'}"
        + (", activations computed twice" if settings.activation_checkpointing else "")
        + (f", weights averaged (decay {average:g})" if average else "")
    )
