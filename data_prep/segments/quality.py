"""What a segment is like, in numbers, from its small frames as they stream to the encoder.

Frames are looked at four times a second, and compared with the look before, so that scores mean the
same at any frame rate. All are sums of whole numbers first: the same on every machine.

Source: ours; "black" as FFmpeg's blackdetect has it.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dynamonet.video.decode import Box, cut_planes
from dynamonet.video.letterbox import UNLIT, bar_px

LOOKS_A_SECOND = 4
BLACK, WHITE = 16, 235  # of luma
UNLIT_LUMA = BLACK + UNLIT * (WHITE - BLACK)
BLACK_PIXELS = 0.98  # share of unlit pixels that makes a frame black. Source: FFmpeg's blackdetect
CHANGED_BY = 8  # grey levels that a pixel changes at least; the noise of encoders stays below
STILL_PIXELS = 0.001  # share of changed pixels up to which a picture stands still
JUMP_PIXELS = 0.3  # share of changed pixels from which one picture is replaced by another


class Scorer:
    """Gathers the scores of one segment."""

    def __init__(self, rate: Fraction) -> None:
        self.step = max(1, round(rate / LOOKS_A_SECOND))
        self.count = 0
        self.before: NDArray[np.uint8] | None = None  # (H, W) luma of the last look
        self.last: VideoFrame | None = None  # not looked at yet
        self.brightness: list[float] = []  # 0 = black, 1 = white, one value a look
        self.unlit: list[float] = []  # share of pixels
        self.changed: list[float] = []  # share of pixels, one value a pair of looks
        self.difference: list[float] = []  # mean absolute, as brightness
        self.highest: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None  # (H,), (W,)

    def add(self, frame: VideoFrame) -> None:
        """Takes the next yuv420p frame."""
        self.last = None if self.count % self.step == 0 else frame
        if self.last is None:
            self._look(frame)
        self.count += 1

    def scores(self) -> dict[str, float]:
        """Returns the scores of the frames so far, one for each name in `index.SCORES`."""
        if not self.changed and self.last is not None:
            self._look(self.last)  # shorter than two looks
        still = [share <= STILL_PIXELS for share in self.changed]
        static = _mean(still)
        jumps = any(share >= JUMP_PIXELS for share in self.changed)
        values = {
            "brightness": _mean(self.brightness),
            "black_share": _mean([share >= BLACK_PIXELS for share in self.unlit]),
            "static_share": static,
            "slideshow": static if jumps else 0.0,
            "border_share": self._border_share(),
            "motion": _mean(self.difference),
        }
        return {name: round(float(value), 4) for name, value in values.items()}

    def _look(self, frame: VideoFrame) -> None:
        luma = cut_planes(frame, Box(0, 0, frame.height, frame.width))[0].copy()
        self.brightness.append((int(luma.sum()) / luma.size - BLACK) / (WHITE - BLACK))
        self.unlit.append(np.count_nonzero(luma <= UNLIT_LUMA) / luma.size)
        rows, columns = luma.max(1), luma.max(0)
        if self.highest is not None:
            rows = np.maximum(rows, self.highest[0])
            columns = np.maximum(columns, self.highest[1])
        self.highest = rows, columns
        if self.before is not None:
            change = np.maximum(luma, self.before) - np.minimum(luma, self.before)
            self.changed.append(np.count_nonzero(change > CHANGED_BY) / change.size)
            self.difference.append(int(change.sum()) / change.size / (WHITE - BLACK))
        self.before = luma

    def _border_share(self) -> float:
        """Returns the share of the picture in bars that stay black all through."""
        if self.highest is None:
            return 0.0
        inside = [1 - 2 * bar_px(line > UNLIT_LUMA) / len(line) for line in self.highest]
        return 1 - inside[0] * inside[1]


def _mean(values: list[float] | list[bool]) -> float:
    return min(1.0, max(0.0, sum(values) / len(values))) if values else 0.0
