"""The pace of one worker's training: its time by parts, its metrics, and advice on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from dynamonet.training.advice import ADVISES_AFTER_STEPS, Circumstances, advise
from dynamonet.training.precision import Precision
from dynamonet.training.ranks import Rank
from dynamonet.training.speed import Capacity, measure_capacity, speed_metrics
from dynamonet.training.stopwatch import STEP_PARTS, Stopwatch


@dataclass
class Pace:
    """Measures windows of steps, and gives its advice once.

    The first window is left out of the advice where there is another: caches and queues fill then.
    """

    watch: Stopwatch
    capacity: Capacity
    num_ranks: int
    steps: int = 0
    windows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # of all windows but the first
    clips: int = 0  # in them
    advised: bool = False

    @classmethod
    def of(cls, model: nn.Module, clips: Tensor, precision: Precision, rank: Rank) -> Pace:
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
        found = self.watch.read()
        self.windows += 1
        self.steps += steps
        if self.windows <= 2:
            self.seconds, self.clips = {}, 0
        self.seconds = {part: self.seconds.get(part, 0.0) + s for part, s in found.items()}
        self.clips += clips
        ranks, capacity = self.num_ranks, self.capacity
        return speed_metrics(found, steps=steps, clips=clips, num_ranks=ranks, capacity=capacity)

    def advice(self, about: Circumstances, *, last: bool) -> str | None:
        """Returns the advice after the first hundred steps, or the last if they are fewer.

        None before, and when it was given.
        """
        if self.advised or not (last or self.steps >= ADVISES_AFTER_STEPS):
            return None
        self.advised = True
        spent = max(1e-9, sum(self.seconds[part] for part in STEP_PARTS))
        return advise(self.seconds, self.capacity.mfu(self.clips / spent), about)
