"""What is measured at every step: named sums, time spent waiting, clips a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dynamonet.training.ranks import Rank

T = TypeVar("T")
Sums = dict[str, Tensor]  # name -> () float tensor, to be added over steps and ranks


@dataclass
class Window:
    """Collects the steps since the last log line; nothing waits for the device until then."""

    rank: Rank
    rows: list[tuple[int, float, Sums]] = field(default_factory=list)
    clips: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def next(self, batches: Iterator[T]) -> T:
        """Takes the next batch and counts the time it kept the loop waiting."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def add(self, step: int, rate: float, clips: int, sums: Sums) -> None:
        self.rows.append((step, rate, {name: value.detach() for name, value in sums.items()}))
        self.clips += clips

    def close(self) -> tuple[dict[int, tuple[float, dict[str, float]]], dict[str, float]]:
        """Adds up over ranks and starts anew; every rank must call it at the same step.

        Returns:
            For each step (learning rate, sums), and clips/s and the share of time spent waiting. A
            sum that a step did not bring is 0.
        """
        names = sorted({name for _, _, sums in self.rows for name in sums})
        none = torch.zeros((), device=self.rank.device)
        columns = [[sums.get(name, none).double() for name in names] for _, _, sums in self.rows]
        rows = [torch.stack(column) for column in columns]
        table = self.rank.sum(torch.stack(rows)).cpu() if rows else none[None]
        spent = time.perf_counter() - self.began
        steps = {
            step: (rate, dict(zip(names, values, strict=True)))
            for (step, rate, _), values in zip(self.rows, table.tolist(), strict=bool(rows))
        }
        speed = {
            "clips_per_second": self.clips * self.rank.count / spent,
            "data_wait_share": self.waited / spent,
        }
        self.rows, self.clips, self.waited, self.began = [], 0, 0.0, time.perf_counter()
        return steps, speed

    def pause(self) -> float:
        """Returns the present; with `skip` it takes an evaluation's time out of the window."""
        return time.perf_counter()

    def skip(self, since: float) -> None:
        self.began += time.perf_counter() - since
