"""How well a few labels are read off frozen features: k nearest neighbours, and a linear layer.

    training part of a labelled set --videos--> known (three quarters) and asked (a quarter)

The set's test part is never looked at, so that what is chosen by the probe can be tested on it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.features import KnnBank

ASKED_SHARE = 0.25
LINEAR_STEPS, LINEAR_DECAY = 100, 1e-3  # of L-BFGS; not studied


@dataclass(frozen=True)
class ProbeRows:
    """Rows of the index whose labels are known, and those that are asked for."""

    known: NDArray[np.int64]
    asked: NDArray[np.int64]


def probe_rows(shards: ShardSet, split: int, max_clips: int) -> ProbeRows:
    """Cuts the training part of a labelled set in two; a video, or group of videos, stays whole.

    Args:
        max_clips: Segments that are used at most, one clip each.

    Raises:
        UserError: the set has no labels, or one side would be empty.
    """
    if not shards.classes:
        raise UserError(
            f"probe.shards: {shards.folder.path} has no labels. Make labelled shards with\n"
            f"  {command('shard')} --source VIDEOS --dataset folder --output ANOTHER"
        )
    names, groups = shards.table["source"].to_pylist(), shards.table["group"].to_pylist()
    rows = shards.rows(split=split, part="train").numbers()
    rows = rows[shards.columns["label"][rows] >= 0].tolist()
    videos = sorted({groups[row] or names[row] for row in rows}, key=_draw)
    apart = set(videos[: math.ceil(ASKED_SHARE * len(videos))])
    rows.sort(key=lambda row: _draw(f"{names[row]} {row}"))
    num_asked = math.ceil(ASKED_SHARE * max_clips)
    asked = [row for row in rows if (groups[row] or names[row]) in apart][:num_asked]
    known = [row for row in rows if (groups[row] or names[row]) not in apart]
    known = known[: max_clips - num_asked]
    if not known or not asked:
        raise UserError(
            f"probe.shards: {shards.folder.path} has {len(rows)} labelled segments in the training "
            f"part of split {split}, too few videos to keep some apart; label more videos, or set "
            "probe.shards to null"
        )
    return ProbeRows(np.array(sorted(known), np.int64), np.array(sorted(asked), np.int64))


def _draw(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def probe_metrics(
    known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor
) -> dict[str, float]:
    """Returns both accuracies, and beside them that of always naming the commonest class.

    Args:
        known, asked: (N, D) and (M, D), features of clips.
        known_labels, asked_labels: (N,) and (M,).
    """
    bank = KnnBank.of(known, known_labels)
    guesses = {
        "knn_top1": bank.votes(asked, int(known_labels.max()) + 1).argmax(1),
        "linear_top1": linear(bank.known, known_labels, bank.standardised(asked)),
        "commonest_top1": known_labels.mode().values.expand_as(asked_labels),
    }
    metrics = {
        f"probe/{name}": float((guess == asked_labels).double().mean())
        for name, guess in guesses.items()
    }
    return metrics | {
        "probe/clips_asked": float(len(asked)),
        "probe/clips_known": float(len(known)),
    }


def linear(known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Returns the class (M,) that a logistic regression on the known features names."""
    classes = int(labels.max()) + 1
    weight = torch.zeros(known.shape[1], classes, dtype=known.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=known.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=LINEAR_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(known @ weight + bias, labels)
        loss = loss + LINEAR_DECAY * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return (asked @ weight.detach() + bias.detach()).argmax(1)
