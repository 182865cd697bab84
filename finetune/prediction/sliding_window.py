"""Windows that slide over a video of unknown length, and the clips in them. Frames pass once.

frames     0 1 2 3 4 5 6 7 8 9 ...
window 0   [---------------)              as many whole clips as fit, spread evenly
window 1           [---------------)      a step later
the last                   [---------)    ends with the video
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dynamonet.video.sampling import clip_indices, span, tiled_starts

_LEFT_OVER = 10  # the part of a clip's span that may stay unseen at a video's end


@dataclass(frozen=True)
class Window:
    """A time range of a video in frames, half-open, and the first frames of its clips."""

    start: int
    end: int
    clips: tuple[int, ...]


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows of a video lie; see the drawing above. Counts are frames."""

    num_frames: int  # of a clip
    stride: float  # between a clip's frames
    length: int  # of a window; at least a clip's span
    step: float  # between the starts of windows, 1 or more; may fall between frames

    @classmethod
    def of(
        cls,
        num_frames: int,
        stride: float,
        rate: float,
        window_seconds: float | None,
        step_seconds: float | None,
    ) -> WindowPlan:
        """Plans windows for a frame rate.

        Args:
            window_seconds: None, or less than a clip covers = what a clip covers.
            step_seconds: None = the window's length.
        """
        length = least = span(num_frames, stride)
        step = float(least)
        if window_seconds is not None and window_seconds * rate > least:
            length, step = round(window_seconds * rate), window_seconds * rate
        if step_seconds is not None:
            step = max(1.0, step_seconds * rate)
        return cls(num_frames, stride, length, step)

    @property
    def span(self) -> int:
        """Frames that a clip covers, first and last included."""
        return span(self.num_frames, self.stride)

    @cached_property
    def _offsets(self) -> list[int]:
        count = self.length // self.span
        return tiled_starts(count, self.num_frames, self.stride, self.length)

    def whole(self, number: int) -> Window:
        """Returns a window by its number, for a video that goes on long enough."""
        start = round(number * self.step)
        clips = tuple(start + offset for offset in self._offsets)
        return Window(start, start + self.length, clips)

    def num_whole(self, total: int) -> int:
        """Returns how many windows fit into a video of so many frames."""
        number = max(0, int((total - self.length) / self.step) - 1)
        while self.whole(number).end <= total:
            number += 1
        return number

    def last(self, number: int, total: int) -> Window | None:
        """Returns the window that ends with the video, or None where hardly a frame is left for it.

        It has those clips of window `number` that fit, and one more that ends at the last frame.
        A video shorter than a clip gives one window with one clip, from frame 0.

        Args:
            number: Of the first window that does not fit.
            total: Frames of the video.
        """
        before = self.whole(number - 1).end if number else 0
        cut = self.whole(number)
        if total <= cut.start or total - before <= self.span // _LEFT_OVER:
            return None
        closing = max(0, total - self.span)
        clips = {start for start in cut.clips if start < closing} | {closing}
        return Window(min(cut.start, closing), total, tuple(sorted(clips)))


@dataclass(frozen=True)
class Clip:
    """The frames of one clip, square, RGB."""

    start: int  # its first frame's number in the video
    pixels: NDArray[np.uint8]  # (T, S, S, 3)


class ClipCutter:
    """Cuts clips out of passing frames; holds no more frames than a clip covers."""

    def __init__(self, plan: WindowPlan) -> None:
        self.plan = plan
        self.frames = 0  # that have passed
        self.held: deque[NDArray[np.uint8]] = deque(maxlen=plan.span)
        self._due: set[int] = set()  # starts of clips that are not cut yet
        self._opened = 0  # windows whose clips are due or cut
        self._next = plan.whole(0)

    def push(self, frame: NDArray[np.uint8]) -> Clip | None:
        """Takes the next frame (S, S, 3); returns the clip that ends with it, if any."""
        self.held.append(frame)
        while self._next.start <= self.frames:
            self._due.update(self._next.clips)
            self._opened += 1
            self._next = self.plan.whole(self._opened)
        self.frames += 1
        start = self.frames - self.plan.span
        if start not in self._due:
            return None
        self._due.remove(start)
        return self.closing()

    def closing(self) -> Clip:
        """Returns the clip that ends with the last frame; too few frames go round again."""
        plan, held = self.plan, len(self.held)
        wanted = clip_indices(0, plan.num_frames, plan.stride, held, loop=held < plan.span)
        return Clip(self.frames - held, np.stack([self.held[i] for i in wanted]))
