"""Movers: patches of other clips that move over a clip, and where each point of them came from.

    clip      o o o o o        frames of a video that nobody labelled
    mover     ( frame of another clip, shrunk, cut out with a soft outline )
    path      straight or bent, to and fro, turning, growing: at every frame a place, angle and size

Real video shows motion and does not tell it. Of a mover the displacement is known to a fraction of
a pixel, so filters can be told where to look, not only how the result looks. Ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.model.config import FilterConfig

MOST = 3  # movers of a clip
RADIUS = (0.25, 0.6)  # of a mover's picture, in halves of the frame's side
SPEED = (0.1, 0.875)  # of a mover, pixels a frame as shares of what the filters reach
_OUTLINE_PX = 48


@dataclass(frozen=True)
class Moved:
    """Clips with movers over them. Displacements are in pixels, (x, y), at the filters' places."""

    frames: Tensor  # (B, 3, T, H, W)
    shift: Tensor  # (B, T-1, 2, gh, gw): from here in frame t + 1 to where that was in frame t
    known: Tensor  # (B, T-1, gh, gw) bool: a mover is here in frame t + 1

    def beside(self, other: Moved) -> Moved:
        """Returns these clips and others after them."""
        both = ((v, getattr(other, name)) for name, v in vars(self).items())
        return Moved(*(torch.cat([own, more.to(own.dtype)]) for own, more in both))


@dataclass(frozen=True)
class Track:
    """Where pictures are at each frame; each (M, T), the frame reaching from -1 to 1."""

    x: Tensor
    y: Tensor
    angle: Tensor
    size: Tensor

    @classmethod
    def drawn(cls, count: int, num_frames: int, reach: float) -> Track:
        """Draws the tracks of movers.

        Args:
            reach: How far the filters look, in halves of the frame's side.
        """

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1)

        def every_third() -> Tensor:
            return (torch.rand(count, 1) < 0.3).float()

        time = torch.arange(num_frames)[None] - (num_frames - 1) / 2
        heading = uniform(0, 2 * math.pi)
        bent = heading + 0.12 * torch.randn(count, 1) * time
        speed = uniform(*SPEED) * reach
        wave = torch.sin(uniform(0.6, 2.2) * time + uniform(0, 2 * math.pi))
        swing = uniform(0.25, 1.0) * reach * every_third() * wave

        def place(step: Tensor, aside: Tensor) -> Tensor:
            walked = (speed * step).cumsum(1)
            return uniform(-0.75, 0.75) + walked - walked[:, -1:] / 2 + swing * aside

        x = place(bent.cos(), (heading + 1).cos())
        y = place(bent.sin(), (heading + 1).sin())
        angle = uniform(0, 2 * math.pi) + 0.05 * torch.randn(count, 1) * time
        angle = angle + uniform(0.1, 0.5) * every_third() * wave
        size = uniform(*RADIUS) * torch.exp(0.02 * torch.randn(count, 1) * time)
        return cls(x, y, angle, size)

    def to(self, device: torch.device) -> Track:
        four = (self.x, self.y, self.angle, self.size)
        return Track(*(_sent(each, device) for each in four))

    def into_picture(self, points: Tensor) -> Tensor:
        """Maps points (P, 2) of the frame to places (M, T, P, 2) of the pictures."""
        x, y = points[:, 0] - self.x[..., None], points[:, 1] - self.y[..., None]
        cos, sin = (
            (self.angle.cos() / self.size)[..., None],
            (self.angle.sin() / self.size)[..., None],
        )
        return torch.stack([cos * x + sin * y, cos * y - sin * x], -1)

    def draw(self, pictures: Tensor, side: int, outside: str = "zeros") -> Tensor:
        """Draws pictures (M, C, h, w) at each frame: (M, C, T, side, side).

        Args:
            outside: What a frame shows beyond its picture, as `grid_sample` names it.
        """
        count, num = self.x.shape
        grid = self.into_picture(_grid(_centres(side, self.x.device)))
        grid = grid.view(count, num * side, side, 2)
        drawn = F.grid_sample(pictures, grid, padding_mode=outside, align_corners=False)
        return drawn.view(count, -1, num, side, side)

    def shift(self, points: Tensor) -> Tensor:
        """Returns how far (M, T-1, P, 2) what is at points (P, 2) was from there a frame before."""
        u, v = self.into_picture(points)[:, 1:].unbind(-1)
        cos = (self.angle.cos() * self.size)[:, :-1, None]
        sin = (self.angle.sin() * self.size)[:, :-1, None]
        x = self.x[:, :-1, None] + cos * u - sin * v
        y = self.y[:, :-1, None] + sin * u + cos * v
        return torch.stack([x, y], -1) - points


@dataclass(frozen=True)
class Layer:
    """Movers of one layer, at most one a clip, as they are drawn: M of them."""

    rows: Tensor  # (M,), clips that they move over
    source: Tensor  # (M,), clips that their pictures are of
    frame: Tensor  # (M,), frames of those
    outline: Tensor  # (M, 1, h, w)
    track: Track

    def to(self, device: torch.device) -> Layer:
        """Copies them to a device without waiting for the copies."""
        four = (self.rows, self.source, self.frame, self.outline)
        rows, source, frame, outline = (_sent(each, device) for each in four)
        return Layer(rows, source, frame, outline, self.track.to(device))


