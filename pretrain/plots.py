"""Pictures that show whether the model learns: predicted frames, and the filters themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dynamonet.model.prediction import FramePairs
from dynamonet.video.transforms import denormalise

_SHOWN = 8  # frames of a strip, spread evenly over the clip


def filmstrip(pair: FramePairs) -> Figure:
    """Draws input, predicted and true frames of a batch's first clip, and two differences.

    The differences share one scale, so a darker row is a better prediction.
    """
    steps = _spread(pair.predicted.shape[2])
    rows = {
        "last frame": pair.copied,
        "predicted": pair.predicted,
        "true": pair.true,
    }
    figure, axes = _rows(5, len(steps))
    for axis, (name, frames) in zip(axes, rows.items(), strict=False):
        middles = _draw_row(axis, name, [_image(frames[0, :, step]) for step in steps])
        if axis is axes[0]:
            _name_above(axis, middles, [f"to frame {step + 2}" for step in steps])
    errors = {
        "|copy - true|": (pair.copied - pair.true)[0].abs().mean(0),
        "|predicted - true|": (pair.predicted.float() - pair.true)[0].abs().mean(0),
    }
    top = max(float(e.max()) for e in errors.values()) or 1.0
    for axis, (name, error) in zip(axes[len(rows) :], errors.items(), strict=True):
        shown = [error[step].cpu().numpy() for step in steps]
        _draw_row(axis, name, shown, cmap="magma", vmin=0, vmax=top)
    return figure


def filters(values: Tensor, frames: Tensor) -> Figure:
    """Draws the filters of a batch's first clip: as kernels, and as where they take pixels from.

    Args:
        values: (B, L, N, K*K, gh, gw); the first level is drawn.
        frames: (B, 3, T + F, H, W), drawn under the arrows.
    """
    first = values[0, 0].float().cpu()
    steps = _spread(first.shape[0])
    side = round(first.shape[1] ** 0.5)
    mean = first.mean((2, 3)).view(-1, side, side)
    limit = float(mean.abs().max())
    figure, (kernels, pictures) = _rows(2, len(steps))
    scale = {"cmap": "coolwarm", "vmin": -limit, "vmax": limit}
    middles = _draw_row(kernels, "mean kernel", [mean[step].numpy() for step in steps], **scale)
    _name_above(kernels, middles, [f"filter {step + 1}" for step in steps])
    shown = [_image(frames[0, :, min(step, frames.shape[2] - 1)]) for step in steps]
    middles = _draw_row(pictures, "motion", shown, alpha=0.6)
    flow_x, flow_y = _centre_of_mass(first, side)
    height, width = frames.shape[-2:]
    _arrows(pictures, flow_x[steps].numpy(), flow_y[steps].numpy(), (height, width), middles)
    return figure


def learning(
    skill: Tensor, upper_bound: Tensor, num_beyond: int, spectra: dict[str, Tensor]
) -> Figure:
    """Draws the skill of each predicted frame with its upper bound, and spectra of the features.

    Args:
        skill, upper_bound: (N,), of each predicted frame.
        num_beyond: The last so many of them lie beyond the clip.
        spectra: name -> singular values as shares of their sum, see `pretrain.collapse`.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    frames = np.arange(2, len(skill) + 2)
    first_beyond = len(skill) - num_beyond
    left.axhline(0, color="grey", linewidth=1, label="copy of the last frame")
    left.plot(
        frames, upper_bound.numpy(), "--", color="C1", marker=".", label="best shared filters"
    )
    left.plot(frames, skill.numpy(), color="C0", marker=".", label="prediction")
    left.axvspan(
        frames[first_beyond] - 0.5, frames[-1] + 0.5, color="C2", alpha=0.15, label="beyond clip"
    )
    left.set(xlabel="predicted frame", ylabel="skill", title="Better than a copy?")
    left.xaxis.get_major_locator().set_params(integer=True)
    for name, shares in spectra.items():
        there = shares[shares > 0].numpy()
        right.plot(np.arange(1, len(there) + 1), there, label=name)
    right.set(
        xlabel="direction",
        ylabel="share of the variation",
        yscale="log",
        title="In how many directions do features vary?",
    )
    for axis in (left, right):
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        axis.grid(alpha=0.3)
    return figure


def _centre_of_mass(kernels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns the motion (x, y) in pixels that each filter stands for: (N, gh, gw) each.

    A filter that takes its value from the left moves the picture to the right.
    """
    weights = kernels.clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    offset = torch.arange(side) - side // 2
    dy = offset.repeat_interleave(side).float()[:, None, None]
    dx = offset.repeat(side).float()[:, None, None]
    return -(weights * dx).sum(1), -(weights * dy).sum(1)


def _arrows(
    axis: Axes,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    size: tuple[int, int],
    middles: list[float],
) -> None:
    """Draws arrows (N, gh, gw) over N pictures side by side."""
    height, width = size
    rows, columns = x.shape[1:]
    every = max(1, rows // 8)
    cy = (np.arange(rows) + 0.5) * height / rows
    cx = (np.arange(columns) + 0.5) * width / columns - width / 2
    here = np.s_[:, ::every, ::every]
    axis.quiver(
        np.broadcast_to(cx + np.asarray(middles)[:, None, None], x.shape)[here].ravel(),
        np.broadcast_to(cy[:, None], x.shape)[here].ravel(),
        x[here].ravel(),
        y[here].ravel(),
        angles="xy",
        scale_units="xy",
        scale=2 * every / 16,
        units="dots",
        width=1.5,
        color="crimson",
    )


def _rows(count: int, num_pictures: int) -> tuple[Figure, list[Axes]]:
    """Makes a figure of rows of pictures, an axis a row: an axis a picture takes far longer."""
    size = (1.3 * num_pictures + 1, 1.35 * count + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(count, 1))
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def _draw_row(
    axis: Axes, name: str, pictures: list[NDArray[np.float32]], **options: Any
) -> list[float]:
    """Draws pictures (H, W) or (H, W, 3) side by side with white gaps; returns their middles."""
    height, width = pictures[0].shape[:2]
    gap = max(1, width // 24)
    white = 1.0 if pictures[0].ndim == 3 else np.nan  # a colour map draws nothing there
    blank = np.full((height, gap, *pictures[0].shape[2:]), white, np.float32)
    parts = [part for picture in pictures for part in (picture, blank)][:-1]
    axis.imshow(np.concatenate(parts, axis=1), **options)
    axis.set_ylabel(name)
    return [place * (width + gap) + (width - 1) / 2 for place in range(len(pictures))]


def _name_above(axis: Axes, middles: list[float], names: list[str]) -> None:
    axis.xaxis.tick_top()
    axis.set_xticks(middles, names, fontsize=8)
    axis.tick_params(length=0)


def _spread(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(_SHOWN, count))})


def _image(frame: Tensor) -> NDArray[np.float32]:
    return denormalise(frame).permute(1, 2, 0).cpu().numpy()
