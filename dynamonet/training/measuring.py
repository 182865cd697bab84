"""How clips are brought to a model that is measured: on every rank, through loader processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynamonet.shards.loading import batches
from dynamonet.shards.order import Request, even_share
from dynamonet.shards.reader import ClipReader
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision
from dynamonet.video.transforms import ClipBatch

AHEAD = 2  # batches that each loader process keeps ready


@dataclass(frozen=True)
class Measuring:
    """With what a model is measured."""

    rank: Rank
    precision: Precision
    clips: int  # at once
    processes: int = 0  # that read and decode; 0 = this one

    def batches(self, reader: ClipReader, requests: Sequence[Request]) -> Iterator[ClipBatch]:
        """Yields this rank's share of some clips, on its device."""
        rank = self.rank
        mine = [requests[i] for i in even_share(len(requests), rank.index, rank.count)]
        groups = [mine[i : i + self.clips] for i in range(0, len(mine), self.clips)]
        found = batches(
            reader,
            groups,
            processes=min(self.processes, len(groups)),
            prefetch=AHEAD,
            pin_memory=rank.device.type == "cuda",
        )
        for batch in found:
            yield batch.to(rank.device)
