"""What a stage brings to the training loop, and what a worker is sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from dynamonet.model.network import DynamoNet
from dynamonet.shards.reader import ClipReader
from dynamonet.tracking.runs import TrackedRun
from dynamonet.tracking.seen import TrainedOn
from dynamonet.training.distributed.coordinator import Coordinator
from dynamonet.training.logs.console import Progress
from dynamonet.training.logs.metrics import Evaluation, Sums
from dynamonet.training.measuring import Measuring
from dynamonet.training.settings import TrainSettings
from dynamonet.video.transforms import ClipBatch

S = TypeVar("S", bound=TrainSettings)


class Task(ABC, Generic[S]):
    """What a stage brings to the loop: model, data, objective, evaluation. Picklable."""

    settings: S
    pretrained: str | None  # folder of the model that it starts from

    @abstractmethod
    def check(self) -> None:
        """Raises a UserError for what cannot work; the driver calls it before anything starts."""

    @abstractmethod
    def build_model(self) -> DynamoNet:
        """Returns the model in its starting state."""

    @abstractmethod
    def rate_groups(self, model: DynamoNet) -> list[tuple[nn.Module, float]]:
        """Returns the parts of the model with their factors on the learning rate."""

    @abstractmethod
    def training_data(self) -> ClipReader:
        """Returns the reader of the training clips."""

    def shares(self) -> Sequence[float] | None:
        """Returns each set's share of an epoch; None = by the number of their samples."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        """Returns the loss of a batch, and sums from which `summarise` makes the metrics.

        Args:
            frames: (B, 3, T + F, H, W), the rendered clip and the F frames after it.
        """

    @abstractmethod
    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Turns sums over steps and ranks into metrics."""

    @abstractmethod
    def evaluate(self, model: DynamoNet, measuring: Measuring) -> Evaluation:
        """Measures the model on data it does not train on; every rank takes its share."""

    def rehearse(self, model: DynamoNet, frames: Tensor) -> None:
        """Does with one batch what `evaluate` does, to see whether its memory suffices."""
        model(frames[:, :, : model.config.num_frames])

    def solve(self, model: DynamoNet, measuring: Measuring) -> dict[str, float]:
        """Teaches the model what takes no steps, in a training without any; returns metrics.

        Every rank takes its share of the clips and ends with the same model.
        """
        return {}

    @abstractmethod
    def evaluates_after(self, step: int, total_steps: int) -> bool:
        """Tells whether to evaluate once `step` steps are done."""

    def best_by(self) -> str | None:
        """Names the evaluated metric, higher is better, by which the best checkpoint is kept."""
        return None

    def keeps_best(self) -> bool:
        """Tells whether the finished model is that of the best checkpoint, not of the last."""
        return False

    def test(self, model: DynamoNet, measuring: Measuring) -> Evaluation | None:
        """Measures the finished model, once, on data that nothing was chosen by; None = has none.

        Every rank takes its share.
        """
        return None

    def verdict(self, clips: int) -> str:
        """Returns what a training that sees so many clips is worth, in words; may be empty."""
        return ""

    def tags(self) -> dict[str, str]:
        """Returns what the tracking store can find the run by."""
        return {}

    def trained_on(self) -> TrainedOn:
        """Returns which source videos training learns from, its starting weights' included."""
        reader = self.training_data()
        own = TrainedOn(reader.sets.source_digests(reader.rows), True)
        return own | TrainedOn.read(Path(self.pretrained)) if self.pretrained else own

    def describe(self) -> dict[str, Any]:
        """Returns JSON-able facts to store beside the model."""
        return {}


@dataclass(frozen=True)
class Job:
    """All that a worker is sent."""

    task: Task[Any]
    run: TrackedRun
    origin: dict[str, Any]  # goes with the model
    progress: Progress
    coordinator: Coordinator | None
    home: Path  # the run's folder
    processes: int  # loader processes of each worker
    threads: int  # threads of each worker's arithmetic