def draw_movers(batch: int, num_frames: int, reach: float, share: float) -> list[Layer]:
    """Draws one to `MOST` movers for a share of the clips, layer by layer.

    Draws from torch's own generator, on the CPU, so that every device gets the same and no host
    waits for a device.
    """
    counts = torch.randint(1, MOST + 1, (batch,)) * (torch.rand(batch) < share)
    layers = []
    for layer in range(MOST):
        rows = (counts > layer).nonzero().flatten()
        if not len(rows):
            break
        source = (rows + torch.randint(1, max(batch, 2), rows.shape)) % batch  # another clip
        frame, outline = torch.randint(num_frames, rows.shape), _outlines(len(rows))
        track = Track.drawn(len(rows), num_frames, reach)
        layers.append(Layer(rows, source, frame, outline, track))
    return layers


def paste_movers(frames: Tensor, filters: FilterConfig, share: float) -> Moved:
    """Pastes one to `MOST` movers over a share of the clips.

    Args:
        frames: (B, 3, T, S, S), normalised.
    """
    batch, _, num, side, _ = frames.shape
    device, cell = frames.device, filters.cell_px
    reach = filters.size // 2 * max(filters.levels) * 2 / side
    layers = draw_movers(batch, num, reach, share)
    places = torch.arange(cell // 2, side + cell // 2, cell, device=device).clamp(max=side - 1)
    centres = _grid(_centres(side, device)[places])
    shift = frames.new_zeros(batch, num - 1, 2, len(places), len(places), dtype=torch.float32)
    known = torch.zeros(batch, num - 1, len(places), len(places), dtype=torch.bool, device=device)
    result = frames.clone() if layers else frames
    for layer in (drawn.to(device) for drawn in layers):
        rows = layer.rows
        picture = frames[layer.source, :, layer.frame]
        outline = F.interpolate(layer.outline, (side, side))
        pasted = layer.track.draw(torch.cat([picture, outline], 1).float(), side)
        colour, mask = pasted.split((3, 1), 1)
        result[rows] = torch.lerp(result[rows], colour.to(result.dtype), mask.to(result.dtype))
        here = mask[:, 0, 1:, places][..., places] > 0.5
        moved = layer.track.shift(centres).movedim(-1, 2).unflatten(-1, (len(places), -1))
        shift[rows] = torch.where(here[:, :, None], moved * side / 2, shift[rows])
        known[rows] |= here
    return Moved(result, shift, known)


def displacement_loss(filters: Tensor, moved: Moved, config: FilterConfig) -> Tensor:
    """Returns the cross-entropy between filters and the displacements of movers.

    A displacement that falls between taps is shared among the four around it; one beyond the
    filters' reach counts for nothing.

    Args:
        filters: (B, L, N, K*K, gh, gw), softmax; for the last N of the displacements.
    """
    num, losses = filters.shape[2], []
    for level, given in zip(config.levels, filters.unbind(1), strict=True):
        wanted = soft_taps(moved.shift[:, -num:] / level, config.size)
        wanted = wanted * moved.known[:, -num:, None]
        entropy = -(wanted * (given.float() + 1e-6).log()).sum()
        losses.append(entropy / wanted.sum().clamp(min=1))
    return torch.stack(losses).mean()


def soft_taps(shift: Tensor, size: int) -> Tensor:
    """Turns displacements (B, N, 2, gh, gw) into the bilinear filters (B, N, K*K, gh, gw) of them.

    Args:
        shift: Pixels, (x, y), at the resolution that the filters act on.
        size: K.
    """
    taps = torch.arange(size, device=shift.device) - size // 2
    near = (1 - (shift[:, :, :, None] - taps[:, None, None]).abs()).clamp(min=0)
    x, y = near.unbind(2)  # (B, N, K, gh, gw)
    return (y[:, :, :, None] * x[:, :, None]).flatten(2, 3)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, non_blocking=True)


def _outlines(count: int) -> Tensor:
    """Returns soft masks (M, 1, `_OUTLINE_PX`, `_OUTLINE_PX`): ellipses with up to four lobes."""
    line = torch.linspace(-1, 1, _OUTLINE_PX)
    y, x = torch.meshgrid(line, line, indexing="ij")
    lobes = torch.randint(0, 5, (count, 1, 1))
    phase = 2 * math.pi * torch.rand(count, 1, 1)
    flat = 0.45 + 0.55 * torch.rand(count, 1, 1)
    edge = 0.72 + 0.2 * torch.cos(lobes * torch.atan2(y, x) + phase)
    return (12 * (edge - ((x / flat) ** 2 + y**2).sqrt())).sigmoid()[:, None]


def _centres(side: int, device: torch.device) -> Tensor:
    """Returns where the pixels of a line stand, the line reaching from -1 to 1."""
    return (torch.arange(side, device=device) * 2 + 1) / side - 1


def _grid(line: Tensor) -> Tensor:
    """Returns the points (n * n, 2) of a square grid as (x, y), row by row."""
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)
