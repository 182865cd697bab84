"""Samples by index: from a row of the index to a clip, and from an epoch plan to batches.

    step -> EpochPlan.batch -> rows -> Request (row + its own seed)      here, in the main process
    Request -> bytes by offset -> frames -> canvas                       in a loader process
    batch of canvases -> ClipBatch -> device -> ClipBatch.render         back in the main process

What a request yields depends on (seed, epoch, row) alone, never on the rank, the worker or what was
read before.
"""

from __future__ import annotations

import itertools
import multiprocessing
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.shards.card import repair_command
from dynamonet.shards.mapped import MappedIndex, Row
from dynamonet.shards.order import EpochPlan, Request, Source, TarWindows, shared_out
from dynamonet.shards.rows import RowSet
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.shard_set import ShardSet
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

T = TypeVar("T")
REPLACEMENTS = 8  # tries before a batch is given up


@dataclass(frozen=True)
class FailedBatch:
    """Stands for a batch that could not be made."""

    error: UserError


class _Opened(NamedTuple):
    """A set as the reader needs it."""

    first: int  # number of its first row
    mapped: MappedIndex
    tars: TarReader


class ClipReader(Dataset[ClipBatch | FailedBatch]):
    """Reads clips of one length from shard sets; picklable, opens its files where it runs.

    Rows of several sets are numbered through; each set begins at a whole `rows.BLOCK`.
    """

    def __init__(
        self,
        shards: ShardSet | Sequence[ShardSet],
        rows: RowSet | ArrayLike | None = None,
        settings: ClipSettings | None = None,
        *,
        num_frames: int,
        loop_short: bool = True,
        eval_side: float = 1.0,
        loader: LoaderSettings | None = None,
        never_mirrored: frozenset[int] = frozenset(),
    ) -> None:
        """Args:
        rows: Rows that may be read, of several sets joined; None = all.
        settings: How clips are cut; None = the defaults.
        num_frames: Frames of a clip, those beyond the clip included.
        loop_short: A segment shorter than the clip goes round again; else it is left out.
        eval_side: Side of the centre crop as a share of the canvas.
        loader: In which order samples will be asked for, and how much disk a cache may take.
        never_mirrored: Labels of which no clip is mirrored.

        Raises:
            UserError: the cache is too small for that order.
        """
        sets = [shards] if isinstance(shards, ShardSet) else list(shards)
        loader = loader or LoaderSettings()
        self.settings, self.num_frames = settings or ClipSettings(), num_frames
        self.loop_short, self.eval_side = loop_short, eval_side
        self.never_mirrored = never_mirrored
        self.sets, self.cache = _opened(sets, loader)
        everything = RowSet.joined(each.mapped.all() for each in self.sets)
        if rows is None:
            rows = everything
        elif not isinstance(rows, RowSet):
            rows = RowSet.of(rows, everything.num_rows)
        self.rows = rows if loop_short else rows & self._long_enough()
        self.too_short = len(rows) - len(self.rows)
        # a bit for each row whose digest was found right in this process
        self._checked = np.zeros(everything.num_rows // 8, np.uint8)
        self.decoded: dict[int, Planes] = {}  # rows -> all frames; readers of a set may share it
        self._decoded_bytes = int(loader.decoded_gb * 1e9)  # at most

    def plan(
        self,
        loader: LoaderSettings,
        num_ranks: int,
        seed: int,
        shares: Sequence[float] | None = None,
    ) -> EpochPlan:
        """Returns how epochs of these rows are cut into steps and shared among the sets.

        Args:
            shares: Of each set; None = by the number of samples.

        Raises:
            UserError: a set that has a share has no samples.
        """
        firsts = self.rows.places([each.first for each in self.sets]).tolist()
        samples = np.diff([*firsts, len(self.rows)]).tolist()
        if shares is not None and min(samples) == 0:
            empty = self.sets[samples.index(0)].tars.folder_path
            raise UserError(f"{empty}: it has a share of the training, but no clip that fits")
        taken = shared_out(samples, shares)
        sources = [
            Source(count, part, first, self._windows(each, loader))
            for count, part, first, each in zip(samples, taken, firsts, self.sets, strict=True)
            if count
        ]
        return EpochPlan(tuple(sources), loader.batch_size, num_ranks, seed)

    def places(self) -> list[str]:
        """Returns where the sets lie that have samples, those of the plan."""
        ends = self.rows.places([*(each.first for each in self.sets), self.rows.num_rows])
        pairs = zip(self.sets, np.diff(ends).tolist(), strict=True)
        return [each.tars.folder_path for each, count in pairs if count]

    def first(self, count: int) -> list[int]:
        """Returns about the first `count` rows, of each set as many as its part of the samples."""
        ends = self.rows.places([*(each.first for each in self.sets), self.rows.num_rows])
        chosen = [
            np.arange(begin, begin + min(end - begin, -(-count * (end - begin) // len(self.rows))))
            for begin, end in itertools.pairwise(ends.tolist())
        ]
        return self.rows[np.concatenate(chosen)].tolist()

    def _windows(self, opened: _Opened, loader: LoaderSettings) -> TarWindows | None:
        if loader.shuffle == "samples":
            return None
        ends = opened.first + np.cumsum([0, *opened.tars.samples])
        return TarWindows(np.unique(self.rows.places(ends)), loader.window_shards)

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
            raise batch.error
        return batch

    def __getitems__(self, requests: Sequence[Request]) -> ClipBatch | FailedBatch:
        """Reads a batch. A damaged sample is replaced by one drawn from its own seed."""
        clips, failures = [], []
        self._look_ahead(requests)
        try:
            for request in requests:
                clips.append(self._read_or_replace(request, failures))
        except UserError as error:
            return FailedBatch(error)
        rows = [row for row, *_ in clips]
        return ClipBatch(
            luma=torch.from_numpy(np.stack([planes.luma for _, _, planes, _ in clips])),
            chroma=torch.from_numpy(np.stack([planes.chroma for _, _, planes, _ in clips])),
            views=stack_views([view for *_, view in clips]),
            label=torch.tensor([label for _, label, _, _ in clips]),
            row=torch.tensor(rows),
            failures=tuple(failures),
        )

    def find(self, row: int) -> tuple[Row, TarReader]:
        """Returns what the index says of a row, and its set's tars."""
        opened = self.sets[bisect_right(self.sets, row, key=lambda each: each.first) - 1]
        return opened.mapped[row - opened.first], opened.tars

    def _long_enough(self) -> RowSet:
        """Returns the rows whose segments hold a whole clip."""

        def masks(opened: _Opened) -> Iterator[NDArray[np.bool_]]:
            for frames, fps in opened.mapped.parts("frames", "fps"):
                rates, which = np.unique(fps, return_inverse=True)
                needed = [span(self.num_frames, self._stride(rate)) for rate in rates.tolist()]
                yield frames >= np.array(needed, np.int64)[which]

        return RowSet.joined(RowSet.of_masks(masks(each)) for each in self.sets)

    def _look_ahead(self, requests: Sequence[Request]) -> None:
        """Lets what a slow store must give be on its way before it is waited for."""
        for opened in self.sets:
            if opened.tars.folder.is_local:
                continue
            numbers = range(opened.first, opened.first + len(opened.mapped))
            own = [opened.mapped[r.row - opened.first] for r in requests if r.row in numbers]
            opened.tars.begin([(row.shard, row.offset, row.size) for row in own])
            later = [row for r in requests for row in r.ahead if row in numbers]
            opened.tars.prefetch(opened.mapped[row - opened.first].shard for row in later)

    def _read_or_replace(
        self, request: Request, failures: list[str]
    ) -> tuple[int, int, Planes, View]:
        """Reads a clip: (row, label, planes, view).

        Raises:
            UserError: nothing can be read; or a store does not answer, or a tar is not there.
        """
        # in an evaluation nothing may stand in for another sample
        tries = 1 if request.seed is None else REPLACEMENTS
        draw = np.random.default_rng(request.seed)  # every run draws the same replacements
        before = len(failures)
        for _ in range(tries):
            row, tars = self.find(request.row)
            try:
                label = -1 if row.label is None else row.label
                return request.row, label, *self._read(request, row, tars)
            except DecodeError as error:
                failures.append(f"{row.shard} sample {row.key}: {error}")
                request = replace(request, row=int(self.rows[draw.integers(len(self.rows))]))
            except OSError as error:
                raise UserError(
                    f"{tars.folder.path}/{row.shard}: cannot be read: {error.strerror or error}",
                    f"Check the set with\n  {repair_command(tars.folder)}",
                ) from None
        reasons = "\n  ".join(failures[before:])
        raise UserError(f"no batch can be read from the shards:\n  {reasons}")

    def _read(self, request: Request, row: Row, tars: TarReader) -> tuple[Planes, View]:
        stride = self._stride(row.fps)
        if request.seed is None:
            starts = tiled_starts(request.num_clips, self.num_frames, stride, row.frames)
            start, offset = starts[request.clip], request.offset
            view = View.centred(self.eval_side)
        else:
            rng = np.random.default_rng(request.seed)
            start = random_start(rng, self.num_frames, stride, row.frames)
            offset = float(rng.random())
            view = View.drawn(
                rng,
                scale=self.settings.crop_scale,
                flip=self.settings.flip and row.label not in self.never_mirrored,
                colour=self.settings.colour_jitter,
            )
        indices = clip_indices(start, self.num_frames, stride, row.frames, loop=self.loop_short)
        box = Box.centred_square(row.height, row.width, offset=offset)
        if request.row in self.decoded:
            planes = self.decoded[request.row].cut(indices, box)
        else:
            data = self._bytes(request.row, row, tars)
            planes = self._planes(request.row, row, data, indices, box)
        return resize_planes(planes, self.settings.canvas_px), view

    def _planes(
        self, number: int, row: Row, data: bytes, indices: NDArray[np.int64], box: Box
    ) -> Planes:
        """Decodes frames of a segment, all of them where they are to be kept in memory."""
        size = (row.height, row.width)
        held = sum(planes.nbytes for planes in self.decoded.values())
        if held + row.frames * row.height * row.width * 3 // 2 > self._decoded_bytes:
            return decode_planes(data, indices, box, size=size)
        self.decoded[number] = decode_planes(data, np.arange(row.frames), size=size)
        return self.decoded[number].cut(indices, box)

    def _stride(self, fps: float) -> float:
        return stride_in_frames(fps, self.settings.stride_frames, self.settings.stride_seconds)

    def _bytes(self, number: int, row: Row, tars: TarReader) -> bytes:
        data = tars.read(row.shard, row.offset, row.size)
        byte, bit = number // 8, 1 << number % 8
        if not self._checked[byte] & bit:
            if digest_of_bytes(data) != row.digest:
                state = "is cut short" if len(data) < row.size else "is not what was written"
                raise DecodeError(f"{row.size} bytes at {row.offset}: the content {state}")
            self._checked[byte] |= bit
        return data


def _opened(sets: Sequence[ShardSet], loader: LoaderSettings) -> tuple[list[_Opened], Any]:
    """Opens the tars of some sets, and the cache that the remote ones share."""
    cache = None
    remote = [each.tars["bytes"].to_pylist() for each in sets if not each.folder.is_local]
    if remote:
        largest = sum(sum(sorted(sizes)[-loader.window_shards :]) for sizes in remote)
        window = largest if loader.shuffle == "shard_window" else None
        cache = choose_cache(sum(map(sum, remote)), window, loader.cache_gb)
    opened, first = [], 0
    for each in sets:
        own = None if each.folder.is_local else cache
        tars = TarReader(each.folder.path, each.digest, each.tars, own, loader.retry_seconds)
        opened.append(_Opened(first, each.index, tars))
        first += each.index.all().num_rows
    return opened, cache


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
) -> Iterable[T]:
    """Lets loader processes read; 0 of them = this process.

    Args:
        order: What is asked of `data`, item by item; None = `data` is iterable itself.
        prefetch: Items that each process keeps ready.
    """
    if processes:  # once for all loaders of this process, or each loader process imports torch
        multiprocessing.set_forkserver_preload([__name__])
    return DataLoader(
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


def _unchanged(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
