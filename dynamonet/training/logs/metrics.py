"""What is measured: named sums of every step, and what an evaluation gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynamonet.training.distributed.rank import Rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sums = dict[str, Tensor]  # name -> () float tensor, to be added over steps and ranks


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives; only rank 0's is logged."""

    metrics: dict[str, float]
    figures: dict[str, Figure]  # artifact name -> picture
    files: dict[str, bytes]  # artifact name -> content


@dataclass
class MetricWindow:
    """Collects the steps since the last log line; nothing waits for the device until then."""

    rank: Rank
    rows: list[tuple[int, float, Sums]] = field(default_factory=list)
    clips: int = 0  # of this worker

    def add(self, step: int, rate: float, clips: int, sums: Sums) -> None:
        self.rows.append((step, rate, {name: value.detach() for name, value in sums.items()}))
        self.clips += clips

    def close(self) -> tuple[dict[int, tuple[float, dict[str, float]]], int]:
        """Adds up over ranks and starts anew; every rank must call it at the same step.

        Returns:
            For each step (learning rate, sums), and this worker's clips. A sum that a step did not
            bring is 0.
        """
        names = sorted({name for _, _, sums in self.rows for name in sums})
        none = torch.zeros((), device=self.rank.device)
        columns = [[sums.get(name, none).double() for name in names] for _, _, sums in self.rows]
        rows = [torch.stack(column) for column in columns]
        table = self.rank.sum(torch.stack(rows)).cpu() if rows else none[None]
        steps = {
            step: (rate, dict(zip(names, values, strict=True)))
            for (step, rate, _), values in zip(self.rows, table.tolist(), strict=bool(rows))
        }
        clips, self.rows, self.clips = self.clips, [], 0
        return steps, clips
