"""Black bars around the picture: how wide they are, and what is inside them.

    ..........    unlit in every frame looked at
    ..######..
    ..######..    the content
    ..........

Bars come in pairs: where one edge is unlit and the opposite one is not, it is a dark picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dynamonet.video.decode import Box, DecodeError, video_stream

UNLIT = 0.1  # share of white up to which a pixel counts as black. Source: FFmpeg's blackdetect
LEAST = 0.02  # share of a side below which a bar is an edge line of the camera or encoder
MOST = 0.4  # share of a side above which it is a dark picture
LOOKS = 9  # frames looked at, spread over the video
SHORT_SECONDS = 20.0  # shorter videos are decoded through: they may have one key frame only


def bar_px(lit: NDArray[np.bool_]) -> int:
    """Returns the width of the narrower of the two bars at the ends of a line of pixels."""
    places = np.flatnonzero(lit)
    return int(min(places[0], len(lit) - 1 - places[-1])) if len(places) else len(lit) // 2


def find_content(container: InputContainer, seconds: float) -> Box | None:
    """Returns the part of the stored frames inside black bars; None where there are none.

    Looks at `LOOKS` frames spread over the whole video, so that all stretches of it are cut alike,
    and a dark beginning decides nothing. The container's place is lost.

    Args:
        seconds: Length of the video, as its header has it.
    """
    brightest: NDArray[np.uint8] | None = None  # of each pixel
    try:
        stream = video_stream(container)
        stream.thread_count = 1
        for frame in _looks(container, stream, seconds):
            grey = np.asarray(frame.to_ndarray(format="gray"), np.uint8)
            if brightest is None:
                brightest = grey
            elif brightest.shape == grey.shape:
                brightest = np.maximum(brightest, grey)
    except (DecodeError, FFmpegError, OSError, ValueError):
        return None  # whoever decodes the frames themselves says what is wrong with them
    if brightest is None:
        return None
    top, left = (_worth_cutting(brightest.max(axis) > UNLIT * 255) for axis in (1, 0))
    if not top and not left:
        return None
    height, width = brightest.shape
    return Box(top, left, (height - 2 * top) // 2 * 2, (width - 2 * left) // 2 * 2)


def _worth_cutting(lit: NDArray[np.bool_]) -> int:
    bar = bar_px(lit)
    return (bar + 1) // 2 * 2 if LEAST <= bar / len(lit) <= MOST else 0


def _looks(container: InputContainer, stream: VideoStream, seconds: float) -> Iterator[VideoFrame]:
    """Yields frames of a video: of a short one evenly spread, of a long one key frames."""
    base = stream.time_base or Fraction(1, av.time_base)
    origin = stream.start_time or 0
    if seconds <= SHORT_SECONDS:
        due = 0.0
        for frame in container.decode(stream):
            at = float(((frame.pts or 0) - origin) * base)
            if at >= due:
                yield frame
                due += max(seconds, 1.0) / LOOKS
        return
    for number in range(LOOKS):
        at = seconds * (number + 0.5) / LOOKS
        container.seek(origin + int(at / base), stream=stream, backward=True)
        yield from (frame for frame, _ in zip(container.decode(stream), range(1), strict=False))
