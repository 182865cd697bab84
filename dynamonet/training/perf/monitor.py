"""The performance of one worker's training: its time by parts, its metrics, and advice on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision
from dynamonet.training.perf.advice import ADVISES_AFTER_STEPS, PerfContext, advise
from dynamonet.training.perf.throughput import Capacity, measure_capacity, speed_metrics
from dynamonet.training.perf.timer import STEP_PARTS, Stopwatch


@dataclass
class PerfMonitor:
    """Measures windows of steps, and advises on them.

    The first window is left out of the advice where there is another: caches and queues fill then.
    """

    watch: Stopwatch
    capacity: Capacity
    num_ranks: int
    steps: int = 0
    windows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # of all windows but the first
    clips: int = 0  # in them

    @classmethod
    def of(cls, model: nn.Module, clips: Tensor, precision: Precision, rank: Rank) -> PerfMonitor:
        """Counts the model's arithmetic, measures the device's peak, and starts the watch.

        Args:
            clips: (B, 3, T, H, W), a batch in the shape of training, on the rank's device.
        """
        capacity = measure_capacity(model, clips, precision.dtype)
        return cls(Stopwatch(rank.device), capacity, rank.count)

    def lap(self, part: str) -> None:
        """Ends a part of the loop, see `Stopwatch`."""
        self.watch.lap(part)

    def close(self, steps: int, clips: int) -> dict[str, float]:
        """Ends a window of steps and returns its metrics, of this worker's time.

        Args:
            clips: That this worker saw.
        """
        seconds = self.watch.read()
        self.windows += 1
        self.steps += steps
        if self.windows <= 2:
            self.seconds, self.clips = {}, 0
        self.seconds = {part: self.seconds.get(part, 0.0) + s for part, s in seconds.items()}
        self.clips += clips
        ranks, capacity = self.num_ranks, self.capacity
        return speed_metrics(seconds, steps=steps, clips=clips, num_ranks=ranks, capacity=capacity)

    def can_advise(self, *, last: bool) -> bool:
        """Tells whether enough was measured: a hundred steps, or the last if they are fewer."""
        return last or self.steps >= ADVISES_AFTER_STEPS

    def advice(self, context: PerfContext) -> str:
        """Returns what holds the training up, and the setting to change."""
        spent = max(1e-9, sum(self.seconds[part] for part in STEP_PARTS))
        return advise(self.seconds, self.capacity.mfu(self.clips / spent), context)
