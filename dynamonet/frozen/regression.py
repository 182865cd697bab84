"""Weighted ridge regression from sums over clips: memory D x D, whatever their number.

The weights W minimise, over clips i of class c with weight w,

    sum_i w |y_i - b - W z_i|^2 + strength sum_i w |W|^2        z: standardised, y: one-hot

Source: ridge regression (Hoerl and Kennard 1970).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamonet.model.classifier import Head
from dynamonet.training.distributed.rank import Rank


@dataclass(frozen=True)
class Solution:
    """Weights of a head, on its standardised inputs: scores = z W + b."""

    mean: Tensor  # (D,)
    deviation: Tensor  # (D,)
    weights: Tensor  # (D, K)
    bias: Tensor  # (K,)

    def scores(self, x: Tensor) -> Tensor:
        """Returns (B, K) of inputs (B, D)."""
        return ((x.double() - self.mean) / self.deviation) @ self.weights + self.bias

    def put_into(self, head: Head, scale: float) -> None:
        """Makes a head give these scores, times a scale."""
        norm = head.norm
        with torch.no_grad():
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.deviation**2)
            own = (self.deviation**2 + norm.eps).sqrt() / self.deviation
            head.linear.weight.copy_(scale * (self.weights * own[:, None]).T)
            head.linear.bias.copy_(scale * self.bias)


@dataclass(frozen=True)
class Fold:
    """The weighted normal equations of some clips, in their own basis, for every strength."""

    mean: Tensor
    deviation: Tensor
    total: Tensor  # of the weights
    values: Tensor  # (D,), eigenvalues
    basis: Tensor  # (D, D)
    targets: Tensor  # (D, K), in that basis
    bias: Tensor  # (K,)

    @classmethod
    def of(cls, counts: Tensor, sums: Tensor, squares: Tensor, weights: Tensor) -> Fold:
        """Makes it of sums over clips.

        Args:
            counts: (K,), clips of each class.
            sums: (K, D), of their inputs.
            squares: (D, D), of x x', weighted.
            weights: (K,), of a clip of each class.
        """
        each = weights * counts
        total = each.sum()
        mean = weights @ sums / total
        spread = (squares.diagonal() / total - mean**2).clamp(min=0)
        varies = spread > 1e-10 * squares.diagonal() / total
        deviation = torch.where(varies, spread, 1.0).sqrt()
        scatter = (squares - total * mean.outer(mean)) / deviation.outer(deviation)
        scatter[~varies] = 0
        scatter[:, ~varies] = 0
        values, basis = torch.linalg.eigh(scatter)
        towards = (weights[:, None] * sums - each[:, None] * mean) / deviation * varies
        return cls(
            mean, deviation, total, values.clamp(min=0), basis, basis.T @ towards.T, each / total
        )

    def solution(self, strength: float) -> Solution:
        """Returns the weights of a strength."""
        shrunk = self.targets / (self.values + strength * self.total)[:, None]
        return Solution(self.mean, self.deviation, self.basis @ shrunk, self.bias)


class Sums:
    """Sums over the clips of each inner fold, of what one head reads."""

    def __init__(self, dim: int, weights: Tensor, folds: int) -> None:
        """Args:
        dim: Values D that the head reads.
        weights: (K,), of a clip of each class.
        folds: How many inner folds there are.
        """
        self.weights = weights.double()
        self.counts = torch.zeros(folds, len(weights), dtype=torch.float64)
        self.sums = torch.zeros(folds, len(weights), dim, dtype=torch.float64)
        self.squares = torch.zeros(folds, dim, dim, dtype=torch.float64)

    def add(self, x: Tensor, labels: Tensor, folds: Tensor) -> None:
        """Adds clips: inputs (B, D), labels (B,), and the fold of each (B,)."""
        x = x.double()
        for fold in folds.unique().tolist():
            own, which = x[folds == fold], labels[folds == fold]
            self.counts[fold] += which.bincount(minlength=len(self.weights))
            self.sums[fold].index_add_(0, which, own)
            self.squares[fold] += (own * self.weights[which][:, None]).T @ own

    def over(self, rank: Rank) -> Sums:
        """Returns the sums over all ranks; every rank must call it."""
        for name in ("counts", "sums", "squares"):
            setattr(self, name, rank.sum(getattr(self, name)).cpu())
        return self

    def without(self, fold: int | None) -> Fold:
        """Returns the equations of all folds but one; None = of all."""
        kept = [number for number in range(len(self.counts)) if number != fold]
        counts, sums, squares = (
            each[kept].sum(0) for each in (self.counts, self.sums, self.squares)
        )
        return Fold.of(counts, sums, squares, self.weights)
