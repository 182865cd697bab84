"""Batches of YUV clips -> normalised RGB clips, as tensor operations on the training device.

A worker cuts each clip to a square canvas and draws its crop, flip and colour factors; everything
after that happens here for the whole batch at once, identical for all frames of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dynamonet.video.decode import Planes

MEAN, STD = 0.45, 0.225  # of RGB in [0, 1]. Source: the Kinetics convention of PySlowFast


@dataclass(frozen=True)
class Views:
    """How each clip of a batch is seen: crop as shares of the canvas, flip, colour factors."""

    crop: Tensor  # (B, 3) top, left, side in [0, 1]
    flip: Tensor  # (B,) bool, mirrored left to right
    colour: Tensor | None  # (B, 3) factors of brightness, contrast, saturation; None = unchanged


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one step as they come from the loader. T counts the frames beyond the clip too."""

    luma: Tensor  # (B, T, S, S) uint8
    chroma: Tensor  # (B, T, 2, S/2, S/2) uint8
    views: Views
    label: Tensor  # (B,) int64, -1 where unknown
    row: Tensor  # (B,) int64, row of the index
    failures: tuple[str, ...] = ()  # samples that could not be read and were replaced

    def __post_init__(self) -> None:
        batch, frames, side, width = self.luma.shape
        expected = (batch, frames, 2, side // 2, width // 2)
        if self.chroma.shape != expected or len(self.label) != batch:
            raise ValueError(f"shapes do not belong together: {self}")

    def __repr__(self) -> str:
        shapes = {"luma": self.luma, "chroma": self.chroma, "label": self.label}
        text = ", ".join(f"{name}={tuple(value.shape)}" for name, value in shapes.items())
        return f"ClipBatch({text})"

    def __len__(self) -> int:
        return len(self.luma)

    def parts(self, size: int) -> list[ClipBatch]:
        """Cuts the batch into parts of `size` clips, the last one smaller where it must be."""
        if size >= len(self):
            return [self]
        v, cuts = self.views, [slice(i, i + size) for i in range(0, len(self), size)]
        return [
            ClipBatch(
                self.luma[cut],
                self.chroma[cut],
                Views(v.crop[cut], v.flip[cut], None if v.colour is None else v.colour[cut]),
                self.label[cut],
                self.row[cut],
            )
            for cut in cuts
        ]

    def pin_memory(self) -> ClipBatch:
        """Moves the planes to page-locked memory; the loader calls it when a GPU will read them."""
        return replace(self, luma=self.luma.pin_memory(), chroma=self.chroma.pin_memory())

    def to(self, device: torch.device) -> ClipBatch:
        """Copies the batch to a device without waiting for the copy."""
        v = self.views
        move = {"device": device, "non_blocking": True}
        colour = None if v.colour is None else v.colour.to(**move)
        views = Views(v.crop.to(**move), v.flip.to(**move), colour)
        return replace(
            self,
            luma=self.luma.to(**move),
            chroma=self.chroma.to(**move),
            views=views,
            label=self.label.to(**move),
        )

    def render(self, size: int) -> Tensor:
        """Crops, mirrors, resizes, converts and normalises the batch.

        Args:
            size: Height and width of the result in pixels.

        Returns:
            (B, 3, T, size, size) float32, RGB, mean 0.45 and deviation 0.225 taken out, in
            channels-last memory.
        """
        grid = _grid(self.views, size)
        sample = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
        # scaled and centred before they are enlarged: fewer values, and the same sum
        luma = self.luma.float().sub_(16).mul_(1 / 219)
        chroma = self.chroma.flatten(1, 2).float().sub_(128).mul_(1 / 224)
        luma = F.grid_sample(luma, grid, **sample)
        chroma = F.grid_sample(chroma, grid, **sample)
        rgb = yuv_to_rgb(luma, *chroma.unflatten(1, (-1, 2)).unbind(2))
        if self.views.colour is not None:
            rgb = _adjust_colours(rgb, self.views.colour)
        normalised = rgb.sub_(MEAN).div_(STD)
        return normalised.contiguous(memory_format=torch.channels_last_3d)


def resize_planes(planes: Planes, side: int) -> Planes:
    """Scales square planes to a canvas of `side` pixels; those of that size stay untouched."""
    if planes.luma.shape[1:] == (side, side):
        return planes

    def scaled(plane: NDArray[np.uint8], to: int) -> NDArray[np.uint8]:
        tensor = torch.from_numpy(plane).float()
        shape = (-1, 1, *tensor.shape[-2:])
        out = F.interpolate(tensor.reshape(shape), size=(to, to), mode="bilinear", antialias=True)
        return out.round().clamp(0, 255).byte().view(*plane.shape[:-2], to, to).numpy()

    return Planes(scaled(planes.luma, side), scaled(planes.chroma, side // 2))


@dataclass(frozen=True)
class View:
    """How one clip is seen; the row of `Views` that a sample brings."""

    crop: tuple[float, float, float]  # top, left, side as shares of the canvas
    flip: bool = False
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def centred(cls, side: float) -> View:
        """Returns the view used for evaluation: the middle, unmirrored, true colours."""
        return cls(((1 - side) / 2, (1 - side) / 2, side))

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, *, scale: tuple[float, float], flip: bool, colour: float
    ) -> View:
        """Draws a view for training.

        Args:
            scale: Least and greatest side of the crop as a share of the canvas.
            flip: Mirror every second clip left to right.
            colour: Factors are uniform in [1 - colour, 1 + colour].
        """
        side = rng.uniform(*scale)
        top, left = rng.uniform(0, 1 - side, 2)
        mirrored = bool(rng.random() < 0.5)
        bright, contrast, saturation = rng.uniform(1 - colour, 1 + colour, 3)
        return cls((top, left, side), mirrored and flip, (bright, contrast, saturation))


def stack_views(views: list[View]) -> Views:
    colour = torch.tensor([view.colour for view in views], dtype=torch.float32)
    return Views(
        crop=torch.tensor([view.crop for view in views], dtype=torch.float32),
        flip=torch.tensor([view.flip for view in views]),
        colour=None if bool((colour == 1).all()) else colour,
    )


def yuv_to_rgb(luma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Converts BT.601 planes (B, T, H, W) to RGB (B, 3, T, H, W) in [0, 1], channels last.

    Args:
        luma: 0 = black, 1 = white.
        u, v: -0.5 to 0.5.

    Source: ITU-R BT.601.
    """
    rgb = torch.empty(*luma.shape, 3, dtype=luma.dtype, device=luma.device)
    torch.add(luma, v, alpha=1.402, out=rgb[..., 0])
    green = torch.add(luma, u, alpha=-0.344136).add_(v, alpha=-0.714136)
    rgb[..., 1] = green
    torch.add(luma, u, alpha=1.772, out=rgb[..., 2])
    return rgb.clamp_(0, 1).permute(0, 4, 1, 2, 3)


def normalise(clip: Tensor) -> Tensor:
    """Turns RGB in [0, 1] into what the model reads."""
    return (clip - MEAN) / STD


def denormalise(clip: Tensor) -> Tensor:
    """Turns normalised RGB back into [0, 1], for looking at."""
    return (clip.float() * STD + MEAN).clamp(0, 1)


def _grid(views: Views, size: int) -> Tensor:
    """Returns sampling positions (B, size, size, 2) in the [-1, 1] coordinates of the canvas."""
    top, left, side = views.crop.float().unbind(1)
    mirror = 1 - 2 * views.flip.float()
    zero = torch.zeros_like(side)
    rows = torch.stack(
        [
            torch.stack([side * mirror, zero, 2 * left + side - 1], 1),
            torch.stack([zero, side, 2 * top + side - 1], 1),
        ],
        1,
    )
    return F.affine_grid(rows, [len(side), 1, size, size], align_corners=False)


def _adjust_colours(rgb: Tensor, factors: Tensor) -> Tensor:
    brightness, contrast, saturation = factors[:, :, None, None, None, None].unbind(1)
    rgb = rgb * brightness
    weights = torch.tensor([0.299, 0.587, 0.114], device=rgb.device)[None, :, None, None, None]
    grey = (rgb * weights).sum(1, keepdim=True)
    mean = grey.mean((2, 3, 4), keepdim=True)
    rgb = grey + (rgb - grey) * saturation
    return (mean + (rgb - mean) * contrast).clamp(0, 1)
