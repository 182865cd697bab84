"""How clips are brought to a model that is measured: on every rank, through loader processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dynamonet.shards.loading import batches
from dynamonet.shards.order import Request, even_share
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import default_processes
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision
from dynamonet.video.transforms import ClipBatch

AHEAD = 2  # batches that each loader process keeps ready


class BrokenOff(Exception):
    """A stop was asked for while a model was measured; raised on every rank."""


@dataclass(frozen=True)
class Measuring:
    """With what a model is measured."""

    rank: Rank
    precision: Precision
    clips: int  # at once
    processes: int = 0  # that read and decode; 0 = this one
    stops: Callable[[], bool] = lambda: False  # tells whether this rank is asked to stop

    @classmethod
    def alone(
        cls, device: torch.device, precision: Precision, clips: int, processes: int | None
    ) -> Measuring:
        """Measures in this process; None = as many loader processes as suit its cores."""
        count = default_processes() if processes is None else processes
        return cls(Rank(0, 1, device), precision, clips, count)

    def batches(self, reader: ClipReader, requests: Sequence[Request]) -> Iterator[ClipBatch]:
        """Yields this rank's share of some clips, on its device.

        Raises:
            BrokenOff: a rank is asked to stop.
        """
        rank = self.rank
        most = -(-len(requests) // rank.count)  # clips of a rank
        rounds = -(-most // self.clips)  # on every rank, though its last may be empty
        mine = [requests[i] for i in even_share(len(requests), rank.index, rank.count)]
        groups = [mine[i : i + self.clips] for i in range(0, len(mine), self.clips)]
        found = batches(
            reader,
            groups,
            processes=min(self.processes, len(groups)),
            prefetch=AHEAD,
            pin_memory=rank.device.type == "cuda",
        )
        for _ in range(rounds):
            if rank.any(self.stops())[0]:
                raise BrokenOff
            batch = next(found, None)
            if batch is not None:
                yield batch.to(rank.device)
