"""The weights of a classifier's heads by ridge regression: one look at the clips, no steps.

Classes weigh the same. The strength of each head is the one with the best accuracy on inner folds,
which are made of whole groups; what all folds say of their held-out clips then gives each head its
share and the probabilities their sharpness, by maximum likelihood.

Source: see `dynamonet.frozen.regression`; temperature scaling (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dynamonet.frozen.folds import balanced, inner_folds
from dynamonet.frozen.regression import Fold, Sums
from dynamonet.model.classifier import Head
from dynamonet.model.network import DynamoNet
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.measuring import Measuring

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-7, 4))  # for each clip
UNTRIED = STRENGTHS[len(STRENGTHS) // 2]  # where there are no folds to choose it by
HEADS = ("features", "motion")
MOST_HELD = 20_000  # clips whose features are kept to choose by
SHARP = 10.0  # of scores between 0 and 1, where there are no folds to choose it by

Looks = Iterable[tuple[list[Tensor], NDArray[np.int64]]]  # inputs (B, D) of each head; rows (B,)


@dataclass(frozen=True)
class Known:
    """What is known of clips, by the number of their row."""

    label: NDArray[np.int64]  # (R,)
    video: NDArray[np.int64]  # (R,), a number, equal ones the same
    fold: NDArray[np.int64]  # (R,), of whole groups of videos
    weights: NDArray[np.float64]  # (N,), of the classes

    @classmethod
    def of(cls, shards: ShardSet, rows: NDArray[np.int64], seed: int) -> Known:
        """Returns what is known of some rows of a set; the seed decides the folds."""
        label = shards.columns["label"].astype(np.int64)
        names = shards.table["source_digest"].to_pylist()
        fold = np.zeros(len(shards), np.int64)
        fold[rows] = inner_folds(shards, rows, seed)
        video = np.unique(names, return_inverse=True)[1]
        return cls(label, video, fold, balanced(label[rows], len(shards.classes)))


@dataclass(frozen=True)
class Held:
    """Clips whose inputs are kept, to see what the folds that lack them say of them."""

    inputs: list[Tensor]  # for each head (B, D)
    rows: NDArray[np.int64]
    labels: Tensor
    folds: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Held], rank: Rank) -> Held:
        """Joins those of all ranks; every rank must call it."""
        shares = [part for share in rank.gather(list(parts)) for part in cast("list[Held]", share)]
        return cls(
            [torch.cat(each) for each in zip(*(share.inputs for share in shares), strict=True)],
            np.concatenate([share.rows for share in shares]),
            torch.cat([share.labels for share in shares]),
            torch.cat([share.folds for share in shares]),
        )


@dataclass(frozen=True)
class Fitted:
    """What a fit found."""

    strengths: list[float]  # of each head
    shares: list[float]  # what each head's scores are multiplied by
    top1: float | None  # on the clips held out by inner folds, video by video; None: no folds
    kept: list[int]  # of several networks, those that are read; the first always is
    alone: float | None = None  # the same of the first network, where there are several
    right: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))  # of each video
    videos: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # which

    @property
    def metrics(self) -> dict[str, float]:
        """For the tracking store."""
        found = {} if self.top1 is None else {"inner/top1": self.top1}
        if self.alone is not None:
            found |= {"inner/top1_alone": self.alone, "ridge/networks": float(len(self.kept))}
        for name, strength, share in zip(HEADS, self.strengths, self.shares, strict=False):
            found |= {f"ridge/{name}_strength": strength, f"ridge/{name}_share": share}
        return found

    def together(self, names: Sequence[str]) -> str:
        """Says which of several networks are read, and what that is worth."""
        if self.top1 is None or self.alone is None:
            return f"{', '.join(names)}: read together; no inner folds say whether that is better"
        lines = [f"{names[0]} alone {self.alone:.1%}"]
        lines += [f"{n} {'' if i in self.kept else 'not '}kept" for i, n in enumerate(names) if i]
        return f"{'; '.join(lines)}: {self.top1:.1%} on held-out groups"

    def __str__(self) -> str:
        if self.top1 is None:
            return f"strength {UNTRIED:.2g}, no class has two groups of videos to choose it by"
        strengths = ", ".join(
            f"{name} {s:.2g}" for name, s in zip(HEADS, self.strengths, strict=False)
        )
        return f"strength of {strengths}, by inner folds of groups, top-1 {self.top1:.1%} there"


@torch.no_grad()
def look(
    model: DynamoNet, reader: ClipReader, requests: Sequence[Request], measuring: Measuring
) -> Looks:
    """Yields what the heads read of this rank's share of some clips, batch by batch."""
    for batch in measuring.batches(reader, requests):
        frames = batch.render()[:, :, : model.config.num_frames]
        with measuring.precision.autocast():
            inputs = model.heads_inputs(frames)
        yield inputs, batch.row.cpu().numpy()


