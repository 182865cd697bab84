"""What a drawn clip costs beside what a network makes of it, and a sheet of such clips.

make bench-drawn        one core; writes docs/drawn-figures.jpg
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import write_jpeg
from torchvision.utils import make_grid

from benchmarks.report import Figure, show, table
from dynamonet.model.network import DynamoNet
from dynamonet.settings import validate
from dynamonet.training.perf.allocator import keep_freed_memory
from dynamonet.video.transforms import denormalise
from pretrain.drawn.actions import TAUGHT, Actions
from pretrain.drawn.scene import DrawnClips, draw_clips
from pretrain.settings import PretrainSettings

SIZES = ((8, 48), (16, 64), (16, 112))
CLIPS, ROUNDS = 16, 8
SHEET = Path(__file__).parents[1] / "docs/drawn-figures.jpg"
SHOWN, FRAMES = 36, 4  # clips of the sheet, two a row, and frames of each


def drawn(clips: int, frames: int, side: int) -> DrawnClips:
    """Draws clips of actions that are taught."""
    return draw_clips(
        Actions.taught(),
        torch.randint(TAUGHT, (clips,)),
        num_frames=frames,
        side=side,
        cell_px=4,
        device=torch.device("cpu"),
    )


def milliseconds(work: Callable[[], object]) -> float:
    """Returns the median time of some work for a clip of `CLIPS`."""
    spent = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return 1000 * statistics.median(spent[2:]) / CLIPS


def step(frames: int, side: int) -> float:
    """Returns the time of the small network's forward and backward pass, for a clip."""
    tiny = PretrainSettings.from_config("tiny").model
    size = {"num_frames": frames, "frame_px": side}
    model = DynamoNet(validate(type(tiny), {**tiny.model_dump(), **size}, origin="size"))
    clips = torch.randn(CLIPS, 3, frames, side, side)
    return milliseconds(lambda: model(clips).predicted[0].square().mean().backward())


def write_sheet(path: Path) -> None:
    """Writes a sheet of clips: the first and every second frame after it."""
    torch.manual_seed(1)
    clips = denormalise(drawn(SHOWN, 2 * FRAMES, 64).moved.frames[:, :, ::2])
    strips = clips.permute(0, 1, 3, 2, 4).flatten(3)  # frames side by side
    sheet: Tensor = make_grid(strips, nrow=3, padding=4, pad_value=1.0)
    write_jpeg((255 * sheet).round().byte(), str(path), quality=85)


def main() -> None:
    """Prints the table and the figures, and writes the sheet."""
    torch.set_num_threads(1)
    keep_freed_memory()
    title = f"one core, {CLIPS} clips at once"
    made, figures = table(title, "clips", "drawn, ms a clip", "small network's step", "ratio"), []
    for frames, side in SIZES:
        torch.manual_seed(0)
        cost = milliseconds(lambda: drawn(CLIPS, frames + 1, side))  # noqa: B023, done at once
        beside = step(frames, side)
        made.add_row(
            f"{frames} x {side} px", f"{cost:.1f}", f"{beside:.1f}", f"{cost / beside:.2f}"
        )
        if side == SIZES[0][1]:
            figures.append(Figure("drawn_ms_8x48", cost, 3.0, at_least=False))
    write_sheet(SHEET)
    show([made], figures)


if __name__ == "__main__":
    main()
