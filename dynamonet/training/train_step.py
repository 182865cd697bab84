"""One update of the weights: forward and backward in parts, the check, clipping, the optimiser.

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
from dynamonet.training.checkpoint.state import TrainState
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.metrics import Sums
from dynamonet.training.numerics.nonfinite import Findings, broken_gradients, watching
from dynamonet.training.numerics.precision import Precision
from dynamonet.training.perf.monitor import PerfMonitor
from dynamonet.training.task import Task
from dynamonet.video.transforms import ClipBatch

MAX_OVERFLOWS = 20  # fp16: in a row; the loss scale has then been halved from 65,536 to below 1


@dataclass(frozen=True)
class Gradients:
    """What a step's forward and backward found; on the device, so that nothing waits for it."""

    loss: Tensor  # ()
    norm: Tensor  # (), of the gradients over all ranks, not clipped
    sums: Sums

    @property
    def broken(self) -> Tensor:
        """Tells (2,) whether the loss, and whether the gradients are not finite."""
        return ~torch.isfinite(torch.stack([self.loss.float(), self.norm.float()]))


def copy_all(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copies tensors into others of the same shapes, in place."""
    for given, taken in zip(source, target, strict=True):
        taken.copy_(given)


class TrainStep:
    """Computes gradients of a batch and applies them, apart, so that a step can be refused."""

    def __init__(
        self,
        task: Task[Any],
        train_state: TrainState,
        precision: Precision,
        rank: Rank,
        micro_batch: int,
        perf: PerfMonitor,
    ) -> None:
        self.task, self.train_state, self.precision, self.rank = task, train_state, precision, rank
        self.micro_batch, self.perf = micro_batch, perf
        self.parallel: nn.Module = train_state.model
        if rank.count > 1:
            devices = [rank.device] if rank.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(train_state.model, device_ids=devices)
        self.overflows = 0
        # a step that is refused must leave no trace in batch norm's running statistics
        self.kept = [buffer.clone() for buffer in train_state.model.buffers()]

    def gradients(self, step: int, batch: ClipBatch) -> Gradients:
        """Leaves the gradients of a batch, averaged over parts and ranks."""
        train_state = self.train_state
        copy_all(train_state.model.buffers(), self.kept)
        self.parallel.train()
        train_state.optimizer.zero_grad(set_to_none=True)
        parts = batch.parts(self.micro_batch)
        total = torch.zeros((), device=self.rank.device)
        sums: Sums = {}
        for index, part in enumerate(parts):
            torch.manual_seed(self.seed(step, index))
            last = index == len(parts) - 1
            with self._reducing(last):
                loss, more = self._loss(self.parallel, part)
                train_state.scaler.scale(loss / len(parts)).backward()
            self.perf.lap("backward")
            total += loss.detach() / len(parts)
            for name, value in more.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        train_state.scaler.unscale_(train_state.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None])
        return Gradients(total, norm, sums)

    def refuses(self, *, bad_loss: bool, bad_gradients: bool) -> bool:
        """Tells whether the weights must stay as they are.

        In fp16 gradients overflow now and then, and the scale of the loss adapts.
        """
        if not self.train_state.scaler.is_enabled():
            return bad_loss or bad_gradients
        if not bad_loss:
            self.overflows = self.overflows + 1 if bad_gradients else 0
        return bad_loss or self.overflows >= MAX_OVERFLOWS

    def apply(self, gradients: Gradients) -> None:
        """Moves the weights; in fp16 the scaler leaves them where gradients overflowed."""
        train_state, most = self.train_state, self.task.settings.optimizer.clip_norm
        nn.utils.clip_grads_with_norm_(self._trained(), most, gradients.norm)
        train_state.scaler.step(train_state.optimizer)
        train_state.scaler.update()
        if train_state.average is not None:
            train_state.average.update(train_state.model)
        self.perf.lap("optimiser")

    def discard(self) -> None:
        """Takes the batch's trace out of gradients, running statistics and scaler."""
        self.train_state.optimizer.zero_grad(set_to_none=True)
        copy_all(self.kept, self.train_state.model.buffers())
        if self.train_state.scaler.is_enabled():
            self.train_state.scaler.update()

    def replay(self, step: int, batch: ClipBatch) -> Findings:
        """Runs a step again on this rank's clips alone, and looks for what is not finite."""
        train_state, losses = self.train_state, list[float]()
        parts = batch.parts(self.micro_batch)
        train_state.optimizer.zero_grad(set_to_none=True)
        eager = torch.compiler.set_stance("force_eager")  # hooks are not seen in compiled code
        with eager, watching(train_state.model) as layers:
            for index, part in enumerate(parts):
                torch.manual_seed(self.seed(step, index))
                loss, _ = self._loss(train_state.model, part)
                train_state.scaler.scale(loss / len(parts)).backward()
                losses.append(float(loss.detach()))
        mean = sum(losses) / len(losses)
        return Findings(mean, tuple(layers), tuple(broken_gradients(train_state.model)))

    def seed(self, step: int, part: int) -> int:
        """Returns the seed of a part's randomness; it depends on its place in the global batch."""
        share = self.task.settings.loader.batch_size // self.rank.count
        place = self.rank.index * (share // self.micro_batch) + part
        return sample_seed(self.task.settings.order_seed, step, place)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.train_state.model.parameters() if p.grad is not None]

    def _loss(self, model: nn.Module, part: ClipBatch) -> tuple[Tensor, Sums]:
        frames = part.to(self.rank.device).render()
        self.perf.lap("copy")
        with self.precision.autocast():
            loss_and_sums = self.task.loss(model, frames, part)
        self.perf.lap("forward")
        return loss_and_sums

    def _reducing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which gradients are averaged over ranks after the last part only."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.parallel.no_sync()
