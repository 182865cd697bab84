"""Frozen features of labelled clips, and the classes for which the nearest of them vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.model.network import DynamoNet, Output
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.training.measuring import Measuring

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Source: InstDisc (Wu et al. 2018), whose k is 200


@dataclass(frozen=True)
class KnnBank:
    """Labelled clips known by their features, each scaled to mean 0 and deviation 1."""

    known: Tensor  # (N, D)
    labels: Tensor  # (N,)
    mean: Tensor  # (D,), of the features as they came
    deviation: Tensor  # (D,)

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> KnnBank:
        """Remembers features (N, D) and their labels (N,)."""
        mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        return cls((features - mean) / deviation, labels, mean, deviation)

    def standardised(self, features: Tensor) -> Tensor:
        """Returns features (M, D) as the known ones were scaled."""
        return (features - self.mean) / self.deviation

    def votes(self, features: Tensor, num_classes: int) -> Tensor:
        """Returns shares (M, N) of the nearest neighbours' votes, weighted by cosine.

        Args:
            features: (M, D), as they come from the model.
        """
        asked = F.normalize(self.standardised(features), dim=1)
        similar = asked @ F.normalize(self.known, dim=1).T
        values, places = similar.topk(min(NEIGHBOURS, len(self.known)), 1)
        votes = torch.zeros(len(features), num_classes, dtype=values.dtype)
        votes.scatter_add_(1, self.labels[places], (values / TEMPERATURE).softmax(1))
        return votes


def clip_features(
    model: DynamoNet, reader: ClipReader, rows: Sequence[int], measuring: Measuring
) -> tuple[Tensor, Tensor]:
    """Returns [pooled features, DMR] (N, D) and labels (N,) of each row's middle clip, on the CPU.

    Every rank takes its share and gets all.
    """
    config = model.config
    parts: list[tuple[list[int], Tensor, Tensor]] = []
    for batch in measuring.batches(reader, [Request(row) for row in rows]):
        frames = batch.render()[:, :, : config.num_frames]
        with torch.no_grad(), measuring.precision.autocast():
            output: Output = model(frames, predict_frames=False)
        found = torch.cat([output.pooled.float(), output.dmr.float()], 1).cpu()
        parts.append((batch.row.tolist(), found, batch.label.cpu()))
    shares = [item for part in measuring.rank.gather(parts) for item in cast("list", part)]
    order = torch.tensor([row for numbers, _, _ in shares for row in numbers]).argsort()
    features, labels = (torch.cat([share[i] for share in shares]) for i in (1, 2))
    return features[order], labels[order]
