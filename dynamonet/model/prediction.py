"""Predicted frames, the loss on them, and skill: is it better than copying the last frame?

targets        inputs the filters act on     frames compared      reading
within_clip    frames 1 .. T                 2 .. T+1             the paper's: T-1 of the T
                                                                  targets are in the clip
future         frame T, then each result     T+1 .. T+H           forecasting only (ours)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.model.config import FilterConfig, LossName
from dynamonet.model.filtering import apply_filters

Targets = Literal["within_clip", "future"]
_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
PATCH_BYTES = 1 << 26  # of patches held at a time while best filters are solved for


def pool_frames(frames: Tensor, level: int) -> Tensor:
    """Averages frames (B, C, T, H, W) over `level` x `level` pixels; a rest at the edge is cut."""
    if level == 1:
        return frames
    rows, columns = (size // level for size in frames.shape[-2:])
    pixels = frames[..., : rows * level, : columns * level].permute(0, 2, 3, 4, 1)
    # sums of slices: measured five times faster than avg_pool3d
    wide = reduce(torch.add, pixels.unflatten(2, (rows, level)).unbind(3))
    small = reduce(torch.add, wide.unflatten(3, (columns, level)).unbind(4)) / level**2
    return small.permute(0, 4, 1, 2, 3).contiguous()


def predict_levels(
    clip: Tensor,
    filters: Tensor,
    levels: tuple[int, ...],
    targets: Targets,
    cell_px: int | None = None,
) -> list[Tensor]:
    """Applies filters to a clip's frames at each level.

    Args:
        clip: (B, 3, T, H, W), the frames the network saw.
        filters: (B, L, N, K*K, gh, gw); N = T within the clip, N = H for future frames.
        cell_px: Pixels of the clip between filters; None = spread evenly over it.

    Returns:
        One (B, 3, N, H // level, W // level) a level.
    """
    predicted = []
    for index, level in enumerate(levels):
        frames = pool_frames(clip, level)
        spacing = None if cell_px is None else cell_px / level
        if targets == "within_clip":
            predicted.append(apply_filters(frames, filters[:, index], spacing))
            continue
        frame, steps = frames[:, :, -1:], []
        for step in range(filters.shape[2]):
            frame = apply_filters(frame, filters[:, index, step : step + 1], spacing)
            steps.append(frame)
        predicted.append(torch.cat(steps, 2))
    return predicted


@dataclass(frozen=True)
class FramePairs:
    """What was predicted at one level beside what was true and what copying would have given."""

    predicted: Tensor  # (B, 3, N, h, w)
    true: Tensor  # (B, 3, N, h, w)
    copied: Tensor  # (B, 3, N, h, w): the last frame known when each prediction is made


def pair_frames(
    frames: Tensor, predicted: list[Tensor], levels: tuple[int, ...], targets: Targets
) -> list[FramePairs]:
    """Lines up predictions with the frames that came, one comparison a level.

    Args:
        frames: (B, 3, T + F, H, W): the clip and the F frames after it (1 within the clip, else H).
    """
    result = []
    for level, guess in zip(levels, predicted, strict=True):
        pooled = pool_frames(frames, level)
        num = guess.shape[2]
        true = pooled[:, :, -num:]
        if targets == "within_clip":
            copied = pooled[:, :, -num - 1 : -1]
        else:
            copied = pooled[:, :, -num - 1 : -num].expand_as(true)
        result.append(FramePairs(guess, true, copied))
    return result


def prediction_loss(comparisons: list[FramePairs], name: LossName) -> Tensor:
    """Returns the mean loss over levels, on normalised RGB, every pixel counted."""
    losses = [_LOSSES[name](c.predicted.float(), c.true.float()) for c in comparisons]
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class SquaredErrors:
    """Sums from which skill is computed; add them up over batches and ranks before dividing.

    Each has an item for each predicted frame (N,), or is the sum over them.
    """

    predicted: Tensor
    copied: Tensor
    best: Tensor | None = None  # of the best least-squares filter for each frame pair

    @property
    def total(self) -> SquaredErrors:
        """The sums over all frames."""
        best = None if self.best is None else self.best.sum()
        return SquaredErrors(self.predicted.sum(), self.copied.sum(), best)

    @property
    def skill(self) -> Tensor:
        """1 - error / error of copying the last frame: 0 = a copy, 1 = perfect."""
        return 1 - self.predicted / self.copied.clamp(min=1e-12)

    @property
    def upper_bound(self) -> Tensor | None:
        """Skill of the best K x K filter shared over the image, found in closed form."""
        return None if self.best is None else 1 - self.best / self.copied.clamp(min=1e-12)


@torch.no_grad()
def squared_errors(
    comparison: FramePairs, side: int, *, upper_bound: bool = False
) -> SquaredErrors:
    """Sums squared errors over a batch and the valid pixels: those whose K x K window lies inside.

    Args:
        side: K.
        upper_bound: Also solve for the best filter of each frame pair.
    """
    true = _valid(comparison.true.float(), side)
    predicted = (_valid(comparison.predicted.float(), side) - true).square().sum((0, 1, 3, 4))
    copied = (_valid(comparison.copied.float(), side) - true).square().sum((0, 1, 3, 4))
    best = _least_squares_error(comparison.copied, comparison.true, side) if upper_bound else None
    return SquaredErrors(predicted, copied, best)


def error_sums(comparisons: list[FramePairs], config: FilterConfig) -> dict[str, Tensor]:
    """Returns the sums of a batch from which `error_metrics` computes skill."""
    sums = {}
    for level, comparison in zip(config.levels, comparisons, strict=True):
        errors = squared_errors(comparison, config.size).total
        sums |= {f"predicted {level}": errors.predicted, f"copied {level}": errors.copied}
    return sums


def error_metrics(sums: dict[str, float], levels: tuple[int, ...]) -> dict[str, float]:
    """Returns skill at each level, from sums over steps and ranks."""
    return {
        f"skill{level_suffix(level, levels)}": 1
        - sums[f"predicted {level}"] / max(sums[f"copied {level}"], 1e-12)
        for level in levels
    }


def level_suffix(level: int, levels: tuple[int, ...]) -> str:
    """Returns what is added to the name of a metric of a level: nothing at the first."""
    return "" if level == levels[0] else f"_level{level}"


def best_filters(inputs: Tensor, targets: Tensor, side: int) -> Tensor:
    """Solves for the K x K filter of each frame pair that minimises the squared error.

    Args:
        inputs, targets: (B, C, N, H, W).

    Returns:
        (B, N, K*K, 1, 1), to be used with `apply_filters`.
    """
    return _solved(*_normal_equations(inputs, targets, side)[:2]).to(inputs.dtype)[..., None]


def _least_squares_error(inputs: Tensor, targets: Tensor, side: int) -> Tensor:
    """Returns the error (N,) that the best filters leave."""
    products, against, squares = _normal_equations(inputs, targets, side)
    best = _solved(products, against)
    left = squares - ((2 * against - products @ best) * best).sum((2, 3))
    return left.clamp(min=0).sum(0).float()


def _solved(products: Tensor, against: Tensor) -> Tensor:
    """Returns the filters (B, N, K*K, 1) with the least squared error.

    From normal equations: a still or flat patch has fewer than K*K independent columns, which
    `lstsq` answers with NaN on GPUs.
    """
    return torch.linalg.pinv(products, hermitian=True, rtol=1e-12) @ against


def _normal_equations(inputs: Tensor, targets: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what least squares need to know of each frame pair, in float64.

    Patches are made of a few pairs at a time: of a whole batch they would take gigabytes.

    Returns:
        Patches by patches (B, N, K*K, K*K), patches by targets (B, N, K*K, 1) and targets by
        targets (B, N).
    """
    shape = inputs.transpose(1, 2).shape[:2]
    given = inputs.transpose(1, 2).flatten(0, 1)
    wanted = _valid(targets, side).transpose(1, 2).flatten(0, 1)
    at_once = max(1, PATCH_BYTES // (8 * side * side * given[0].numel()))
    sums = []
    for pictures, truth in zip(given.split(at_once), wanted.split(at_once), strict=True):
        windows = pictures.double().unfold(2, side, 1).unfold(3, side, 1)
        patches, values = windows.flatten(4).flatten(1, 3), truth.double().flatten(1)[..., None]
        sums.append((patches.mT @ patches, patches.mT @ values, values.square().sum((1, 2))))
    products, against, squares = (
        torch.cat(parts).unflatten(0, shape) for parts in zip(*sums, strict=True)
    )
    return products, against, squares


def _valid(frames: Tensor, side: int) -> Tensor:
    p = side // 2
    return frames[..., p : frames.shape[-2] - p, p : frames.shape[-1] - p]
