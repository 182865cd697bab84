"""Rendered videos without labels: textured scenes in which textured things move.

A scene is a texture that stands still or drifts, turns and grows as under a camera that is held;
over it pass movers (`pretrain.movers`), which carry the textures of other scenes.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from demo.motion_videos import write_video
from dynamonet.model.config import FilterConfig
from dynamonet.video.transforms import denormalise
from pretrain.movers import Track, paste_movers

FPS = 12
_BATCH = 50  # scenes that lend each other their textures
_SCENE_PX = 96
_NOISE = 0.05  # greatest deviation of a camera's noise, in normalised RGB


def write_rendered_videos(
    folder: Path, *, videos: int, seed: int = 0, num_frames: int = 24, size_px: int = 64
) -> None:
    """Renders videos as mp4 files `00000.mp4`, `00001.mp4`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, videos, _BATCH):
        batch = render_scenes(_BATCH, seed=seed + first, num_frames=num_frames, size_px=size_px)
        for number, video in enumerate(batch[: videos - first], first):
            write_video(folder / f"{number:05d}.mp4", video, FPS)


def render_scenes(count: int, *, seed: int, num_frames: int = 24, size_px: int = 64) -> Tensor:
    """Renders scenes with movers: (V, T, 3, H, W) uint8."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        scenes = _scenes(_textures(count), num_frames, size_px)
        moved = paste_movers(scenes, FilterConfig(), share=1.0).frames
        noise = _NOISE * torch.rand(count, 1, 1, 1, 1) * torch.randn(moved.shape)
    video = denormalise(moved + noise).transpose(1, 2)
    return (255 * video).round().byte()


def _textures(count: int) -> Tensor:
    """Returns textures (V, 3, S, S) in normalised RGB: noise of four grains, some hard-edged."""
    out = torch.zeros(count, 3, _SCENE_PX, _SCENE_PX)
    for cells in (4, 8, 16, 32):
        grey = torch.randn(count, 1, cells, cells)
        noise = grey + torch.rand(count, 3, 1, 1) * torch.randn(count, 3, cells, cells)
        weight = torch.rand(count, 1, 1, 1).square()
        out += weight * F.interpolate(noise, size=out.shape[-2:], mode="bicubic")
    hard = (torch.rand(count, 1, 1, 1) < 0.3).float()
    out = torch.lerp(out, torch.tanh(4 * out / _deviation(out)), hard)
    contrast = 0.3 + 0.9 * torch.rand(count, 1, 1, 1)
    return out / _deviation(out) * contrast + 0.7 * torch.randn(count, 3, 1, 1)


def _scenes(textures: Tensor, num_frames: int, size_px: int) -> Tensor:
    """Moves textures under a camera; every second one stands still. Returns (V, 3, T, H, W)."""
    count = len(textures)
    time = torch.arange(num_frames)[None] - (num_frames - 1) / 2
    time = time * (torch.rand(count, 1) < 0.5)
    heading, speed = 2 * math.pi * torch.rand(count, 1), 3 * torch.rand(count, 1) / size_px
    x, y = speed * heading.cos() * time, speed * heading.sin() * time  # up to 1.5 px a frame
    angle = 0.006 * torch.randn(count, 1) * time
    size = (1.4 + 1.6 * torch.rand(count, 1)) * torch.exp(0.004 * torch.randn(count, 1) * time)
    return Track(x, y, angle, size).draw(textures, size_px, "reflection")


def _deviation(pictures: Tensor) -> Tensor:
    return pictures.std((1, 2, 3), keepdim=True)
