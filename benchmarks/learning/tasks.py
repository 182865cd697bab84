"""What is pretrained and fine-tuned: the product's two tasks, with another network or loss."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.learning.networks import VicReg, VideoMae
from dynamonet.errors import need
from dynamonet.model.config import ModelConfig
from dynamonet.model.files import read_weights
from dynamonet.model.network import DynamoNet
from dynamonet.shards.reader import ClipReader
from dynamonet.training.logs.metrics import Evaluation, Sums
from dynamonet.training.measuring import Measuring
from dynamonet.video.decode import Box, Bytes
from dynamonet.video.transforms import ClipBatch, View, stack_colours
from finetune.evaluation.evaluator import metrics_of, predict_videos
from finetune.evaluation.metrics import Predictions
from finetune.train.objective import Finetuning
from pretrain.objective import Pretraining

VICREG_BEYOND = 4  # frames that the second view of a clip is later
_VICREG_CROP, _VICREG_COLOUR = (0.4, 1.0), 0.4
_DECODED: dict[tuple[str, ...], dict[int, Bytes]] = {}  # shard sets -> their segments, for all rows


def _decoded_once(reader: ClipReader, *shards: str) -> ClipReader:
    """Shares the decoded segments of a set, so that no training is charged with decoding them."""
    reader.decoded = _DECODED.setdefault(shards, reader.decoded)
    return reader


@dataclass(frozen=True)
class Filters(Pretraining):
    """Prediction with dynamic motion filters: the product's own."""

    def training_data(self) -> ClipReader:
        return _decoded_once(super().training_data(), *self.shards)

    def evaluates_after(self, step: int, total_steps: int) -> bool:
        return False

    def test(self, model: DynamoNet, measuring: Measuring) -> Evaluation | None:
        return None  # what it is worth is what the rows tell


@dataclass(frozen=True)
class _Peer(Filters):
    """Learns by another loss, and predicts no frame."""

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["steps"]}


def _sums(loss: Tensor) -> tuple[Tensor, Sums]:
    return loss, {"loss": loss, "steps": torch.ones((), device=loss.device)}


@dataclass(frozen=True)
class VicRegPretraining(_Peer):
    """Features of two views of a video agree, each feature varies, none repeats another."""

    def training_data(self) -> ClipReader:
        reader = super().training_data()  # whole squares: each view is drawn from them
        whole = {"crop_scale": (1.0, 1.0), "flip": False, "colour_jitter": 0.0}
        reader.settings = reader.settings.model_copy(update=whole)
        return reader

    def build_model(self) -> DynamoNet:
        return VicReg(ModelConfig.of(self.settings.model))

    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        losses = need("lightly.loss", "peers", "VICReg is taken from lightly")
        config, views = self.settings.model, []
        for first in (0, VICREG_BEYOND):
            rng = np.random.default_rng(int(torch.randint(2**31, ())))
            drawn = [
                View.drawn(rng, scale=_VICREG_CROP, flip=True, colour=_VICREG_COLOUR)
                for _ in range(len(batch))
            ]
            pixels = batch.pixels[:, first : first + config.num_frames].numpy()
            square = Box(0, 0, *pixels.shape[2:4])
            cut = [
                view.scaled(clip[(slice(None), *view.box(square).slices())], config.frame_px)
                for view, clip in zip(drawn, pixels, strict=True)
            ]
            seen = ClipBatch(torch.stack(cut), stack_colours(drawn), batch.label, batch.row)
            clip = seen.to(frames.device).render()
            pooled = model(clip, predict_frames=False).pooled
            views.append(model.expander(pooled.float()).float())  # type: ignore[operator]
        return _sums(losses.VICRegLoss()(*views))


@dataclass(frozen=True)
class VideoMaePretraining(_Peer):
    """Hidden patches are predicted from the others."""

    def build_model(self) -> DynamoNet:
        return VideoMae(ModelConfig.of(self.settings.model))

    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        assert isinstance(model, VideoMae)
        return _sums(model.masked_loss(frames[:, :, : self.settings.model.num_frames]))


@dataclass(frozen=True)
class Classification(Finetuning):
    """Fine-tuning as the product does it, of any of the networks, measured without pictures."""

    network: type[DynamoNet] = DynamoNet
    validates: bool = False  # measures the validation part, and never looks at the test part
    outcome: list[Predictions] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of the processor, that measuring took

    def build_model(self) -> DynamoNet:
        return super().build_model() if self.network is DynamoNet else self._other_network()

    def _other_network(self) -> DynamoNet:
        model = self.network(self.classifier_config())
        if self.pretrained is not None:
            weights = read_weights(Path(self.pretrained))
            inner = "trunk.videomae."
            own = {
                "trunk." + key.removeprefix(inner): value
                for key, value in weights.items()
                if key.startswith(inner)
            }
            assert not model.load_state_dict(own, strict=False).unexpected_keys
        return model

    def reader(self, rows: NDArray[np.int64]) -> ClipReader:
        return _decoded_once(super().reader(rows), self.shards)

    def rate_groups(self, model: DynamoNet) -> list[tuple[nn.Module, float]]:
        if hasattr(model.trunk, "stages"):
            return super().rate_groups(model)
        assert model.classifier is not None and self.settings.trunk_rate is not None
        return [(model.trunk, self.settings.trunk_rate), (model.classifier, 1.0)]

    def keeps_best(self) -> bool:
        return False

    def test(self, model: DynamoNet, measuring: Measuring) -> Evaluation:
        part = self.parts.validation if self.validates else self.parts.test
        how = self.data, self.views, measuring
        began = time.process_time()
        self.outcome.append(predict_videos(model, self.reader(part), *how))
        self.seconds.append(time.process_time() - began)
        return Evaluation(metrics_of(self.outcome[-1], "test"), {}, {})
