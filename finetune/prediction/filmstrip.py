"""A video at a glance: one picture a window, what the model says of it beneath."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dynamonet.storage import atomic_file
from finetune.prediction.writers import ClassScore, VideoScores, WindowScores

PICTURES = 24  # of a strip at most
_COLUMNS = 8
_NAME_LETTERS = 22  # of a class name that fit beneath a picture
_TITLE_LETTERS = 18  # for each column of pictures


@dataclass(frozen=True)
class _Shown:
    window: WindowScores
    picture: NDArray[np.uint8]  # (P, P, 3)


class Filmstrip:
    """Collects the pictures of a video of unknown length; holds fewer than twice `PICTURES`."""

    def __init__(self) -> None:
        self.held: list[_Shown] = []
        self._every = 1  # of so many windows one is held
        self._windows = 0

    def add(self, window: WindowScores, picture: NDArray[np.uint8]) -> None:
        """Takes a window's picture, and thins out all evenly when there are too many."""
        if self._windows % self._every == 0:
            self.held.append(_Shown(window, picture))
        self._windows += 1
        if len(self.held) == 2 * PICTURES:
            self.held = self.held[::2]
            self._every *= 2

    def draw(self, video: VideoScores) -> Figure:
        """Draws at most `PICTURES` windows, spread evenly over the video."""
        count = min(PICTURES, len(self.held))
        shown = [self.held[round(i)] for i in np.linspace(0, len(self.held) - 1, count)]
        columns = min(_COLUMNS, count)
        rows = math.ceil(count / columns)
        figure = Figure(figsize=(max(4.0, 1.9 * columns), 2.35 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, item in zip(axes, shown, strict=False):
            window, best = item.window, item.window.top[0]
            axis.imshow(item.picture)
            times = f"{clock(window.start_seconds)} - {clock(window.end_seconds)}"
            name = _short(best.class_name, _NAME_LETTERS)
            text = f"{name}\n{best.probability:.0%}   {times}"
            certain = "bold" if best.probability >= 0.5 else "normal"
            axis.set_xlabel(text, fontsize=9, fontweight=certain, parse_math=False)
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in axes[count:]:
            axis.set_visible(False)
        letters = _TITLE_LETTERS * max(2, columns)
        name = _short(Path(video.video).name, letters)
        all_of_it = _short(f"all {clock(video.seconds)}: {guesses(video.top[:3])}", letters)
        figure.suptitle(f"{name}\n{all_of_it}", fontsize=10, parse_math=False)
        return figure

    def write(self, video: VideoScores, file: Path) -> None:
        """Draws the strip into a PNG file.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_file(file) as growing, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks
            self.draw(video).savefig(growing, dpi=110, format="png")


def guesses(top: list[ClassScore]) -> str:
    """Returns classes and probabilities in one line; what rounds to 0% is left out."""
    likely = [guess for guess in top if guess.probability >= 0.005] or top[:1]
    return ", ".join(f"{guess.class_name} {guess.probability:.0%}" for guess in likely)


def clock(seconds: float) -> str:
    """Returns 5.3 s as 0:05.3, and an hour as 1:00:00.0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest / 10:04.1f}"


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
