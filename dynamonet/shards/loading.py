"""Loader processes: what a reader is asked for is made ahead, in the order asked."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader, FailedBatch
from dynamonet.video.transforms import ClipBatch

T = TypeVar("T")


def batches(
    reader: ClipReader,
    order: Iterable[list[Request]],
    *,
    processes: int,
    prefetch: int,
    pin_memory: bool = False,
) -> Iterator[ClipBatch]:
    """Yields one batch for each list of requests, in that order, read ahead by loader processes.

    Args:
        processes: 0 reads in this process.

    Raises:
        UserError: a batch could not be made at all; the message names the samples.
        StoreError: a remote store did not answer.
    """
    loader = read_ahead(
        reader, order, processes=processes, prefetch=prefetch, pin_memory=pin_memory
    )
    for batch in loader:
        if isinstance(batch, FailedBatch):
            raise batch.error
        yield batch


def read_ahead(
    data: Dataset[T],
    order: Iterable[Any] | None = None,
    *,
    processes: int,
    prefetch: int,
    pin_memory: bool = False,
) -> Iterator[T]:
    """Yields items that loader processes make; 0 of them = this process.

    Args:
        order: What is asked of `data`, item by item; None = `data` is iterable itself.
        prefetch: Items that each process keeps ready.
    """
    if processes:  # once for all loaders of this process, or each loader process imports torch
        multiprocessing.set_forkserver_preload([__name__])
    loader = DataLoader(
        data,
        batch_size=1 if order is not None else None,
        batch_sampler=order,  # type: ignore[arg-type]  # any iterable of lists works
        collate_fn=_unchanged,
        num_workers=processes,
        prefetch_factor=prefetch if processes else None,
        multiprocessing_context="forkserver" if processes else None,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread if processes else None,
    )
    with _without_main():
        items = iter(loader)
    yield from items


@contextmanager
def _without_main() -> Iterator[None]:
    """Keeps new processes from running the user's script again, which may have no guard."""
    main = vars(sys.modules["__main__"])
    kept = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


def _unchanged(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
