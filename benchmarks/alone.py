"""A training in this process: without Ray, and without a tracking store where none is wanted."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamonet.tracking.runs import TrackedRun
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.console import Progress
from dynamonet.training.task import Job, Task
from dynamonet.training.trainer import Trainer


def training_alone(
    task: Task[Any],
    run: TrackedRun,
    home: Path,
    messages: queue.Queue[Any] | queue.SimpleQueue[Any],
    *,
    origin: dict[str, Any] | None = None,
    threads: int = 1,
    processes: int = 0,
    **more: Any,
) -> Trainer:
    """Returns a training in this process, on the CPU.

    Args:
        messages: Takes what a driver would print.
        processes: Loader processes.
        more: See `Trainer`.
    """
    torch.set_num_threads(threads)
    progress = Progress(messages)  # type: ignore[arg-type]
    job = Job(task, run, origin or {}, progress, None, home, processes, threads)
    return Trainer(job, Rank(0, 1, torch.device("cpu")), **more)


@dataclass(frozen=True)
class Untracked(TrackedRun):
    """Stands for a run of a tracking store where there is none; keeps its metrics."""

    uri: str = ""
    run_id: str = ""
    experiment_id: str = ""
    name: str = ""
    rows: dict[int, Mapping[str, float]] = field(default_factory=dict)

    def last_mean(self, name: str, steps: int = 50) -> float | None:
        """Returns the mean of a metric over the last steps that have it."""
        values = [self.rows[step][name] for step in sorted(self.rows) if name in self.rows[step]]
        return float(np.mean(values[-steps:])) if values else None

    def tag(self, **tags: str) -> None:
        return None

    def log_metrics(
        self, rows: Mapping[int, Mapping[str, float]], *, after: Mapping[str, int] | None = None
    ) -> None:
        self.rows.update(rows)

    def log_figure(self, figure: Any, name: str) -> None:
        return None

    def log_bytes(self, content: bytes, name: str) -> None:
        return None

    def last_steps(self) -> dict[str, int]:
        return {}
