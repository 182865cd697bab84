"""Samples by index: from a row of the index to a clip, and from an epoch plan to batches.

    step -> EpochPlan.batch -> rows -> Request (row + its own seed)    in the main process
    Request -> bytes by offset -> frames -> RGB of the network's size  here, in a loader process
    clips of a batch -> ClipBatch -> device -> ClipBatch.render        back in the main process

What a request yields depends on (seed, epoch, row) alone, never on the rank, the worker or what was
read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.shards.card import repair_command
from dynamonet.shards.mapped import Row
from dynamonet.shards.order import EpochPlan, Request, Source, TarWindows, shared_out
from dynamonet.shards.rows import RowSet
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.shard_set import JoinedSets, Part, ShardSet
from dynamonet.shards.tar_reader import TarReader
from dynamonet.video.decode import Box, Bytes, DecodeError, decode_pixels
from dynamonet.video.sampling import (
    clip_indices,
    random_start,
    span,
    stride_in_frames,
    tiled_starts,
)
from dynamonet.video.transforms import ClipBatch, View, stack_colours

REPLACEMENTS = 8  # tries before a batch is given up


@dataclass(frozen=True)
class FailedBatch:
    """Stands for a batch that could not be made."""

    error: UserError


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
        frame_px: int = 112,
        loop_short: bool = True,
        loader: LoaderSettings | None = None,
        never_mirrored: frozenset[int] = frozenset(),
    ) -> None:
        """Args:
        rows: Rows that may be read, of several sets joined; None = all.
        settings: How clips are cut; None = the defaults.
        num_frames: Frames of a clip, those beyond the clip included.
        frame_px: Height and width of a clip's frames.
        loop_short: A segment shorter than the clip goes round again; else it is left out.
        loader: In which order samples will be asked for, and how much disk a cache may take.
        never_mirrored: Labels of which no clip is mirrored.

        Raises:
            UserError: the cache is too small for that order.
        """
        loader = loader or LoaderSettings()
        self.sets = JoinedSets([shards] if isinstance(shards, ShardSet) else shards, loader)
        self.settings, self.num_frames = settings or ClipSettings(), num_frames
        self.loop_short, self.frame_px = loop_short, frame_px
        self.never_mirrored = never_mirrored
        if rows is None:
            rows = self.sets.all()
        elif not isinstance(rows, RowSet):
            rows = RowSet.of(rows, self.sets.num_rows)
        self.rows = rows if loop_short else rows & self._long_enough()
        self.too_short = len(rows) - len(self.rows)
        # a bit for each row whose digest was found right in this process
        self._checked = np.zeros(self.sets.num_rows // 8, np.uint8)
        self.decoded: dict[int, Bytes] = {}  # rows -> all frames; readers of a set may share it
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
        firsts, samples = self._parts()
        if shares is not None and min(samples) == 0:
            empty = self.sets.parts[samples.index(0)].tars.folder_path
            raise UserError(f"{empty}: it has a share of the training, but no clip that fits")
        sources = [
            Source(count, taken, first, self._windows(part, first, loader))
            for part, first, count, taken in zip(
                self.sets.parts, firsts, samples, shared_out(samples, shares), strict=True
            )
            if count
        ]
        return EpochPlan(tuple(sources), loader.batch_size, num_ranks, seed)

    def _parts(self) -> tuple[list[int], list[int]]:
        """Returns the place of each set's first sample, and the number of its samples."""
        firsts = self.rows.places([part.first for part in self.sets.parts])
        return firsts.tolist(), np.diff(firsts, append=len(self.rows)).tolist()

    def places(self) -> list[str]:
        """Returns where the sets lie that have samples, those of the plan."""
        pairs = zip(self.sets.parts, self._parts()[1], strict=True)
        return [part.tars.folder_path for part, count in pairs if count]

    def first(self, count: int) -> list[int]:
        """Returns about the first `count` rows, of each set as many as its part of the samples."""
        total = max(1, len(self.rows))
        chosen = [
            np.arange(first, first + min(own, -(-count * own // total)))
            for first, own in zip(*self._parts(), strict=True)
        ]
        return self.rows[np.concatenate(chosen)].tolist()

    def _windows(self, part: Part, first: int, loader: LoaderSettings) -> TarWindows | None:
        if loader.shuffle == "samples":
            return None
        ends = part.first + np.cumsum([0, *part.tars.table["samples"].to_numpy()])
        return TarWindows(np.unique(self.rows.places(ends)) - first, loader.window_shards)

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
        clips: list[tuple[int, int, View, Tensor]] = []
        failures: list[str] = []
        self.sets.look_ahead(
            [request.row for request in requests],
            [row for request in requests for row in request.ahead],
        )
        try:
            for request in requests:
                clips.append(self._read_or_replace(request, failures))
        except UserError as error:
            return FailedBatch(error)
        rows, labels, views, pixels = zip(*clips, strict=True)
        return ClipBatch(
            default_collate(list(pixels)),  # in a loader process into memory that both map
            stack_colours(list(views)),
            torch.tensor(labels),
            torch.tensor(rows),
            tuple(failures),
        )

    def _long_enough(self) -> RowSet:
        """Returns the rows whose segments hold a whole clip."""

        def fits(frames: NDArray[np.int32], fps: NDArray[np.float64]) -> NDArray[np.bool_]:
            if self.settings.stride_seconds is None:
                return frames >= span(self.num_frames, self.settings.stride_frames)
            rates, which = np.unique(fps, return_inverse=True)
            needed = [span(self.num_frames, self._stride(rate)) for rate in rates.tolist()]
            return frames >= np.array(needed, np.int64)[which]

        return self.sets.rows_where(fits, "frames", "fps")

    def _read_or_replace(
        self, request: Request, failures: list[str]
    ) -> tuple[int, int, View, Tensor]:
        """Reads a clip: (row, label, view, pixels).

        Raises:
            UserError: nothing can be read; or a store does not answer, or a tar is not there.
        """
        # in an evaluation nothing may stand in for another sample
        tries = 1 if request.seed is None else REPLACEMENTS
        draw = np.random.default_rng(request.seed)  # every run draws the same replacements
        before = len(failures)
        for _ in range(tries):
            row, tars = self.sets.find(request.row)
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

    def _read(self, request: Request, row: Row, tars: TarReader) -> tuple[View, Tensor]:
        stride = self._stride(row.fps)
        if request.seed is None:
            starts = tiled_starts(request.num_clips, self.num_frames, stride, row.frames)
            start, offset = starts[request.clip], request.offset
            view = View.centred(min(1.0, self.frame_px / self.settings.canvas_px))
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
        box = view.box(Box.centred_square(row.height, row.width, offset=offset))
        if request.row in self.decoded:
            pixels = self.decoded[request.row][indices][(slice(None), *box.slices())]
        else:
            data = self._bytes(request.row, row, tars)
            pixels = self._pixels(request.row, row, data, indices, box)
        return view, view.scaled(pixels, self.frame_px)

    def _pixels(
        self, number: int, row: Row, data: bytes, indices: NDArray[np.int64], box: Box
    ) -> Bytes:
        """Decodes frames of a segment, all of them where they are to be kept in memory."""
        size = (row.height, row.width)
        held = sum(pixels.nbytes for pixels in self.decoded.values())
        if held + row.frames * row.height * row.width * 3 > self._decoded_bytes:
            return decode_pixels(data, indices, box, size=size)
        self.decoded[number] = decode_pixels(data, np.arange(row.frames), size=size)
        return self.decoded[number][indices][(slice(None), *box.slices())]

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
