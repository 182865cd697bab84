"""Decoded frames -> clips as they are seen -> batches -> normalised RGB on the training device.

A loader process draws each clip's crop, flip and colour factors, cuts and scales its frames; what
is left happens here for the whole batch at once, identical for all frames of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dynamonet.video.decode import Box

MEAN, STD = 0.45, 0.225  # of RGB in [0, 1]. Source: the Kinetics convention of PySlowFast


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one step as they come from the loader. T counts the frames beyond the clip too."""

    pixels: Tensor  # (B, T, S, S, 3) uint8, RGB
    colour: Tensor | None  # (B, 3) factors of brightness, contrast, saturation; None = unchanged
    label: Tensor  # (B,) int64, -1 where unknown
    row: Tensor  # (B,) int64, row of the index
    failures: tuple[str, ...] = ()  # samples that could not be read and were replaced

    def __post_init__(self) -> None:
        batch, _, side, width, channels = self.pixels.shape
        if side != width or channels != 3 or len(self.label) != batch:
            raise ValueError(f"shapes do not belong together: {self}")

    def __repr__(self) -> str:
        return f"ClipBatch(pixels={tuple(self.pixels.shape)}, label={tuple(self.label.shape)})"

    def __len__(self) -> int:
        return len(self.pixels)

    def parts(self, size: int) -> list[ClipBatch]:
        """Cuts the batch into parts of `size` clips, the last one smaller where it must be."""
        if size >= len(self):
            return [self]
        return [
            ClipBatch(
                self.pixels[cut],
                None if self.colour is None else self.colour[cut],
                self.label[cut],
                self.row[cut],
            )
            for cut in (slice(i, i + size) for i in range(0, len(self), size))
        ]

    def pin_memory(self) -> ClipBatch:
        """Moves what goes to a GPU to page-locked memory; the loader calls it beside one."""
        colour = None if self.colour is None else self.colour.pin_memory()
        label, pixels = self.label.pin_memory(), self.pixels.pin_memory()
        return replace(self, pixels=pixels, colour=colour, label=label)

    def to(self, device: torch.device) -> ClipBatch:
        """Copies the batch to a device without waiting for the copy."""
        colour = None if self.colour is None else self.colour.to(device, non_blocking=True)
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            colour=colour,
            label=self.label.to(device, non_blocking=True),
        )

    def render(self) -> Tensor:
        """Changes colours as drawn, and normalises.

        Returns:
            (B, 3, T, S, S) float32, RGB, mean 0.45 and deviation 0.225 taken out, in
            channels-last memory.
        """
        frames = self.pixels.permute(0, 4, 1, 2, 3).float()
        if self.colour is None:
            return frames.mul_(1 / (255 * STD)).sub_(MEAN / STD)
        return _adjust_colours(frames.mul_(1 / 255), self.colour).sub_(MEAN).div_(STD)


@dataclass(frozen=True)
class View:
    """How one clip is seen: crop as shares of its square, flip, colour factors."""

    crop: tuple[float, float, float]  # top, left, side
    flip: bool = False  # mirrored left to right
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)  # brightness, contrast, saturation

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
            scale: Least and greatest side of the crop as a share of the square.
            flip: Mirror every second clip left to right.
            colour: Factors are uniform in [1 - colour, 1 + colour].
        """
        side = rng.uniform(*scale)
        top, left = rng.uniform(0, 1 - side, 2)
        mirrored = bool(rng.random() < 0.5)
        bright, contrast, saturation = rng.uniform(1 - colour, 1 + colour, 3)
        return cls((top, left, side), mirrored and flip, (bright, contrast, saturation))

    def box(self, square: Box) -> Box:
        """Returns the part of a square that is seen, in whole pixels."""
        top, left, side = (share * square.height for share in self.crop)
        side = min(square.height, max(2, round(side)))
        top, left = (min(round(place), square.height - side) for place in (top, left))
        return Box(square.top + top, square.left + left, side, side)

    def scaled(self, pixels: NDArray[np.uint8], side: int) -> Tensor:
        """Returns square frames (T, h, h, 3) at `side` pixels, mirrored if drawn so."""
        frames = torch.from_numpy(pixels)
        if frames.shape[1] != side:
            planes, to = frames.permute(0, 3, 1, 2), (side, side)
            scaled = F.interpolate(planes, size=to, mode="bilinear", antialias=True)
            frames = scaled.permute(0, 2, 3, 1)
        return frames.flip(2) if self.flip else frames.contiguous()


def stack_colours(views: list[View]) -> Tensor | None:
    """Returns the colour factors (B, 3) of some views; None where all are 1."""
    colour = torch.tensor([view.colour for view in views], dtype=torch.float32)
    return None if bool((colour == 1).all()) else colour


def normalise(clip: Tensor) -> Tensor:
    """Turns RGB in [0, 1] into what the model reads."""
    return (clip - MEAN) / STD


def denormalise(clip: Tensor) -> Tensor:
    """Turns normalised RGB back into [0, 1], for looking at."""
    return (clip.float() * STD + MEAN).clamp(0, 1)


def weight_by_change(frames: Tensor) -> Tensor:
    """Returns by how much each of some clips (B, 3, T, H, W) weighs in a mean of squares, (B,).

    The square of the mean |d| from frame to frame, never 0: where a picture is wide, the square in
    which something happens says most. Source: measured, docs/motion.md.
    """
    return frames.float().diff(dim=2).abs().mean((1, 2, 3, 4)).clamp(min=1e-6) ** 2


def _adjust_colours(rgb: Tensor, factors: Tensor) -> Tensor:
    brightness, contrast, saturation = factors[:, :, None, None, None, None].unbind(1)
    rgb = rgb * brightness
    weights = torch.tensor([0.299, 0.587, 0.114]).to(rgb.device, non_blocking=True)
    grey = (rgb * weights[:, None, None, None]).sum(1, keepdim=True)
    mean = grey.mean((2, 3, 4), keepdim=True)
    rgb = grey + (rgb - grey) * saturation
    return (mean + (rgb - mean) * contrast).clamp(0, 1)
