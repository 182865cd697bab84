"""Motion videos: a small labelled set in which the class is the motion alone.

Two textured shapes move over a textured background that drifts its own way. Textures, shapes,
sizes, places and the drift are random in every class, so that no single frame tells the class.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import av
import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.segments.transcode import X264_PARAMS

CLASSES = (
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "counter_clockwise",
    "zoom_in",
    "zoom_out",
    "shake",
)
TABLE = "labels.csv"
_SHAPES = 2
_WRAP = (
    1.2  # a shape that leaves on one side comes back on the other; the frame reaches from -1 to 1
)
_BATCH = 60  # videos rendered at once


def write_motion_videos(
    folder: Path,
    *,
    train_videos: int,
    test_videos: int,
    seed: int = 0,
    num_frames: int = 24,
    size_px: int = 64,
    fps: int = 12,
) -> None:
    """Renders a set in the `folder` layout: mp4 files and a CSV of path, label, split.

    Args:
        train_videos, test_videos: Numbers of videos, spread evenly over the nine classes.
    """
    rows = []
    total = train_videos + test_videos
    for first in range(0, total, _BATCH):
        numbers = range(first, min(first + _BATCH, total))
        labels = torch.tensor([number % len(CLASSES) for number in numbers])
        videos = render_motion(labels, seed=seed + first, num_frames=num_frames, size_px=size_px)
        own = []
        for number, label in zip(numbers, labels.tolist(), strict=True):
            split = "train" if number < train_videos else "test"
            path = f"{CLASSES[label]}/{split}_{number:05d}.mp4"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            own.append((path, CLASSES[label], split))
        with ThreadPoolExecutor() as threads:  # the encoder lets go of the interpreter
            files = [folder / path for path, _, _ in own]
            list(threads.map(write_video, files, videos, repeat(fps)))
        rows += own
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


def render_motion(labels: Tensor, *, seed: int, num_frames: int = 24, size_px: int = 64) -> Tensor:
    """Renders one video for each label.

    Args:
        labels: (V,) int64, places in `CLASSES`.

    Returns:
        (V, T, 3, H, W) uint8.
    """
    random = torch.Generator().manual_seed(seed)
    num = len(labels)
    background = _texture(num, 96, random)
    drift = (torch.rand(2, num, generator=random) - 0.5) * 0.08  # up to 1.3 px a frame at 64 px
    start = (torch.rand(2, num, generator=random) - 0.5) * 0.3
    shapes = [_Shape(labels, random) for _ in range(_SHAPES)]
    frames = []
    for index in range(num_frames):
        time = index - (num_frames - 1) / 2
        place = start + drift * time
        still = torch.zeros(num)
        frame = _place(background, still, still + 1.6, place[0], place[1], size_px, "reflection")
        for shape in shapes:
            layer = shape.at(index, time, size_px)
            mask = layer[:, 3:]
            frame = frame * (1 - mask) + layer[:, :3] * mask
        frames.append(frame)
    video = torch.stack(frames, 1)
    video += 0.01 * torch.randn(video.shape, generator=random)
    return (video.clamp(0, 1) * 255).round().byte()


def write_video(path: Path, frames: Tensor, fps: int) -> None:
    """Encodes frames (T, 3, H, W) uint8 as H.264 in mp4."""
    with av.open(str(path), "w") as container:
        options = {"crf": "18", "x264-params": X264_PARAMS}  # the same bytes in every run
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy())
            picture.pts, picture.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


class _Shape:
    """One textured shape for each video, and how it moves."""

    def __init__(self, labels: Tensor, random: torch.Generator) -> None:
        num = len(labels)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(num, generator=random)

        def sign(plus: str, minus: str) -> Tensor:
            is_plus, is_minus = (labels == CLASSES.index(name) for name in (plus, minus))
            return is_plus.float() - is_minus.float()

        lobes = torch.randint(0, 6, (num, 1, 1), generator=random)
        self.picture = torch.cat([_texture(num, 64, random), _outline(lobes, uniform)], 1)
        self.x, self.y = uniform(-0.5, 0.5), uniform(-0.5, 0.5)
        self.angle, self.size = uniform(0, 2 * math.pi), uniform(0.30, 0.48)
        speed = uniform(0.05, 0.10)  # of half the frame each frame: 1.6 to 3.2 px at 64 px
        self.step_x = speed * sign("right", "left")
        self.step_y = speed * sign("down", "up")
        self.turn = uniform(0.06, 0.15) * sign("clockwise", "counter_clockwise")
        self.zoom = uniform(0.02, 0.05) * sign("zoom_in", "zoom_out")
        self.shake = 1.6 * speed * (labels == CLASSES.index("shake"))

    def at(self, index: int, time: float, size_px: int) -> Tensor:
        """Returns the shape's layer (V, 4, H, W): RGB and mask."""
        x = self.x + self.step_x * time + self.shake * math.sin(2.1 * index)
        y = self.y + self.step_y * time + self.shake * math.cos(2.7 * index)
        x, y = (torch.remainder(v + _WRAP, 2 * _WRAP) - _WRAP for v in (x, y))
        size = self.size * torch.exp(self.zoom * time)
        return _place(self.picture, self.angle + self.turn * time, size, x, y, size_px, "zeros")


def _texture(num: int, size: int, random: torch.Generator) -> Tensor:
    """Returns random colour textures (V, 3, size, size) in [0, 1]: noise at four scales."""
    out = torch.zeros(num, 3, size, size)
    for cells, weight in ((4, 1.0), (8, 0.8), (16, 0.7), (32, 0.5)):
        noise = torch.randn(num, 3, cells, cells, generator=random)
        out += weight * F.interpolate(noise, size=(size, size), mode="bicubic")
    mean = 0.25 + 0.5 * torch.rand(num, 3, 1, 1, generator=random)
    return (out / out.std(dim=(1, 2, 3), keepdim=True) * 0.22 + mean).clamp(0, 1)


def _outline(lobes: Tensor, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """Returns soft masks (V, 1, 64, 64) of round shapes with a random number of lobes."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    phase = uniform(0, 2 * math.pi)[:, None, None]
    edge = 0.75 + 0.2 * torch.cos(lobes * torch.atan2(y, x) + phase)
    return ((edge - (x**2 + y**2).sqrt()) * 20).sigmoid()[:, None]


def _place(
    picture: Tensor, angle: Tensor, size: Tensor, x: Tensor, y: Tensor, size_px: int, outside: str
) -> Tensor:
    """Draws pictures turned by `angle`, scaled by `size`, at (x, y) of a frame from -1 to 1."""
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    rows = torch.stack(
        [
            torch.stack([cos, sin, -(cos * x + sin * y)], 1),
            torch.stack([-sin, cos, sin * x - cos * y], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [len(rows), 1, size_px, size_px], align_corners=False)
    return F.grid_sample(picture, grid, padding_mode=outside, align_corners=False)
