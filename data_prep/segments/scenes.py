"""Where one shot ends and the next begins: PySceneDetect's adaptive detector, frame by frame.

    frame     0 1 2 3 4 5 6         a cut is a difference of neighbours that stands out from those
    score     . 1 1 9 1 1 1         of the two frames before and after it, so that fast motion is
                    ^ a shot begins   none; hence a frame leaves here two frames late

Hard cuts are found, down to shots of three frames; dissolves are not, nor cuts within a shaking
picture that differ no more than its frames do. Source: PySceneDetect, AdaptiveDetector with its own
defaults, save that shots may be short.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.video.decode import Box, cut_planes

WIDTH = 2  # frames on either side that a difference is compared with


def check_installed() -> None:
    """Raises UserError if PySceneDetect is missing."""
    try:
        importlib.import_module("scenedetect.detectors")
    except ImportError as error:
        raise UserError(
            f"cut = shots needs PySceneDetect ({error}); install it with\n"
            "  pip install 'dynamonet[shots]'\nor choose --cut fixed"
        ) from None


def mark_shots(frames: Iterable[VideoFrame], rate: Fraction) -> Iterator[tuple[VideoFrame, bool]]:
    """Yields each yuv420p frame, and whether a shot begins with it; the first does not count."""
    import cv2
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(window_width=WIDTH, min_scene_len=0)
    cuts: set[int] = set()
    count = 0

    def look(picture: NDArray[np.uint8]) -> None:
        nonlocal count
        bgr = cv2.cvtColor(picture, cv2.COLOR_YUV2BGR)
        new = detector.process_frame(FrameTimecode(count, float(rate)), bgr)
        cuts.update(cut.frame_num for cut in new)
        count += 1

    waiting: deque[tuple[int, VideoFrame]] = deque()
    picture: NDArray[np.uint8] | None = None
    for frame in frames:
        picture = _small(frame)
        while count < WIDTH:  # so that a cut right after the first frame is found, too
            look(picture)
        waiting.append((count, frame))
        look(picture)
        if len(waiting) > WIDTH:
            number, ready = waiting.popleft()
            yield ready, number in cuts
    for number, ready in list(waiting):
        assert picture is not None
        look(picture)
        yield ready, number in cuts


def _small(frame: VideoFrame) -> NDArray[np.uint8]:
    """Returns a frame as (H / 2, W / 2, 3) YUV."""
    y, u, v = cut_planes(frame, Box(0, 0, frame.height, frame.width))
    return np.dstack((y[::2, ::2], u, v))
