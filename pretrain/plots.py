"""Pictures that show whether the model learns: predicted frames, and the filters themselves."""

from __future__ import annotations

import numpy as np
import torch
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
    figure = Figure(figsize=(1.3 * len(steps) + 1, 6.8), layout="constrained")
    axes = figure.subplots(5, len(steps), squeeze=False)
    for line, (name, frames) in enumerate(rows.items()):
        for place, step in enumerate(steps):
            axes[line, place].imshow(_image(frames[0, :, step]))
        axes[line, 0].set_ylabel(name)
    errors = {
        "|copy - true|": (pair.copied - pair.true)[0].abs().mean(0),
        "|predicted - true|": (pair.predicted.float() - pair.true)[0].abs().mean(0),
    }
    top = max(float(e.max()) for e in errors.values()) or 1.0
    for line, (name, error) in enumerate(errors.items(), 3):
        for place, step in enumerate(steps):
            axes[line, place].imshow(error[step].cpu().numpy(), cmap="magma", vmin=0, vmax=top)
        axes[line, 0].set_ylabel(name)
    for place, step in enumerate(steps):
        axes[0, place].set_title(f"to frame {step + 2}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
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
    figure = Figure(figsize=(1.3 * len(steps) + 1, 3.4), layout="constrained")
    axes = figure.subplots(2, len(steps), squeeze=False)
    flow_x, flow_y = _centre_of_mass(first, side)
    for place, step in enumerate(steps):
        kernel = axes[0, place]
        kernel.imshow(mean[step].numpy(), cmap="coolwarm", vmin=-limit, vmax=limit)
        kernel.set_title(f"filter {step + 1}", fontsize=8)
        picture = axes[1, place]
        picture.imshow(_image(frames[0, :, min(step, frames.shape[2] - 1)]), alpha=0.6)
        _arrows(picture, flow_x[step].numpy(), flow_y[step].numpy(), frames.shape[-2:])
    axes[0, 0].set_ylabel("mean kernel")
    axes[1, 0].set_ylabel("motion")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def learning(
    skill: Tensor, upper_bound: Tensor, num_beyond: int, spectra: dict[str, Tensor]
) -> Figure:
    """Draws the skill of each predicted frame with its upper bound, and spectra of the features.

    Args:
        skill, upper_bound: (N,), of each predicted frame.
        num_beyond: The last so many of them lie beyond the clip.
        spectra: name -> singular values as shares of their sum, see `pretrain.features`.
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


def _arrows(axis: object, x: NDArray[np.float32], y: NDArray[np.float32], size: object) -> None:
    height, width = size  # type: ignore[misc]
    rows, columns = x.shape
    every = max(1, rows // 8)
    cy = (np.arange(rows) + 0.5) * height / rows
    cx = (np.arange(columns) + 0.5) * width / columns
    here = np.s_[::every, ::every]
    grid_x, grid_y = np.meshgrid(cx, cy)
    axis.quiver(  # type: ignore[attr-defined]
        grid_x[here],
        grid_y[here],
        x[here],
        y[here],
        angles="xy",
        scale_units="xy",
        scale=2 * every / 16,
        width=0.012,
        color="crimson",
    )


def _spread(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(_SHOWN, count))})


def _image(frame: Tensor) -> NDArray[np.float32]:
    return denormalise(frame).permute(1, 2, 0).cpu().numpy()
