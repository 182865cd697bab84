"""The fine-tuning task: cross-entropy, with frame prediction as auxiliary loss."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig
from dynamonet.model.files import read_description, read_weights
from dynamonet.model.network import DynamoNet, Output
from dynamonet.model.prediction import compare, error_metrics, error_sums, prediction_loss
from dynamonet.settings import validate
from dynamonet.shards.index import ShardSet
from dynamonet.shards.reader import ClipReader
from dynamonet.training.meters import Sums
from dynamonet.training.precision import Precision
from dynamonet.training.ranks import Rank
from dynamonet.training.task import Evaluation, Task
from dynamonet.video.transforms import ClipBatch
from finetune.evaluate import evaluate
from finetune.settings import FinetuneSettings
from finetune.transfer import transfer


@dataclass(frozen=True)
class Finetuning(Task[FinetuneSettings]):
    """Learns classes from labelled clips; see `dynamonet.training.task.Task`."""

    settings: FinetuneSettings
    shards: str  # absolute path or URI
    pretrained: str | None  # folder of a model

    def architecture(self) -> ModelConfig:
        """Returns the network's description, without its classifier."""
        if self.settings.model is not None:
            return self.settings.model
        if self.pretrained is None:
            return ModelConfig()
        found = read_description(Path(self.pretrained))
        return validate(ModelConfig, found["model"], origin=self.pretrained)

    def check(self) -> None:
        self.training_data()
        self.test_data()

    def build_model(self) -> DynamoNet:
        settings = self.settings
        update = {
            "num_classes": len(ShardSet.open(self.shards).classes),
            "use_dmr": settings.use_dmr,
            "dropout": settings.dropout,
        }
        model = DynamoNet(self.architecture().model_copy(update=update))
        if self.pretrained is not None:
            transfer(model, read_weights(Path(self.pretrained)), settings.min_loaded_share)
        if not settings.use_dmr and not settings.aux_weight:
            model.motion.requires_grad_(False)  # nothing would train it
        return model

    def rate_groups(self, model: DynamoNet) -> list[tuple[nn.Module, float]]:
        assert model.classifier is not None
        rate = self.settings.trunk_rate
        return [(model.classifier, 1.0), (model.trunk, rate), (model.motion, rate)]

    def training_data(self) -> ClipReader:
        shards = ShardSet.open(self.shards)
        rows = shards.rows(split=self.settings.split, part="train")
        rows = labelled_share(shards, rows, self.settings.label_share)
        if not len(rows):
            raise UserError(
                f"{self.shards}: split {self.settings.split} has no training video here; "
                "stage 1 reports how many listed videos it found"
            )
        return self.reader(shards, rows)

    def test_data(self) -> ClipReader:
        shards = ShardSet.open(self.shards)
        rows = shards.rows(split=self.settings.split, part=self.settings.test_part)
        if not len(rows):
            raise UserError(
                f"{self.shards}: split {self.settings.split} has no {self.settings.test_part} "
                "video here; the model "
                "could not be measured"
            )
        return self.reader(shards, rows)

    def reader(self, shards: ShardSet, rows: NDArray[np.int64]) -> ClipReader:
        config = self.architecture()
        return ClipReader(
            shards,
            rows,
            self.settings.clips,
            num_frames=config.num_frames + config.frames_beyond,
            loop_short=True,  # every labelled video counts, however short
            eval_side=min(1.0, config.frame_px / self.settings.clips.canvas_px),
            loader=self.settings.loader,
        )

    def loss(
        self, model: nn.Module, frames: Tensor, batch: ClipBatch, *, ceiling: bool
    ) -> tuple[Tensor, Sums]:
        config = self.architecture()
        weight = self.settings.aux_weight
        clip = frames[:, :, : config.num_frames]
        output: Output = model(clip, predict_frames=weight > 0)
        assert output.logits is not None
        label = batch.label.to(frames.device)
        entropy = F.cross_entropy(output.logits.float(), label)
        correct = (output.logits.argmax(1) == label).float().sum()
        one = torch.ones((), device=frames.device)
        sums = {"entropy": entropy, "correct": correct, "clips": one * len(label), "steps": one}
        if not weight:
            return entropy, {**sums, "loss": entropy}
        pairs = compare(frames, output.predicted, config.filters.levels, config.targets)
        prediction = prediction_loss(pairs, "mse")
        sums |= error_sums(pairs[0], config.filters.size, ceiling=ceiling)
        loss = entropy + weight * prediction
        return loss, {**sums, "loss": loss}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        metrics = {
            "loss": sums["loss"] / sums["steps"],
            "entropy": sums["entropy"] / sums["steps"],
            "accuracy": sums["correct"] / sums["clips"],
        }
        if "copied" in sums:
            metrics |= error_metrics(sums)
        return metrics

    def evaluates_after(self, step: int, total_steps: int) -> bool:
        return step == total_steps  # the test part is looked at once

    def evaluate(self, model: DynamoNet, rank: Rank, precision: Precision) -> Evaluation:
        return evaluate(
            model,
            self.test_data(),
            ShardSet.open(self.shards),
            rank=rank,
            precision=precision,
            test_clips=self.settings.test_clips,
            batch_size=max(1, self.settings.loader.batch_size // rank.count),
        )

    def describe(self) -> dict[str, Any]:
        shards = ShardSet.open(self.shards)
        return {
            "stage": "finetune",
            "shards": self.shards,
            "split": self.settings.split,
            "classes": shards.classes,
            "frames": shards.frames.model_dump(mode="json"),
            "clips": self.settings.clips.model_dump(mode="json"),
        }


def labelled_share(shards: ShardSet, rows: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Keeps a share of each class's videos, at least one; the smaller share lies in the larger."""
    if share == 1.0:
        return rows
    sources, classes = shards.table["source"].to_pylist(), shards.columns["label"]
    videos: dict[int, set[str]] = {}
    for row in rows:
        videos.setdefault(int(classes[row]), set()).add(sources[row])

    def draw(source: str) -> bytes:
        return hashlib.blake2b(source.encode(), digest_size=8).digest()

    kept = {
        source
        for members in videos.values()
        for source in sorted(members, key=draw)[: max(1, math.ceil(share * len(members)))]
    }
    return rows[[sources[row] in kept for row in rows]]