@torch.no_grad()
def fit_heads(
    heads: Sequence[Head],
    looks: Looks,
    known: Known,
    rows: NDArray[np.int64],
    *,
    views: int = 1,
    seed: int,
    rank: Rank,
    networks: Sequence[int] = (),
) -> Fitted:
    """Gives a classifier's heads their weights by one look at the clips of a training part.

    Every rank looks at its share and ends with the same weights.

    Args:
        looks: What the heads read of this rank's clips.
        known: Of all clips.
        rows: Those to learn from.
        views: How many clips there are of each row.
        seed: Decides what is held to choose by where there are many clips.
        networks: How many of the heads each network has, where there are several.
    """
    folds = int(known.fold[rows].max()) + 1
    weights = torch.from_numpy(known.weights)
    sums = [Sums(head.norm.num_features, weights, folds) for head in heads]
    drawn = np.random.default_rng(seed).permutation(rows)[: max(1, MOST_HELD // views)]
    keeps = np.isin(np.arange(len(known.label)), drawn)
    parts: list[Held] = []
    for read, number in looks:
        label, fold = (torch.from_numpy(of[number]) for of in (known.label, known.fold))
        inputs, kept = [x.cpu() for x in read], torch.from_numpy(keeps[number])
        for own, x in zip(sums, inputs, strict=True):
            own.add(x, label, fold)
        some = [x[kept] for x in inputs]
        parts.append(Held(some, number[keeps[number]], label[kept], fold[kept]))
    held = Held.joined(parts, rank)
    return fit(heads, [own.over(rank) for own in sums], held, known.video[held.rows], networks)


def fit(
    heads: Sequence[Head],
    sums: Sequence[Sums],
    held: Held,
    videos: NDArray[np.int64],
    networks: Sequence[int] = (),
) -> Fitted:
    """Gives heads their weights; those of a network that is not kept are left as they are.

    Args:
        sums: Of each head.
        held: Clips to choose strengths and shares by.
        videos: (B,), a number for the video of each of those.
        networks: How many of the heads each network has, where there are several.
    """
    networks = networks or [len(heads)]
    known = sums[0].counts.sum(0)
    folds = len(sums[0].counts)
    elsewhere = (known - sums[0].counts[held.folds])[torch.arange(len(held.labels)), held.labels]
    fair = elsewhere > 0  # the other folds know its class
    if folds < 2 or not fair.any():
        for head, own in zip(heads, sums, strict=True):
            own.without(None).solution(UNTRIED).put_into(head, SHARP)
        shares = [SHARP / len(heads)] * len(heads)
        return Fitted([UNTRIED] * len(heads), shares, None, [*range(len(networks))])
    labels, numbers = held.labels[fair], videos[fair.numpy()]
    chosen, said = [], []
    for own, x in zip(sums, held.inputs, strict=True):
        equations = [own.without(fold) for fold in range(folds)]
        say = partial(_held_out, equations, x=x[fair], folds=held.folds[fair])
        right = np.array([accuracy(say(strength), labels, numbers) for strength in STRENGTHS])
        smooth = np.convolve(np.pad(right, 1, mode="edge"), (0.25, 0.5, 0.25), "valid")
        chosen.append(STRENGTHS[int(smooth.argmax())])
        said.append(say(chosen[-1]))  # once more: those of all strengths are large
    scores = torch.stack(said)
    owner = np.repeat(np.arange(len(networks)), networks)
    kept = worth_reading(scores, labels, owner, numbers)

    def read(some: list[int]) -> tuple[list[int], Tensor, NDArray[np.bool_]]:
        """Returns the heads of some networks, their shares, and which videos they name right."""
        places = np.flatnonzero(np.isin(owner, some)).tolist()
        shares = likeliest_shares(scores[places], labels)
        return places, shares, right_videos(mixed(scores[places], shares), labels, numbers)

    places, shares, right = read(kept)
    for place, share in zip(places, shares.tolist(), strict=True):
        solution = sums[place].without(None).solution(chosen[place])
        solution.put_into(heads[place], len(places) * share)
    return Fitted(
        [chosen[place] for place in places],
        shares.tolist(),
        float(right.mean()),
        kept,
        float(read([0])[2].mean()) if len(networks) > 1 else None,
        right,
        np.unique(numbers),
    )


def worth_reading(
    scores: Tensor, labels: Tensor, owner: NDArray[np.int64], videos: NDArray[np.int64]
) -> list[int]:
    """Returns the networks that tell more of held-out videos together, the first always among them.

    Each is added that raises their accuracy, and their log-likelihood by more than the number of
    its heads, the one that gains most first. Source: Akaike's criterion; that accuracy must rise
    is ours.

    Args:
        scores: (H, B, K), of each head.
        owner: (H,), its network.
        videos: (B,), a number for the video of each clip.
    """

    def read(networks: list[int]) -> tuple[float, float]:
        some = scores[torch.from_numpy(np.isin(owner, networks))]
        said = mixed(some, likeliest_shares(some, labels))
        likelihood = -float(F.cross_entropy(said, labels)) * len(np.unique(videos))
        return likelihood, accuracy(said, labels, videos)

    kept, left = [0], sorted({*owner.tolist()} - {0})
    now = read(kept) if left else (0.0, 0.0)
    while left:
        found = {each: read([*kept, each]) for each in left}
        best = max(left, key=lambda each: found[each])
        if found[best][0] - now[0] <= int((owner == best).sum()) or found[best][1] <= now[1]:
            break
        now = found[best]
        kept.append(best)
        left.remove(best)
    return sorted(kept)


def mixed(scores: Tensor, shares: Tensor) -> Tensor:
    """Adds the scores of heads (H, B, K), each times its share (H,)."""
    return torch.einsum("h,hbk->bk", shares, scores)


def _held_out(equations: Sequence[Fold], strength: float, x: Tensor, folds: Tensor) -> Tensor:
    """Returns what is said of each clip by the folds that lack it, (B, K)."""
    solutions = [each.solution(strength) for each in equations]
    said = torch.zeros(len(x), len(solutions[0].bias), dtype=torch.float64)
    for fold, solution in enumerate(solutions):
        said[folds == fold] = solution.scores(x[folds == fold])
    return said


def accuracy(scores: Tensor, labels: Tensor, videos: NDArray[np.int64]) -> float:
    """Returns the share of videos whose mean scores are highest for their class."""
    return float(right_videos(scores, labels, videos).mean())


def right_videos(scores: Tensor, labels: Tensor, videos: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tells of each video, in the order of their numbers, whether its mean scores are right."""
    _, number = np.unique(videos, return_inverse=True)
    place = torch.from_numpy(number)
    total = torch.zeros(int(number.max()) + 1, scores.shape[1], dtype=scores.dtype)
    total.index_add_(0, place, scores)
    true = torch.zeros(len(total), dtype=labels.dtype)
    true[place] = labels
    return (total.argmax(1) == true).numpy()


def likeliest_shares(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the factors (H,) of scores (H, B, K) under which the labels are likeliest.

    None is below zero.
    """
    start = 1 / (scores - scores.mean((1, 2), keepdim=True)).abs().mean((1, 2)).clamp(min=1e-9)
    roots = start.sqrt().requires_grad_(True)
    optimizer = torch.optim.LBFGS([roots], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.einsum("h,hbk->bk", roots**2, scores), labels)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return roots.detach() ** 2
