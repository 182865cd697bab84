"""Who this worker is among the others, and the few things ranks say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """One worker of a training run."""

    index: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Tells whether this is rank 0, the only one that writes."""
        return self.index == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks; every rank must call it."""
        if self.count > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather(self, item: object) -> list[object]:
        """Returns every rank's picklable item, in rank order; every rank must call it."""
        if self.count == 1:
            return [item]
        items: list[object] = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def total(self, *counts: float, on_device: Tensor | None = None) -> list[float]:
        """Returns the sum over all ranks of each count; every rank must call it.

        Args:
            on_device: More counts (N,), which come last; the host waits for the device once for
                all of them.
        """
        if self.count == 1:
            return [*counts, *(() if on_device is None else on_device.double().tolist())]
        own = torch.tensor(counts, dtype=torch.float64).to(self.device, non_blocking=True)
        return self.sum(own if on_device is None else torch.cat([own, on_device.double()])).tolist()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Tells for each flag whether any rank raised it; every rank must call it."""
        return tuple(count > 0 for count in self.total(*flags))

    def broadcast(self, item: T) -> T:
        """Returns rank 0's picklable item on every rank; every rank must call it."""
        return cast("T", self.gather(item)[0])

    def share_buffers(self, module: nn.Module) -> None:
        """Gives every rank rank 0's buffers of a module; every rank must call it."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
