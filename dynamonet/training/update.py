"""One update of the weights: forward and backward in parts, clipping, the check, the optimiser.

share of a rank    0 1 2 3 4 5 6 7        clips of this step
parts              0 1 2 3 | 4 5 6 7      micro-batches; their gradients are averaged
all-reduce                         ^      once, after the last part
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dynamonet.shards.order import sample_seed
from dynamonet.training.checkpoint import Learner
from dynamonet.training.meters import Sums
from dynamonet.training.pace import Pace
from dynamonet.training.precision import Precision
from dynamonet.training.ranks import Rank
from dynamonet.training.task import Task
from dynamonet.video.transforms import ClipBatch, render

MOST_OVERFLOWS = 20  # fp16: in a row; the loss scale has then been halved from 65,536 to below 1


@dataclass(frozen=True)
class Gradients:
    """What a step's forward and backward found."""

    loss: float
    norm: float  # of the gradients, before clipping
    finite: bool  # False: the weights must stay as they are
    sums: Sums


def copy_all(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copies tensors into others of the same shapes, in place."""
    for given, taken in zip(source, target, strict=True):
        taken.copy_(given)


class Update:
    """Computes gradients of a batch and applies them, apart, so that a step can be refused."""

    def __init__(
        self,
        task: Task[Any],
        learner: Learner,
        precision: Precision,
        rank: Rank,
        micro_batch: int,
        pace: Pace,
    ) -> None:
        self.task, self.learner, self.precision, self.rank = task, learner, precision, rank
        self.micro_batch, self.pace = micro_batch, pace
        self.parallel: nn.Module = learner.model
        if rank.count > 1:
            devices = [rank.device] if rank.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(learner.model, device_ids=devices)
        self.overflows = 0
        # a step that is refused must leave no trace in batch norm's running statistics
        self.kept = [buffer.clone() for buffer in learner.model.buffers()]

    def gradients(self, step: int, batch: ClipBatch, *, ceiling: bool) -> Gradients:
        """Leaves the gradients of a batch, averaged over parts and ranks and clipped."""
        learner, settings = self.learner, self.task.settings
        copy_all(learner.model.buffers(), self.kept)
        self.parallel.train()
        learner.optimizer.zero_grad(set_to_none=True)
        parts = batch.parts(self.micro_batch)
        total = torch.zeros((), device=self.rank.device)
        sums: Sums = {}
        for index, part in enumerate(parts):
            torch.manual_seed(self.seed(step, index))
            last = index == len(parts) - 1
            with self._reducing(last):
                loss, more = self._loss(part, ceiling=ceiling and index == 0)
                learner.scaler.scale(loss / len(parts)).backward()
            self.pace.lap("backward")
            total += loss.detach() / len(parts)
            for name, value in more.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        learner.scaler.unscale_(learner.optimizer)
        norm = nn.utils.clip_grad_norm_(learner.model.parameters(), settings.optimizer.clip_norm)
        found, size = torch.stack([total.float(), norm.float()]).tolist()
        return Gradients(found, size, self._finite(found, size), sums)

    def apply(self) -> None:
        """Moves the weights; in fp16 the scaler leaves them where gradients overflowed."""
        learner = self.learner
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        if learner.average is not None:
            learner.average.update_parameters(learner.model)
        self.pace.lap("optimiser")

    def forget(self) -> None:
        """Takes the batch's trace out of gradients, running statistics and scaler."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        copy_all(self.kept, self.learner.model.buffers())
        if self.learner.scaler.is_enabled():
            self.learner.scaler.update()

    def seed(self, step: int, part: int) -> int:
        """Returns the seed of a part's randomness; it hangs on its place in the global batch."""
        share = self.task.settings.loader.batch_size // self.rank.count
        place = self.rank.index * (share // self.micro_batch) + part
        return sample_seed(self.task.settings.seed, step, place)

    def _loss(self, part: ClipBatch, *, ceiling: bool) -> tuple[Tensor, Sums]:
        frames = render(part.to(self.rank.device), self.learner.model.config.frame_px)
        self.pace.lap("copy")
        with self.precision.autocast():
            found = self.task.loss(self.parallel, frames, part, ceiling=ceiling)
        self.pace.lap("forward")
        return found

    def _reducing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which gradients are averaged over ranks after the last part only."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.parallel.no_sync()

    def _finite(self, loss: float, norm: float) -> bool:
        """Tells whether to go on; in fp16 gradients overflow now and then, and the scale adapts."""
        inf = float("inf")
        if not abs(loss) < inf:
            return False
        overflow = not norm < inf
        self.overflows = self.overflows + 1 if overflow else 0
        if self.learner.scaler.is_enabled():
            return self.overflows < MOST_OVERFLOWS
        return not overflow
