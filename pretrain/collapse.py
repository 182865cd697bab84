"""Are the features alive? Their spread and effective rank; collapsed ones are all the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_NOISE = 1e-5  # of the features' norm; below it a direction is rounding


def spectrum(features: Tensor) -> Tensor:
    """Returns the singular values of centred features, as shares of their sum.

    All are zero where every sample has the same features.

    Args:
        features: (N, D).
    """
    values = features.double()
    singular = torch.linalg.svdvals(values - values.mean(0))
    singular = torch.where(singular > _NOISE * values.norm(), singular, 0.0)
    return singular / singular.sum().clamp(min=1e-12)


def effective_rank(features: Tensor) -> float:
    """Returns e to the entropy of the spectrum: in how many directions the features vary.

    At most min(N - 1, D); 0 where they do not vary. Source: Roy and Vetterli 2007; as a measure of
    collapse: RankMe, Garrido et al. 2023. Centring is ours: rectified features share a large mean.
    """
    shares = spectrum(features)
    if not shares.any():
        return 0.0
    return float(torch.special.entr(shares).sum().exp())


def spread(features: Tensor) -> float:
    """Returns the deviation of features of length 1, times sqrt(D), averaged over D.

    1 = spread over the whole sphere, 0 = collapsed. Source: SimSiam, Chen and He 2021.

    Args:
        features: (N, D), N >= 2.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(unit.std(0, correction=0).mean() * features.shape[1] ** 0.5)
