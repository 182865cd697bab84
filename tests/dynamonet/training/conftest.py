"""Trainings on their own, without Ray."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from dynamonet.command_line import load
from dynamonet.training.checkpoint.store import newest
from dynamonet.training.logs.metrics import Sums
from dynamonet.training.trainer import Trainer
from dynamonet.video.transforms import ClipBatch
from pretrain.objective import Pretraining
from pretrain.settings import PretrainSettings
from tests.conftest import TINY_MODEL, logged, tracked, training_alone

BASE = [*TINY_MODEL, "--precision", "fp32", "--max_steps", "6", "--epochs", "50"]
BASE += "--log_every_steps 2 --evaluate_every_steps 100 --checkpoint_every_steps 100".split()


@dataclass(frozen=True)
class Trouble(Pretraining):
    """A pretraining into which something is planted."""

    nan_at: tuple[int, ...] = ()

    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        loss, sums = super().loss(model, frames, batch)
        CALLS.setdefault(torch.initial_seed(), len(frames))  # a part is run again to be looked at
        if [*CALLS].index(torch.initial_seed()) + 1 in self.nan_at:
            loss = loss * float("nan")
        return loss, sums


CALLS: dict[int, int] = {}  # seed of each part -> its clips, in the order they first came


class Bench:
    """Runs trainings of one run folder in this process."""

    def __init__(self, shards: Path, home: Path) -> None:
        self.shards, self.home, self.said = shards, home, list[str]()
        home.mkdir(parents=True)
        self.run = tracked("pretrain", home, self.settings())

    def settings(self, *words: str) -> PretrainSettings:
        argv = [*BASE, *words]
        return load(PretrainSettings, argv, prog="")

    def training(self, *words: str, nan_at: tuple[int, ...] = (), **more: Any) -> Trainer:
        CALLS.clear()
        task = Trouble(self.settings(*words), (str(self.shards),), nan_at=nan_at)
        self.messages: queue.Queue[tuple[Any, ...]] = queue.Queue()
        return training_alone(task, self.run, self.home, self.messages, **more)

    def train(self, *words: str, nan_at: tuple[int, ...] = ()) -> Trainer:
        with logged(self.said):
            training = self.training(*words, nan_at=nan_at)
            training.run()
        return training

    def losses(self) -> dict[int, float]:
        history = MlflowClient(self.run.uri).get_metric_history(self.run.run_id, "train/loss")
        assert len({m.step for m in history}) == len(history), "a step was logged twice"
        return {m.step: m.value for m in history}

    def weights(self) -> dict[str, Tensor]:
        from dynamonet.model.files import read_weights

        folder = newest(self.home)
        assert folder is not None
        return read_weights(folder)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tracking store for all, since making one takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def bench(shard_set: Path, runs: Path) -> Callable[..., Bench]:
    return lambda name="run": Bench(shard_set, runs / f"{len(list(runs.iterdir()))}-{name}")


def equal(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 0, atol: float = 0) -> bool:
    return all(torch.allclose(a[key].double(), b[key].double(), rtol, atol) for key in a)
