"""What a frozen network knows: classes read off it by ridge regression, on groups held out.

    labelled clips   the training part of probe.shards: its test part is never looked at
    drawn actions    which no training has; where there are no labels

Seconds of work, done at each measurement; at the end it says what the pretraining was worth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.frozen.folds import INNER_FOLDS, drawn
from dynamonet.frozen.ridge import Fitted, Known, Looks, fit_heads, look
from dynamonet.frozen.statistics import Difference, Outcomes, accuracy_interval, difference
from dynamonet.model.classifier import Head
from dynamonet.model.config import ModelConfig, NetworkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.measuring import BrokenOff, Measuring
from dynamonet.training.start import transfer
from pretrain.drawn.actions import TAUGHT, Actions
from pretrain.drawn.scene import draw_clips
from pretrain.settings import CURVE

DRAWN_CLASSES = 16
_AT_ONCE = 32  # clips


@dataclass(frozen=True)
class Figure:
    """How many videos a frozen network, or several read together, name right."""

    fitted: Fitted
    groups: tuple[str, ...]  # of each video

    @property
    def outcomes(self) -> Outcomes:
        return Outcomes.of_one(self.fitted.right, self.groups)

    def __str__(self) -> str:
        low, high = accuracy_interval(self.outcomes)
        return f"{self.outcomes.mean:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Asked(ABC):
    """Clips whose classes are asked for."""

    known: Known
    rows: NDArray[np.int64]
    groups: dict[int, str]  # of each video's number
    seconds: float  # between frames
    like: NetworkConfig  # for the size of the clips

    @property
    def num_classes(self) -> int:
        return len(self.known.weights)

    @property
    def commonest(self) -> float:
        """The share of clips that always naming the commonest class has right."""
        return float(np.bincount(self.known.label[self.rows]).max() / len(self.rows))

    @abstractmethod
    def looks(self, model: DynamoNet, measuring: Measuring) -> Looks:
        """Yields what the heads read of this rank's share of the clips."""

    def figures(
        self,
        networks: Sequence[DynamoNet],
        measuring: Measuring,
        together: Sequence[Sequence[int]] = ((0,),),
    ) -> list[Figure]:
        """Reads frozen networks by one look; every rank must call it, and gets the same.

        Args:
            networks: Of any size; all are shown the same clips.
            together: Places of networks, for each figure those that are read together.
        """
        model = reading(networks, self.num_classes, self.seconds, self.like)
        model = model.to(measuring.rank.device)
        owner, heads = zip(*_heads(model), strict=True)
        looks = list(self.looks(model, measuring))
        found = []
        for places in together:
            own = [i for place in places for i, other in enumerate(owner) if other == place]
            fitted = fit_heads(
                [heads[i] for i in own],
                [([inputs[i] for i in own], rows) for inputs, rows in looks],
                self.known,
                self.rows,
                seed=0,
                rank=measuring.rank,
                networks=[owner.count(place) for place in places],
            )
            videos = fitted.videos.tolist()
            found.append(Figure(fitted, tuple(self.groups[video] for video in videos)))
        return found


@dataclass(frozen=True)
class LabelledClips(Asked):
    """One clip of each segment of a labelled set's training part."""

    reader: ClipReader

    @classmethod
    def of(
        cls,
        shards: ShardSet,
        rows: NDArray[np.int64],
        reader: ClipReader,
        like: NetworkConfig,
    ) -> LabelledClips:
        """Raises UserError: no class has two groups of videos, so that none can be held out."""
        known = Known.of(shards, rows, 0)
        if not known.fold[rows].any():
            raise UserError(
                f"probe.shards: {shards.folder.path} has {len(rows)} labelled segments in the "
                "training part of this split, too few videos to keep some apart; label more "
                "videos, or set probe.shards to null"
            )
        table = shards.table.select(["group", "source"]).to_pydict()
        names = [group or source for group, source in zip(*table.values(), strict=True)]
        groups = {int(known.video[row]): names[row] for row in rows.tolist()}
        seconds = reader.settings.seconds_apart(shards.frames.max_fps)
        return cls(known, rows, groups, seconds, like, reader)

    def looks(self, model: DynamoNet, measuring: Measuring) -> Looks:
        return look(model, self.reader, [Request(row) for row in self.rows.tolist()], measuring)


