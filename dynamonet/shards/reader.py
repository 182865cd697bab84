"""Samples by index: from a row of the index to a clip, and from an epoch plan to batches.

    step -> EpochPlan.batch -> rows -> Request (row + its own seed)      here, in the main process
    Request -> bytes by offset -> frames -> canvas                       in a loader process
    batch of canvases -> ClipBatch -> device -> ClipBatch.render         back in the main process

What a request yields depends on (seed, epoch, row) alone, never on the rank, the worker or what was
read before.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.shards.index import ShardSet
from dynamonet.shards.order import EpochPlan, Request, TarWindows
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.tar_reader import TarReader, choose_cache
from dynamonet.video.decode import Box, DecodeError, Planes, decode_planes
from dynamonet.video.sampling import (
    clip_indices,
    random_start,
    span,
    stride_in_frames,
    tiled_starts,
)
from dynamonet.video.transforms import ClipBatch, View, resize_planes, stack_views

REPLACEMENTS = 8  # tries before a batch is given up


@dataclass(frozen=True)
class FailedBatch:
    """Stands for a batch that could not be made; the reasons say why."""

    reasons: tuple[str, ...]


class ClipReader(Dataset[ClipBatch | FailedBatch]):
    """Reads clips of one length from a shard set; picklable, opens its files where it runs."""

    def __init__(
        self,
        shards: ShardSet,
        rows: NDArray[np.int64] | None = None,
        settings: ClipSettings | None = None,
        *,
        num_frames: int,
        loop_short: bool = True,
        eval_side: float = 1.0,
        loader: LoaderSettings | None = None,
        never_mirrored: frozenset[int] = frozenset(),
    ) -> None:
        """Args:
        rows: Rows of the index that may be read; None = all.
        settings: How clips are cut; None = the defaults.
        num_frames: Frames of a clip, those beyond the clip included.
        loop_short: A segment shorter than the clip goes round again; else it is left out.
        eval_side: Side of the centre crop as a share of the canvas.
        loader: In which order samples will be asked for, and how much disk a cache may take.
        never_mirrored: Labels of which no clip is mirrored.

        Raises:
            UserError: the cache is too small for that order.
        """
        rows = np.arange(len(shards)) if rows is None else rows
        self.settings, self.num_frames = settings or ClipSettings(), num_frames
        self.loop_short, self.eval_side = loop_short, eval_side
        self.never_mirrored = never_mirrored
        self.columns = shards.columns
        self.shard = shards.table["shard"].combine_chunks().dictionary_encode()
        self.keys = shards.table["key"]
        self.digests = shards.table["digest"]
        self.rows = rows if loop_short else self._long_enough(rows)
        self.too_short = len(rows) - len(self.rows)
        self.tars = _tars(shards, loader or LoaderSettings())
        self._checked: set[int] = set()  # rows whose digest was found right in this process
        self.decoded: dict[int, Planes] = {}  # rows -> all frames; readers of a set may share it
        self._decoded_bytes = int((loader or LoaderSettings()).decoded_gb * 1e9)  # at most

    def plan(self, loader: LoaderSettings, num_ranks: int, seed: int) -> EpochPlan:
        """Returns how epochs of these rows are cut into steps."""
        windows = None
        if loader.shuffle == "shard_window":
            tar_of = self.shard.indices.to_numpy()[self.rows].astype(np.int64)
            windows = TarWindows.of(tar_of, loader.window_shards)
        return EpochPlan(len(self.rows), loader.batch_size, num_ranks, seed, windows)

    @overload
    def __getitem__(self, request: int) -> ClipBatch: ...

    @overload
    def __getitem__(self, request: Request) -> ClipBatch | FailedBatch: ...

    def __getitem__(self, request: Request | int) -> ClipBatch | FailedBatch:
        """Reads one clip; a row number asks for the one in the middle of that segment.

        Raises:
            UserError: a row's clip cannot be read.
        """
        if isinstance(request, Request):
            return self.__getitems__([request])
        batch = self.__getitems__([Request(request)])
        if isinstance(batch, FailedBatch):
            raise UserError(f"no clip can be read: {batch.reasons[0]}")
        return batch

    def __getitems__(self, requests: Sequence[Request]) -> ClipBatch | FailedBatch:
        """Reads a batch. A sample that fails is replaced by one drawn from its own seed."""
        clips, failures = [], []
        self.tars.prefetch([self.shard[row].as_py() for r in requests for row in r.ahead])
        for request in requests:
            clip = self._read_or_replace(request, failures)
            if clip is None:
                return FailedBatch(tuple(failures))
            clips.append(clip)
        rows = [row for row, _, _ in clips]
        return ClipBatch(
            luma=torch.from_numpy(np.stack([planes.luma for _, planes, _ in clips])),
            chroma=torch.from_numpy(np.stack([planes.chroma for _, planes, _ in clips])),
            views=stack_views([view for _, _, view in clips]),
            label=torch.from_numpy(self.columns["label"][rows].astype(np.int64)),
            row=torch.tensor(rows),
            failures=tuple(failures),
        )

    def _long_enough(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows whose segments hold a whole clip."""
        needed = [span(self.num_frames, self._stride(fps)) for fps in self.columns["fps"][rows]]
        return rows[self.columns["frames"][rows] >= np.asarray(needed, np.int64)]

    def _read_or_replace(
        self, request: Request, failures: list[str]
    ) -> tuple[int, Planes, View] | None:
        # in an evaluation nothing may stand in for another sample
        tries = 1 if request.seed is None else REPLACEMENTS
        draw = np.random.default_rng(request.seed)  # every run draws the same replacements
        for _ in range(tries):
            try:
                return request.row, *self._read(request)
            except (DecodeError, OSError) as error:
                failures.append(f"{self._name(request.row)}: {error}")
                request = replace(request, row=int(draw.choice(self.rows)))
        return None

    def _read(self, request: Request) -> tuple[Planes, View]:
        frames = int(self.columns["frames"][request.row])
        stride = self._stride(float(self.columns["fps"][request.row]))
        height = int(self.columns["height"][request.row])
        width = int(self.columns["width"][request.row])
        if request.seed is None:
            starts = tiled_starts(request.num_clips, self.num_frames, stride, frames)
            start, offset = starts[request.clip], request.offset
            view = View.centred(self.eval_side)
        else:
            rng = np.random.default_rng(request.seed)
            start = random_start(rng, self.num_frames, stride, frames)
            offset, label = float(rng.random()), int(self.columns["label"][request.row])
            view = View.drawn(
                rng,
                scale=self.settings.crop_scale,
                flip=self.settings.flip and label not in self.never_mirrored,
                colour=self.settings.colour_jitter,
            )
        indices = clip_indices(start, self.num_frames, stride, frames, loop=self.loop_short)
        box = Box.centred_square(height, width, offset=offset)
        planes = self._planes(request.row, frames, indices, box)
        return resize_planes(planes, self.settings.canvas_px), view

    def _planes(self, row: int, frames: int, indices: NDArray[np.int64], box: Box) -> Planes:
        """Decodes frames of a segment; takes them from memory where all were decoded before."""
        if row not in self.decoded:
            height, width = int(self.columns["height"][row]), int(self.columns["width"][row])
            held = sum(planes.nbytes for planes in self.decoded.values())
            if held + frames * height * width * 3 // 2 > self._decoded_bytes:
                return decode_planes(self._bytes(row), indices, box)
            self.decoded[row] = decode_planes(self._bytes(row), np.arange(frames))
        return self.decoded[row].cut(indices, box)

    def _stride(self, fps: float) -> float:
        return stride_in_frames(fps, self.settings.stride_frames, self.settings.stride_seconds)

    def _bytes(self, row: int) -> bytes:
        size, offset = int(self.columns["size"][row]), int(self.columns["offset"][row])
        data = self.tars.read(self.shard[row].as_py(), offset, size)
        if row not in self._checked:
            if digest_of_bytes(data) != self.digests[row].as_py():
                state = "is cut short" if len(data) < size else "is not what was written"
                raise DecodeError(f"{size} bytes at {offset}: the content {state}")
            self._checked.add(row)
        return data

    def _name(self, row: int) -> str:
        return f"{self.shard[row].as_py()} sample {self.keys[row].as_py()}"


def _tars(shards: ShardSet, loader: LoaderSettings) -> TarReader:
    sizes = dict(
        zip(shards.tars["shard"].to_pylist(), shards.tars["bytes"].to_pylist(), strict=True)
    )
    largest = sum(sorted(sizes.values())[-loader.window_shards :])
    window = largest if loader.shuffle == "shard_window" else None
    cache = choose_cache(shards.folder, sum(sizes.values()), window, loader.cache_gb)
    return TarReader(shards.folder.path, shards.digest, sizes, cache)


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
    """
    if processes:  # once for all loaders of this process, or each loader process imports torch
        multiprocessing.set_forkserver_preload([__name__])
    loader = DataLoader(
        reader,
        batch_sampler=order,  # type: ignore[arg-type]  # any iterable of lists works
        collate_fn=_unchanged,
        num_workers=processes,
        prefetch_factor=prefetch if processes else None,
        multiprocessing_context="forkserver" if processes else None,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread if processes else None,
    )
    for batch in loader:
        if isinstance(batch, FailedBatch):
            raise UserError(
                "no batch can be read from the shards:\n  " + "\n  ".join(batch.reasons[:8])
            )
        yield batch


def _unchanged(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
