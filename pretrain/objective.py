"""The pretraining task: predict frames, and measure skill on videos kept out of training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet, Output
from dynamonet.model.prediction import (
    compare,
    error_metrics,
    error_sums,
    prediction_loss,
    squared_errors,
)
from dynamonet.shards.index import ShardSet
from dynamonet.shards.order import even_share
from dynamonet.shards.reader import ClipReader, Request, batches
from dynamonet.training.meters import Sums
from dynamonet.training.precision import Precision
from dynamonet.training.ranks import Rank
from dynamonet.training.task import Evaluation, Task
from dynamonet.video.transforms import ClipBatch, render
from pretrain import panel
from pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class Pretraining(Task[PretrainSettings]):
    """Learns motion filters by predicting frames; see `dynamonet.training.task.Task`."""

    settings: PretrainSettings
    shards: str  # absolute path or URI

    def check(self) -> None:
        self.training_data()
        with torch.device("meta"):
            self.build_model()

    def build_model(self) -> DynamoNet:
        return DynamoNet(self.settings.model)

    def rate_groups(self, model: DynamoNet) -> list[tuple[nn.Module, float]]:
        return [(model, 1.0)]

    def training_data(self) -> ClipReader:
        shards = ShardSet.open(self.shards)
        held = set(self._held_out(shards).tolist())
        rows = np.array([row for row in self._usable(shards) if row not in held], np.int64)
        reader = self._reader(shards, rows)
        if not len(reader.rows):
            raise UserError(
                f"{self.shards}: no segment is as long as a clip of {reader.num_frames} frames "
                f"(model.num_frames = {self.settings.model.num_frames}, and "
                f"{self.settings.model.frames_beyond} to predict). Lower model.num_frames or "
                "clips.stride_frames, or make longer segments."
            )
        return reader

    def loss(
        self, model: nn.Module, frames: Tensor, batch: ClipBatch, *, ceiling: bool
    ) -> tuple[Tensor, Sums]:
        config = self.settings.model
        output: Output = model(frames[:, :, : config.num_frames])
        pairs = compare(frames, output.predicted, config.filters.levels, config.targets)
        loss = prediction_loss(pairs, self.settings.loss)
        errors = error_sums(pairs[0], config.filters.size, ceiling=ceiling)
        return loss, {"loss": loss, "steps": torch.ones((), device=loss.device), **errors}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["steps"], **error_metrics(sums)}

    def evaluates_after(self, step: int, total_steps: int) -> bool:
        return step % self.settings.evaluate_every_steps == 0 or step == total_steps

    def best_by(self) -> str:
        return "val/skill"

    @torch.no_grad()
    def evaluate(self, model: DynamoNet, rank: Rank, precision: Precision) -> Evaluation:
        """Measures loss, skill and its ceiling on held-out clips, and draws one of them."""
        config = self.settings.model
        reader = self._evaluation_reader()
        rows = reader.rows[: self.settings.holdout_clips]
        mine = [Request(int(rows[i])) for i in even_share(len(rows), rank.index, rank.count)]
        size = max(1, self.settings.loader.batch_size // rank.count)
        groups = [mine[i : i + size] for i in range(0, len(mine), size)]
        sums = torch.zeros(4, dtype=torch.float64)
        drawn: tuple[Tensor, Output] | None = None
        for batch in batches(reader, groups, processes=0, prefetch=1):
            frames = render(batch.to(rank.device), config.frame_px)
            with precision.autocast():
                output = model(frames[:, :, : config.num_frames])
            pairs = compare(frames, output.predicted, config.filters.levels, config.targets)
            errors = squared_errors(pairs[0], config.filters.size, ceiling=True)
            loss = prediction_loss(pairs, self.settings.loss) * len(batch)
            values = [loss, errors.predicted, errors.copied, errors.best]
            sums += torch.stack([v.double().cpu() for v in values if v is not None])
            drawn = drawn or (frames, output)
        loss, predicted, copied, best = rank.sum(sums).tolist()
        metrics = {
            "val/loss": loss / len(rows),
            "val/skill": 1 - predicted / max(copied, 1e-12),
            "val/ceiling_shared": 1 - best / max(copied, 1e-12),
        }
        figures = {}
        if rank.leads and drawn is not None:
            frames, output = drawn
            pair = compare(frames, output.predicted, config.filters.levels, config.targets)[0]
            figures = {
                "panel/filmstrip-{step:08d}.png": panel.filmstrip(pair),
                "panel/filters-{step:08d}.png": panel.filters(output.filters, frames),
            }
        return Evaluation(metrics, figures, {})

    def describe(self) -> dict[str, Any]:
        clips = self.settings.clips.model_dump(mode="json")
        frames = ShardSet.open(self.shards).frames.model_dump(mode="json")
        return {"stage": "pretrain", "shards": self.shards, "frames": frames, "clips": clips}

    def _reader(self, shards: ShardSet, rows: NDArray[np.int64]) -> ClipReader:
        model = self.settings.model
        return ClipReader(
            shards,
            rows,
            self.settings.clips,
            num_frames=model.num_frames + model.frames_beyond,
            loop_short=False,
            eval_side=min(1.0, model.frame_px / self.settings.clips.canvas_px),
            loader=self.settings.loader,
        )

    def _evaluation_reader(self) -> ClipReader:
        """Reads the held-out videos, or the training ones where none was long enough."""
        shards = ShardSet.open(self.shards)
        held = self._reader(shards, self._held_out(shards))
        return held if len(held.rows) else self._reader(shards, self._usable(shards))

    def _usable(self, shards: ShardSet) -> NDArray[np.int64]:
        """Returns the rows that may be looked at at all: never a labelled set's test part."""
        if not shards.num_splits:
            return shards.rows()
        return shards.rows(split=self.settings.split, part="train")

    def _held_out(self, shards: ShardSet) -> NDArray[np.int64]:
        """Returns the usable rows of the videos kept from training; a video is wholly in or out.

        A video's place hangs on its own name, so adding videos moves no other.
        """
        sources = shards.table["source"].to_pylist()
        limit = self.settings.holdout_share * 2**32

        def draw(row: np.int64) -> int:
            name = sources[row].encode()
            return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")

        return np.array([row for row in self._usable(shards) if draw(row) < limit], np.int64)
