"""The fine-tuning task: cross-entropy, with frame prediction as auxiliary loss."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.frozen import ridge
from dynamonet.frozen.folds import balanced
from dynamonet.model.classifier import Classifier, Head
from dynamonet.model.config import LossName, ModelConfig, NetworkConfig
from dynamonet.model.network import DynamoNet, Output
from dynamonet.model.prediction import error_metrics, error_sums, pair_frames, prediction_loss
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.rows import RowSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.seen import TrainedOn
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.metrics import Evaluation, Sums
from dynamonet.training.measuring import Measuring
from dynamonet.training.run_folder import settings_digest
from dynamonet.training.start import transfer
from dynamonet.training.task import Task
from dynamonet.video.transforms import ClipBatch
from finetune.evaluation.evaluator import (
    ViewPlan,
    evaluate_test,
    metrics_of,
    predict_videos,
)
from finetune.evaluation.protocol import TEST_PART, TEST_SETTINGS, MeasuredPart
from finetune.pretrained.load import (
    is_foreign,
    pretrained_config,
    pretrained_loss,
    pretrained_weights,
)
from finetune.settings import FinetuneSettings, SeedSettings
from finetune.train.augment import augment
from finetune.train.splits import Splits

logger = logging.getLogger("dynamonet.ridge")  # below the package, which the console shows
TRUNK_RATE = 0.1  # of a trunk that others trained. Source: Hara's fine-tuning


@dataclass(frozen=True)
class Finetuning(Task[FinetuneSettings]):
    """Learns classes from labelled clips; see `dynamonet.training.task.Task`."""

    settings: FinetuneSettings
    shards: str  # absolute path or URI
    pretrained: str | None  # folder of a model
    beside: tuple[str, ...] = ()  # folders of others, which are read together with it

    @cached_property
    def data(self) -> ShardSet:
        return ShardSet.open(self.shards)

    @cached_property
    def parts(self) -> Splits:
        return Splits.of(self.data, self.settings)

    @cached_property
    def architecture(self) -> NetworkConfig:
        if self.settings.model is not None:
            return self.settings.model
        if self.pretrained is None:
            return NetworkConfig()
        return pretrained_config(Path(self.pretrained), self.settings.pixel_scale)

    @cached_property
    def auxiliary_loss(self) -> LossName:
        """The difference between frames that pretraining used."""
        return "mse" if self.pretrained is None else pretrained_loss(Path(self.pretrained))

    @property
    def is_foreign(self) -> bool:
        """Whether the weights to start from are other people's."""
        return self.pretrained is not None and is_foreign(Path(self.pretrained))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what a worker opens itself."""
        return {key: vars(self)[key] for key in ("settings", "shards", "pretrained", "beside")}

    def check(self) -> None:
        self.training_data()

    def classifier_config(self) -> ModelConfig:
        """Returns the network's description, with its classifier.

        Frozen filters that start at random are not read.
        """
        settings, classes = self.settings, len(self.data.classes)
        random = self.is_foreign and settings.recipe != "full"
        pooling = "mean_std" if settings.recipe == "ridge" or settings.reads == "field" else "mean"
        classifier = {
            "num_classes": classes,
            "pooling": "attentive" if settings.recipe == "attentive" else pooling,
            "reads": "features" if random else settings.reads,
            "dropout": settings.dropout,
            "frame_seconds": settings.clips.seconds_apart(self.data.frames.max_fps),
        }
        own = ModelConfig.of(self.architecture, **classifier)
        beside = tuple(ModelConfig.of(self._like(place), **classifier) for place in self.beside)
        return own.model_copy(update={"beside": beside})

    def _like(self, place: str) -> NetworkConfig:
        """Returns a model's architecture, for clips of the size that the first one is shown."""
        first = self.architecture
        size = {"num_frames": first.num_frames, "frame_px": first.frame_px}
        return pretrained_config(Path(place)).model_copy(update=size)

    def build_model(self) -> DynamoNet:
        settings, model = self.settings, DynamoNet(self.classifier_config())
        places = [self.pretrained, *self.beside] if self.pretrained else []
        for network, place in zip(model.networks, places, strict=False):
            weights = pretrained_weights(Path(place), network.config)
            transfer(network, weights, settings.min_loaded_share)
        if settings.recipe in ("ridge", "attentive"):
            model.freeze()
        elif settings.reads == "features" and not settings.auxiliary:
            model.motion.requires_grad_(False)  # nothing would train it
        return model

    def rate_groups(self, model: DynamoNet) -> list[tuple[nn.Module, float]]:
        """Gives the classifier the full rate, the trunk less from stage to stage downwards."""
        rate, decay = self.settings.trunk_rate, self.settings.layer_decay
        if rate is None:
            rate = TRUNK_RATE if self.is_foreign else 1.0
        stages = [model.trunk.stem, *model.trunk.stages]
        below = zip(reversed(stages), range(len(stages)), strict=True)
        groups = [(stage, rate * decay**depth) for stage, depth in below]
        own: list[tuple[nn.Module, float]] = [(model.motion, rate)]
        return own + groups + ([(model.classifier, 1.0)] if model.classifier else [])

    def training_data(self) -> ClipReader:
        return self.reader(self.parts.train)

    def reader(self, rows: NDArray[np.int64]) -> ClipReader:
        config, settings = self.architecture, self.settings
        return ClipReader(
            self.data,
            rows,
            settings.clips,
            num_frames=config.num_frames + config.frames_beyond,
            frame_px=config.frame_px,
            loop_short=True,  # every labelled video counts, however short
            loader=settings.loader,
            never_mirrored=labels_of(settings.augment.no_flip, self.data.classes),
        )

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Weight of each class (N,), mean 1 over the training clips; None = all the same."""
        if self.settings.class_weights == "none":
            return None
        labels = self.data.columns["label"][self.parts.train]
        return torch.from_numpy(balanced(labels, len(self.data.classes))).float()

    def solve(self, model: DynamoNet, measuring: Measuring) -> dict[str, float]:
        if self.settings.recipe != "ridge":
            return {}
        classifiers = [network.classifier for network in model.networks]
        rank, reader = measuring.rank, self.reader(self.parts.train)
        rows = reader.rows.numbers().tolist()
        requests = [each for row in rows for each in self.views.requests(row)]
        looks = ridge.look(model, reader, requests, measuring)
        fitted = self.fit([each for each in classifiers if each is not None], looks, rank)
        model.keep_beside([place - 1 for place in fitted.kept if place])
        if rank.is_main:
            logger.info(f"ridge    {len(reader.rows):,} segments; {fitted}")
            if self.beside:
                places = (self.pretrained or "", *self.beside)
                logger.info(f"together {fitted.together(places)}")
        return fitted.metrics

    def fit(
        self, classifiers: Sequence[Classifier], looks: ridge.Looks, rank: Rank
    ) -> ridge.Fitted:
        """Gives classifiers their weights by what their heads read of the training part."""
        heads = [[cast("Head", head) for head in each.heads] for each in classifiers]
        return ridge.fit_heads(
            [head for own in heads for head in own],
            looks,
            ridge.Known.of(self.data, self.parts.train, self.settings.labels_seed),
            self.parts.train,
            views=len(self.views.requests(0)),
            seed=self.settings.labels_seed,
            rank=rank,
            networks=[len(own) for own in heads],
        )

    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        config, settings = self.architecture, self.settings
        weight, classes = settings.auxiliary, len(self.data.classes)
        label = batch.label.to(frames.device)
        frames, target = augment(frames, label, classes, settings.augment)
        output: Output = model(frames[:, :, : config.num_frames], predict_frames=weight > 0)
        assert output.heads is not None and output.logits is not None
        weights = self.class_weights
        entropy = F.cross_entropy(  # of each head for itself
            output.heads.float().flatten(0, 1),
            target.repeat_interleave(output.heads.shape[1], 0),
            weight=None if weights is None else weights.to(frames.device, non_blocking=True),
            label_smoothing=settings.augment.label_smoothing,
        )
        correct = (output.logits.argmax(1) == target.argmax(1)).float().sum()
        one = torch.ones((), device=frames.device)
        sums = {"entropy": entropy, "correct": correct, "clips": one * len(label), "steps": one}
        if not weight:
            return entropy, {**sums, "loss": entropy}
        pairs = pair_frames(frames, output.predicted, config.filters.levels, config.targets)
        prediction = prediction_loss(pairs, self.auxiliary_loss)
        sums |= error_sums(pairs, config.filters)
        loss = entropy + weight * prediction
        return loss, {**sums, "loss": loss}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        metrics = {
            "loss": sums["loss"] / sums["steps"],
            "entropy": sums["entropy"] / sums["steps"],
            "accuracy": sums["correct"] / sums["clips"],
        }
        if self.settings.auxiliary:
            metrics |= error_metrics(sums, self.architecture.filters.levels)
        return metrics

    def evaluates_after(self, step: int, total_steps: int) -> bool:
        due = step % self.settings.validate_every_steps == 0 or step == total_steps
        return due and self.keeps_best()

    def keeps_best(self) -> bool:
        return len(self.parts.validation) > 0

    def best_by(self) -> str | None:
        return "val/top1" if self.keeps_best() else None

    def evaluate(self, model: DynamoNet, measuring: Measuring) -> Evaluation:
        """Measures on the validation part, by one view of each segment."""
        reader, views = self.reader(self.parts.validation), ViewPlan(clips=1, crops=1)
        predictions = predict_videos(model, reader, self.data, views, measuring)
        return Evaluation(metrics_of(predictions, "val"), {}, {})

    def test(self, model: DynamoNet, measuring: Measuring) -> Evaluation | None:
        if not self.settings.test:
            return None
        reader = self.reader(self.parts.test)
        predictions = predict_videos(model, reader, self.data, self.views, measuring)
        if not measuring.rank.is_main:
            return Evaluation(metrics_of(predictions, "test"), {}, {})
        return evaluate_test(predictions, reader, self.data, self.data.classes, model)

    @cached_property
    def views(self) -> ViewPlan:
        """How each test segment is looked at."""
        return ViewPlan.of(self.data, self.settings.test_clips, self.settings.test_crops)

    @cached_property
    def test_part(self) -> MeasuredPart:
        settings, rows = self.settings, RowSet.of(self.parts.test, len(self.data))
        return MeasuredPart.of(self.data, rows, settings.test_part, settings.this_split)

    def tags(self) -> dict[str, str]:
        """Says which videos are tested, and with which weights and settings, seeds aside."""
        places = ",".join([self.pretrained, *self.beside]) if self.pretrained else None
        plain = {"seed": 0, "seeds": None, "hold": SeedSettings(), "pretrained": places}
        digest = settings_digest(self.settings.model_copy(update=plain))
        return {TEST_PART: self.test_part.digest, TEST_SETTINGS: digest}

    def trained_on(self) -> TrainedOn:
        """Returns the validation videos too, which the weights are chosen by."""
        chosen_by = self.data.table["source_digest"].take(self.parts.validation).to_pylist()
        seen = super().trained_on() | TrainedOn.of(chosen_by)
        for place in self.beside:
            seen |= TrainedOn.read(Path(place))
        return seen

    def describe(self) -> dict[str, Any]:
        return {
            "stage": "finetune",
            "shards": self.shards,
            "split": self.settings.split,
            "classes": self.data.classes,
            "frames": self.data.frames.model_dump(mode="json"),
            "clips": self.settings.clips.model_dump(mode="json"),
        }


def labels_of(names: tuple[str, ...], classes: list[str]) -> frozenset[int]:
    """Returns the labels of named classes.

    Raises:
        UserError: there is no such class; the closest one is named.
    """
    for name in names:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0)
            raise UserError(
                f"augment.no_flip: the set has no class {name!r}; the closest of its "
                f"{len(classes)} is {near[0]!r}"
            )
    return frozenset(classes.index(name) for name in names)
