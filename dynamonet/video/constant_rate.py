"""A video of any kind -> upright frames of one size at a steady rate, in YUV 4:2:0.

    packets -> frames -> filters (dynamonet.video.normalise) -> upright, steady, BT.601, yuv420p

What stage 1 encodes, and what a finished model is shown of a file, go through here alike. Frames
stream through: no more than a few are in memory, however long the video.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import av
from av import error as av_error
from av import logging as av_logging
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dynamonet.child_process import heartbeat
from dynamonet.video.decode import Box, decoder_of, is_moving, reason, video_stream
from dynamonet.video.normalise import filters, kinds_of, upright_size

MAX_GAP_SECONDS = 600  # between two frames; more is a damaged time stamp. Source: ours
STEP_BACK_SECONDS = 0.5  # between two frames; more is a new stretch, joined on. Source: ours
_HARMLESS = ("mmco", "co located POCs", "eference picture missing", "eference frames exceeds")


@dataclass(frozen=True, slots=True)
class TimeRange:
    """What part of a source to take, half-open; `end` None = to the end of the file."""

    start: Fraction
    end: Fraction | None

    @property
    def is_whole(self) -> bool:
        """Tells whether it is all of a source."""
        return not self.start and self.end is None

    def num_frames(self, rate: Fraction) -> int:
        """Returns how many frames it has, or at least no fewer where it is open."""
        return sys.maxsize if self.end is None else round((self.end - self.start) * rate)


@dataclass(frozen=True)
class Damage:
    """A place where decoding failed."""

    seconds: float  # time of the last good frame before it
    reason: str


def output_rate(fps: Fraction, max_fps: float) -> Fraction:
    """Returns the steady rate of a video: its own, capped, as a ratio that mp4 holds."""
    return max(Fraction(1, 1001), min(fps, Fraction(max_fps)).limit_denominator(1001))


def constant_rate_frames(
    container: InputContainer,
    time_range: TimeRange,
    rate: Fraction,
    short_side_px: int,
    *,
    box: Box | None = None,
    changes: set[str] | None = None,
) -> Iterator[VideoFrame | Damage]:
    """Yields upright frames at exactly `rate`, and where decoding failed.

    A frame is shown until the next one, into a time range from before it and up to its end.

    Args:
        short_side_px: Their shorter side; frames are never enlarged.
        box: Part of the frame, as it is stored, to keep; None keeps all.
        changes: Gathers the kinds of what was changed (`normalise.KINDS`) as the frames come.
    """
    stream = video_stream(container)
    stream.thread_count = 1
    changes = set() if changes is None else changes
    graph: Graph | None = None
    shape = size = None
    kinds: frozenset[str] = frozenset()
    is_fast = (stream.average_rate or 0) > rate * Fraction(101, 100)
    has_others = sum(is_moving(other) for other in container.streams.video) > 1
    spacing, interlaced, count = FrameSpacing(), False, 0
    frame: VideoFrame | None = None
    most, goes_on = time_range.num_frames(rate), False
    for item in _decoded(container, stream, time_range, rate, changes):
        if isinstance(item, Damage):
            yield item
            continue
        if item is None:
            goes_on = True
            break
        interlaced = interlaced or item.interlaced_frame  # from then on, so that it changes once
        current = (item.width, item.height, item.format.name, item.rotation, interlaced)
        if graph is None or current != shape:
            if graph is not None:
                for frame in islice(_drain(graph), most - count):
                    count += 1
                    yield frame
            if shape and current[:-1] != shape[:-1]:
                changes.add("size_change")
                box = None  # it was found in frames of the first size
            kinds = kinds_of(stream, item)
            kinds |= {"interlaced"} if interlaced else set()
            kinds |= {"letterbox"} if box else set()
            kinds |= {"high_rate"} if is_fast else set()
            kinds |= {"other_streams"} if has_others else set()
            size = size or upright_size(stream, item, box, short_side_px)
            start = time_range.start + count / rate
            graph = filters(stream, item, kinds, start=start, rate=rate, size=size, box=box)
            shape = current
        changes |= kinds
        if spacing.changes_with(item):
            changes.add("variable_rate")
        graph.push(item)
        for frame in islice(_pull(graph), most - count):
            count += 1
            yield frame
    if graph is not None:
        for frame in islice(_drain(graph), most - count):
            count += 1
            yield frame
    if frame is not None and goes_on:
        for _ in range(most - count):
            yield frame


class FrameSpacing:
    """Watches the distances between frames, in ticks of their time base."""

    def __init__(self) -> None:
        self.before: int | None = None
        self.distance = 0

    def changes_with(self, frame: VideoFrame) -> bool:
        """Tells whether a frame comes after another time than the frame before it did."""
        before, self.before = self.before, frame.pts
        if before is None or frame.pts is None or frame.pts <= before:
            return False
        distance, old = frame.pts - before, self.distance
        self.distance = distance
        # two ticks are what coarse time stamps give when they are rounded
        return bool(old) and abs(distance - old) > max(distance, old) / 4 + 2


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    time_range: TimeRange,
    rate: Fraction,
    changes: set[str],
) -> Iterator[VideoFrame | Damage | None]:
    """Yields the decoded frames of a time range, and None where the source goes on after it.

    A damaged packet is a value, not an end. What is shown where the range begins comes first.
    """
    first, last = time_range.start, time_range.end
    shown: VideoFrame | None = None  # when the range begins
    times, decoder = _FrameTimes(stream, time_range, changes), decoder_of(stream)
    if first:
        start = times.origin + int(first / times.base)
        container.seek(start, stream=stream, backward=True)
    now = 0.0
    for packet in _packets(container, stream):
        if isinstance(packet, Damage):
            yield Damage(now, packet.reason)
            return
        frames, trouble = _decode(packet, decoder)
        if trouble and now >= first:
            yield Damage(now, trouble)
        for frame in frames:
            heartbeat()
            at = times.of(frame)
            if at is None:
                continue
            if at < first:
                shown = frame
                continue
            if shown is not None:
                if at - first > 1 / (2 * rate):
                    shown.pts = round(first / times.base)
                    yield shown
                shown = None
            if last is not None and at >= last:
                yield None
                return
            if at - max(first, now) > MAX_GAP_SECONDS:
                yield Damage(now, f"time stamps jump by {float(at) - now:.0f} s")
                return
            now = float(at)
            frame.pts = round(at / times.base)
            yield frame


class _FrameTimes:
    """When each frame is shown, in seconds from the first.

    Where all of the source is taken, frames without a time come at its rate, and those whose times
    begin anew, or jump, follow the frames before them.
    """

    def __init__(self, stream: VideoStream, time_range: TimeRange, changes: set[str]) -> None:
        self.base = stream.time_base or Fraction(1, av.time_base)
        self.origin = stream.start_time or 0
        self.step = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        self.is_whole = time_range.is_whole
        self.changes = changes
        self.shift = self.next = Fraction(0)

    def of(self, frame: VideoFrame) -> Fraction | None:
        """Returns the time of the next frame; None where it cannot be known."""
        if frame.pts is not None:
            at = (frame.pts - self.origin) * self.base + self.shift
            if self.is_whole and not -STEP_BACK_SECONDS <= at - self.next <= MAX_GAP_SECONDS:
                self.changes.add("jumping_times")
                self.shift += self.next - at
                at = self.next
        elif self.is_whole:
            self.changes.add("guessed_times")
            at = self.next
        else:
            return None
        self.next = max(self.next, at + self.step)
        return at


def _decode(packet: av.Packet, decoder: VideoCodecContext) -> tuple[list[VideoFrame], str]:
    """Decodes a packet; returns what came out, and FFmpeg's words if it met damage.

    Decoders hide damage where they can, so their log and their frames' flags are asked too. Lost
    references are normal where a file was cut out of a longer one.
    """
    with av_logging.Capture() as log:
        try:
            frames = decoder.decode(packet)
        except (FFmpegError, ValueError) as error:
            return [], reason(error)
    lines = [line.strip() for _, _, line in log if not any(w in line for w in _HARMLESS)]
    if lines:
        return frames, lines[0].splitlines()[0]
    return frames, "corrupt frame" if any(frame.is_corrupt for frame in frames) else ""


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | Damage]:
    """Yields packets; an error of the container itself ends the file."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError, ValueError) as error:
            yield Damage(0.0, reason(error))
            return
        yield packet


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.pull()  # type: ignore[misc]
        except (av_error.BlockingIOError, av_error.EOFError):
            return


def _drain(graph: Graph) -> Iterator[VideoFrame]:
    graph.push(None)
    yield from _pull(graph)