@dataclass(frozen=True)
class DrawnActions(Asked):
    """Clips of drawn actions that no training has, the same ones each time."""

    @classmethod
    def of(cls, clips: int, seconds: float, like: NetworkConfig) -> DrawnActions:
        rows = np.arange(max(clips, 2 * DRAWN_CLASSES))
        label = rows % DRAWN_CLASSES
        known = Known(label, rows, rows // DRAWN_CLASSES % INNER_FOLDS, np.ones(DRAWN_CLASSES))
        return cls(known, rows, {row: str(row) for row in rows.tolist()}, seconds, like)

    def looks(self, model: DynamoNet, measuring: Measuring) -> Looks:
        rank, table = measuring.rank, Actions.numbered(range(TAUGHT, TAUGHT + DRAWN_CLASSES))
        batches = np.split(self.rows, range(_AT_ONCE, len(self.rows), _AT_ONCE))
        for first in range(0, len(batches), rank.count):
            if rank.any(measuring.stops())[0]:
                raise BrokenOff
            if (place := first + rank.index) >= len(batches):
                continue
            rows = batches[place]
            with torch.random.fork_rng([]), torch.no_grad(), measuring.precision.autocast():
                torch.manual_seed(place)
                clips = draw_clips(
                    table,
                    torch.from_numpy(self.known.label[rows]),
                    num_frames=self.like.num_frames,
                    side=self.like.frame_px,
                    cell_px=self.like.filters.cell_px,
                    device=rank.device,
                )
                yield model.heads_inputs(clips.moved.frames), rows


def labelled_rows(shards: ShardSet, split: int, max_clips: int) -> NDArray[np.int64]:
    """Draws labelled segments of the training part of a split.

    Raises:
        UserError: the set has no labels.
    """
    if not shards.classes:
        raise UserError(
            f"probe.shards: {shards.folder.path} has no labels. Make labelled shards with\n"
            f"  {command('shard')} --source VIDEOS --dataset folder --output ANOTHER"
        )
    sources = shards.table["source"].to_pylist()
    rows = shards.rows(split=split, part="train").numbers()
    rows = rows[shards.columns["label"][rows] >= 0].tolist()
    names = {f"{sources[row]} {row}": row for row in rows}
    return np.array(sorted(names[name] for name in drawn(names, 0)[:max_clips]), np.int64)


def reading(
    networks: Sequence[DynamoNet], classes: int, seconds: float, like: NetworkConfig
) -> DynamoNet:
    """Returns copies of frozen networks as one, with heads for features and motion field each."""
    how = {
        "num_classes": classes,
        "pooling": "mean_std",
        "reads": "field",
        "frame_seconds": seconds,
        "dropout": 0.0,
        "num_frames": like.num_frames,
        "frame_px": like.frame_px,
    }
    own, *others = (ModelConfig.of(each.config.network, **how) for each in networks)
    model = DynamoNet(own.model_copy(update={"beside": tuple(others)})).eval()
    for copy, given in zip(model.networks, networks, strict=True):
        transfer(copy, given.state_dict(), 1.0)
    return model


def _heads(model: DynamoNet) -> Iterator[tuple[int, Head]]:
    """Yields the heads of networks, each with the place of its network."""
    for place, network in enumerate(model.networks):
        for head in network.classifier.heads if network.classifier else ():
            assert isinstance(head, Head)
            yield place, head


@dataclass(frozen=True)
class Verdict:
    """What a pretraining was worth."""

    found: dict[str, float]

    @classmethod
    def of(
        cls, asked: Asked, start: DynamoNet, own: DynamoNet, brought: DynamoNet, by: Measuring
    ) -> Verdict:
        """Reads the network that it began with, what it made, and the one that the package brings.

        With labels the question is whether a user gains by reading their own network together with
        the one that is brought; drawn actions can only say whether something was learnt.

        Args:
            brought: That of the package, of another size; all are shown the same clips.
        """
        if isinstance(asked, LabelledClips):
            ways = {
                "start": (2,),
                "own": (1,),
                "brought": (0,),
                "together": (0, 1),
                "with_start": (0, 2),  # a network that has learnt nothing may add something too
            }
            found = asked.figures([brought, own, start], by, [*ways.values()])
            figures = dict(zip(ways, found, strict=True))
            before, after = figures["brought"], figures["together"]
            gain = difference(before.outcomes, after.outcomes)
            more = after.outcomes.mean > figures["with_start"].outcomes.mean
            kept = more and 1 in after.fitted.kept
        else:
            before, after = asked.figures([start, own], by, [(0,), (1,)])
            figures = {"start": before, "own": after}
            gain = difference(before.outcomes, after.outcomes)
            kept = gain.low > 0
        numbers = {f"{name}_top1": each.outcomes.mean for name, each in figures.items()}
        numbers |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        return cls(numbers | {"kept": float(kept), "videos": float(len(after.groups))})

    @property
    def metrics(self) -> dict[str, float]:
        """For the tracking store."""
        return {f"verdict/{name}": value for name, value in self.found.items()}

    def line(self, model: str) -> str:
        """Says it in words; `model` is where the pretrained network lies."""
        found = self.found
        gain = Difference(found["gain"], found["gain_low"], found["gain_high"], 0.0)
        own, start = f"{found['own_top1']:.1%}", f"{found['start_top1']:.1%}"
        videos = f"{found['videos']:.0f}"
        if "together_top1" not in found:
            said = "something was learnt" if found["kept"] else "nothing sure was learnt"
            return (
                f"frozen, {videos} clips of drawn actions: {start} at the start, now {own}, "
                f"{gain.points()}: {said}. What it is worth on your own classes needs a few "
                "labels: --probe.shards"
            )
        line = (
            f"frozen, {videos} labelled videos: {start} at the start, now {own}; motion, which the "
            f"package brings, {found['brought_top1']:.1%}"
        )
        together = f"{found['together_top1']:.1%} read together, {gain.points()}"
        if found["kept"]:
            return f"{line}; {together}: kept. Use both: --recipe ridge --pretrained motion,{model}"
        return f"{line}; own pretraining adds nothing sure to it: not kept. Use --pretrained motion"

    def of_more_video(self, clips: int) -> str:
        """Says what ten times the video is expected to bring a network that saw so many clips."""
        if self.found["own_top1"] <= self.found["start_top1"]:
            return "nothing is expected of ten times the video: this much taught it nothing"
        seen, right = np.log([*CURVE]), [*CURVE.values()]
        gain = np.interp(np.log(10 * clips), seen, right) - np.interp(np.log(clips), seen, right)
        longer = f"about {100 * gain:+.0f} points" if gain > 0 else "what was not measured"
        return f"ten times the video: {longer} in ten times the steps, nothing in as many"
