"""The pretraining task: predict frames, and measure skill on videos kept out of training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.classifier import Classifier
from dynamonet.model.config import ModelConfig
from dynamonet.model.files import LOSS
from dynamonet.model.network import DynamoNet, Output
from dynamonet.model.prediction import error_metrics, error_sums, pair_frames, prediction_loss
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.rows import RowSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.logs.metrics import Evaluation, Sums
from dynamonet.training.measuring import Measuring
from dynamonet.training.start import Transfer, check_input, transfer
from dynamonet.training.task import Task
from dynamonet.video.sampling import stride_in_frames
from dynamonet.video.transforms import ClipBatch
from pretrain.drawn.actions import TAUGHT, Actions
from pretrain.drawn.scene import DrawnClips, draw_clips
from pretrain.frozen import Asked, DrawnActions, LabelledClips, Verdict, labelled_rows
from pretrain.movers import displacement_loss, paste_movers
from pretrain.settings import WORTH_CLIPS, PretrainSettings
from pretrain.validation import compared, measure

MIN_LOADED_SHARE = 0.5  # of the weights to go on from
WHERE = "where fine-tuning was short (docs/results.md)"


@dataclass(frozen=True)
class Pretraining(Task[PretrainSettings]):
    """Learns motion filters by predicting frames; see `dynamonet.training.task.Task`."""

    settings: PretrainSettings
    shards: tuple[str, ...]  # absolute paths or URIs
    probe_shards: str | None = None  # the same; of labelled clips
    pretrained: str | None = None  # folder of the model to go on from

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what a worker opens itself."""
        return {field.name: vars(self)[field.name] for field in fields(self)}

    def check(self) -> None:
        self.training_data()
        _ = self._asked
        with torch.device("meta"):
            DynamoNet(self.settings.model)

    def build_model(self) -> DynamoNet:
        model = DynamoNet(self.settings.model)
        if self.settings.drawn.share:
            model.classifier = self._action_head(model)
        if self.pretrained is not None:
            self.fit(model)
        return model

    def fit(self, model: DynamoNet) -> Transfer:
        """Gives a model the weights to go on from.

        Raises:
            UserError: they do not fit.
        """
        assert self.pretrained is not None
        place = Path(self.pretrained)
        given = DynamoNet.from_pretrained(place)
        check_input(place, given.config.input, model.config)
        return transfer(model, given.state_dict(), MIN_LOADED_SHARE)

    def rate_groups(self, model: DynamoNet) -> list[tuple[nn.Module, float]]:
        return [(model, 1.0)]

    def training_data(self) -> ClipReader:
        reader = self._reader(self._sets, self._usable - self._held_out)
        if not len(reader.rows):
            raise UserError(
                f"{', '.join(self.shards)}: no segment is as long as a clip of "
                f"{reader.num_frames} frames (model.num_frames = "
                f"{self.settings.model.num_frames}, and "
                f"{self.settings.model.frames_beyond} to predict). Lower model.num_frames or "
                "clips.stride_frames, or make longer segments."
            )
        return reader

    def shares(self) -> tuple[float, ...] | None:
        return self.settings.shares

    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        config, weight = self.settings.model, self.settings.displacement_weight
        moved = paste_movers(frames, config.filters, self.settings.movers.share)
        drawn = self._drawn(frames)
        if drawn is not None:
            moved = moved.beside(drawn.moved)
        frames = moved.frames
        output: Output = model(frames[:, :, : config.num_frames])
        pairs = pair_frames(frames, output.predicted, config.filters.levels, config.targets)
        loss = prediction_loss(pairs, self.settings.loss)
        sums = error_sums(pairs, config.filters) | {"prediction_loss": loss}
        if weight:
            told = displacement_loss(output.filters, moved, config.filters)
            loss, sums["displacement_loss"] = loss + weight * told, told
        if drawn is not None:
            assert output.logits is not None
            logits = output.logits[-len(drawn.action) :]
            told = F.cross_entropy(logits, drawn.action)
            loss, sums["action_loss"] = loss + self.settings.drawn.weight * told, told
            sums["action_top1"] = (logits.argmax(1) == drawn.action).float().mean()
        return loss, sums | {"loss": loss, "steps": torch.ones((), device=loss.device)}

    def _action_head(self, model: DynamoNet) -> Classifier:
        """Returns what names drawn actions; it is taught beside the network and not kept with it.

        The paper's classifier reads the filters too; here those are to say where things go.
        """
        how = {"reads": "features", "pooling": "mean_std", "dropout": 0.0}
        config = ModelConfig.of(self.settings.model, **how)
        return Classifier(config, TAUGHT, model.trunk.dim, 0)

    def _drawn(self, frames: Tensor) -> DrawnClips | None:
        """Draws clips like some that were read (B, 3, T, S, S)."""
        count, table = self.settings.drawn.clips(len(frames)), Actions.taught()
        if not count:
            return None
        return draw_clips(
            table,
            torch.randint(len(table.kind), (count,)),
            num_frames=frames.shape[2],
            side=frames.shape[3],
            cell_px=self.settings.model.filters.cell_px,
            device=frames.device,
        )

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        names = ("loss", "prediction_loss", "displacement_loss", "action_loss", "action_top1")
        losses = {name: sums[name] / sums["steps"] for name in names if name in sums}
        return losses | error_metrics(sums, self.settings.model.filters.levels)

    def evaluates_after(self, step: int, total_steps: int) -> bool:
        return step % self.settings.evaluate_every_steps == 0 or step == total_steps

    def rehearse(self, model: DynamoNet, frames: Tensor) -> None:
        compared(model, frames)

    @torch.no_grad()
    def evaluate(self, model: DynamoNet, measuring: Measuring) -> Evaluation:
        evaluation = measure(model, self._evaluation_reader, self.settings, measuring)
        if (asked := self._asked) is None:
            return evaluation
        (figure,) = asked.figures([model], measuring)
        found = {
            "probe/top1": figure.outcomes.mean,
            "probe/commonest_top1": asked.commonest,
            "probe/videos": float(len(figure.groups)),
        }
        return replace(evaluation, metrics=evaluation.metrics | found)

    def test(self, model: DynamoNet, measuring: Measuring) -> Evaluation | None:
        """Says what the pretraining was worth."""
        if (asked := self._asked) is None:
            return None
        torch.manual_seed(self.settings.weights_seed)
        start, brought = self.build_model().eval(), DynamoNet.from_pretrained("motion")
        own = Verdict.of(asked, start, model, brought, measuring)
        return Evaluation(own.metrics, {}, {})

    def best_by(self) -> str:
        return "val/skill" if self.probe_shards is None else "probe/top1"

    def verdict(self, clips: int) -> str:
        if clips < WORTH_CLIPS:
            return f"fewer than the {WORTH_CLIPS:,} from which pretraining paid {WHERE}"
        return f"pretraining paid from {WORTH_CLIPS:,} {WHERE}"

    def describe(self) -> dict[str, Any]:
        clips = self.settings.clips.model_dump(mode="json") | {"stride_seconds": self._spacing}
        frames = self._sets[0].frames.model_dump(mode="json")
        head = {"stage": "pretrain", "shards": self.shards, "frames": frames, "clips": clips}
        return head | {LOSS: self.settings.loss}

    @cached_property
    def _sets(self) -> list[ShardSet]:
        return [ShardSet.open(path) for path in self.shards]

    @cached_property
    def _spacing(self) -> float:
        """Seconds between a clip's frames; at the median rate where they are set in frames.

        It goes with the weights, so that videos of other rates are read as these were.
        """
        clips = self.settings.clips
        rates = [fps for each in self._sets for (fps,) in islice(each.index.parts("fps"), 1)]
        fps = float(np.median(np.concatenate(rates)))
        return stride_in_frames(fps, clips.stride_frames, clips.stride_seconds) / fps

    @cached_property
    def _usable(self) -> RowSet:
        """The rows that may be looked at at all: never a labelled set's test part."""
        return RowSet.joined(
            each.rows(split=self.settings.split, part="train") if each.num_splits else each.rows()
            for each in self._sets
        )

    @cached_property
    def _held_out(self) -> RowSet:
        """The rows of the videos kept from training."""
        share = self.settings.holdout_share
        return self._usable & RowSet.joined(each.drawn(share) for each in self._sets)

    def _reader(
        self, sets: list[ShardSet], rows: RowSet | NDArray[np.int64], *, loop_short: bool = False
    ) -> ClipReader:
        model = self.settings.model
        return ClipReader(
            sets,
            rows,
            self.settings.clips,
            num_frames=model.num_frames + model.frames_beyond,
            frame_px=model.frame_px,
            loop_short=loop_short,
            loader=self.settings.loader,
        )

    @cached_property
    def _evaluation_reader(self) -> ClipReader:
        """Reads the held-out videos, or the training ones where none was long enough."""
        held = self._reader(self._sets, self._held_out)
        return held if len(held.rows) else self._reader(self._sets, self._usable)

    @cached_property
    def _asked(self) -> Asked | None:
        """The clips that show what the frozen network knows."""
        settings, probe = self.settings, self.settings.probe
        if self.probe_shards is None:
            if not probe.drawn_clips:
                return None
            return DrawnActions.of(probe.drawn_clips, self._spacing, settings.model)
        shards = ShardSet.open(self.probe_shards)
        rows = labelled_rows(shards, probe.split, probe.max_clips)
        reader = self._reader([shards], rows, loop_short=True)
        return LabelledClips.of(shards, rows, reader, settings.model)
