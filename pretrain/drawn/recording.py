"""What a recording does to a picture: textures, exposure, flicker, blur, compression, noise."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.video.transforms import MEAN, STD

_BLOCK = 8  # pixels a side, of JPEG, MPEG and their kin
_SCENE_PX = 64
_NOISE = 0.08  # greatest deviation, in normalised RGB


def textures(count: int) -> Tensor:
    """Draws textures (B, 3, `_SCENE_PX`, `_SCENE_PX`) in normalised RGB: three fields, mixed."""
    bank = _fields()
    which = torch.randint(len(bank), (count, 3))
    weight = torch.rand(count, 1, 3).square()
    mix = (torch.ones(count, 3, 1) + torch.rand(count, 1, 1) * torch.randn(count, 3, 3)) * weight
    out = (mix @ bank[which]).unflatten(2, (_SCENE_PX, _SCENE_PX))
    hard = (torch.rand(count) < 0.3).nonzero().flatten()
    out = out / mix.square().sum((1, 2)).div(3).sqrt()[:, None, None, None]
    out[hard] = torch.tanh(4 * out[hard])
    contrast = 0.05 + 0.95 * torch.rand(count, 1, 1, 1)
    return out * contrast + 0.7 * torch.randn(count, 3, 1, 1)


@cache
def _fields() -> Tensor:
    """Returns grey noise of five grains, (N, `_SCENE_PX` ** 2), the same in every process."""
    random = torch.Generator().manual_seed(0)
    fields = []
    for cells in (3, 6, 12, 24, 48):
        noise = torch.randn(64, 1, cells, cells, generator=random)
        field = F.interpolate(noise, size=(_SCENE_PX, _SCENE_PX), mode="bicubic")
        fields.append(field / field.std((1, 2, 3), keepdim=True))
    return torch.cat(fields).flatten(1)


def record(frames: Tensor) -> Tensor:
    """Changes clips (B, T, S, S, 3) into what a camera and a codec leave of them, normalised.

    Draws on the CPU.
    """
    batch, num = frames.shape[:2]
    device = frames.device

    def drawn(share: float) -> Tensor:
        return (torch.rand(batch) < share).nonzero().flatten().to(device)

    gain = torch.exp(0.15 * torch.randn(batch, 1)).expand(-1, num)
    flicker = (torch.rand(batch, 1) < 0.2) * 0.05 * torch.randn(batch, num)
    exposure = torch.stack([gain, flicker + 0.2 * torch.randn(batch, 1)]).to(device)
    scale, shift = exposure[..., None, None, None].unbind()
    frames.mul_(scale).add_(shift)
    if len(soft := drawn(0.3)):
        frames[soft] = _blurred(frames[soft])
    grain = _NOISE * torch.rand(batch).square()
    for clip in (grain > _NOISE / 4).nonzero().flatten().tolist():
        frames[clip].add_(torch.randn(frames.shape[1:]).to(device), alpha=float(grain[clip]))
    if len(packed := drawn(0.3)):
        step = torch.exp(math.log(0.15) + math.log(6) * torch.rand(len(packed))).to(device)
        planes = frames[packed].movedim(-1, 1)
        frames[packed] = _compressed(planes, step).movedim(1, -1)
    return frames.clamp_(-MEAN / STD, (1 - MEAN) / STD)


def _blurred(frames: Tensor) -> Tensor:
    """Takes binomial means of three pixels a side of frames (B, T, S, S, 3); edges stay."""
    for axis in (2, 3):
        inner = frames.shape[axis] - 2
        ends = frames.narrow(axis, 0, inner) + frames.narrow(axis, 2, inner)
        frames = frames.clone()
        frames.narrow(axis, 1, inner).div_(2).add_(ends, alpha=0.25)
    return frames


def _compressed(frames: Tensor, step: Tensor) -> Tensor:
    """Rounds the cosine transform of each block, high frequencies more coarsely.

    Args:
        step: (B,), of the lowest frequency.
    """
    side = frames.shape[-1]
    whole = side - side % _BLOCK
    basis = _cosines().to(frames)
    blocks = frames[..., :whole, :whole].unflatten(-1, (-1, _BLOCK)).unflatten(-3, (-1, _BLOCK))
    blocks = blocks.transpose(-3, -2)  # (..., rows, columns, 8, 8)
    waves = basis @ blocks @ basis.T
    index = torch.arange(_BLOCK, device=frames.device)
    coarse = 1 + 0.5 * (index[:, None] + index)
    size = step.view(-1, 1, 1, 1, 1, 1, 1) * coarse
    blocks = basis.T @ ((waves / size).round() * size) @ basis
    frames = frames.clone()
    frames[..., :whole, :whole] = blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return frames


def _cosines() -> Tensor:
    """Returns the orthonormal cosine transform of `_BLOCK` values."""
    place, wave = torch.arange(_BLOCK) + 0.5, torch.arange(_BLOCK)[:, None]
    rows = torch.cos(math.pi / _BLOCK * place * wave) * math.sqrt(2 / _BLOCK)
    rows[0] /= math.sqrt(2)
    return rows
