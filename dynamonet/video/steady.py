"""A video of any kind -> upright frames of one size at a steady rate, in YUV 4:2:0.

    packets -> frames -> [rotate] -> fps (by time stamps) -> scale, BT.601, yuv420p

What stage 1 encodes, and what a finished model is shown of a file, go through here alike. Frames
stream through: no more than a few are in memory, however long the video.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av import error as av_error
from av import logging as av_logging
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dynamonet.killable import beat
from dynamonet.video.decode import reason, video_stream

MAX_GAP_SECONDS = 600  # between two frames; more is a damaged time stamp. Source: ours
_HARMLESS = ("mmco", "co located POCs", "eference picture missing", "eference frames exceeds")
_ROTATIONS = {90: ("transpose", "cclock"), 180: ("rotate", "PI"), 270: ("transpose", "clock")}


@dataclass(frozen=True, slots=True)
class Stretch:
    """What part of a source to take, half-open; `end` None = to the end of the file."""

    start: Fraction
    end: Fraction | None


@dataclass(frozen=True)
class Damage:
    """A place where decoding failed."""

    seconds: float  # time of the last good frame before it
    reason: str


def output_rate(fps: Fraction, max_fps: float) -> Fraction:
    """Returns the steady rate of a video: its own, capped, as a ratio that mp4 holds."""
    return max(Fraction(1, 1001), min(fps, Fraction(max_fps)).limit_denominator(1001))


def steady_frames(
    container: InputContainer, stretch: Stretch, rate: Fraction, short_side_px: int
) -> Iterator[VideoFrame | Damage]:
    """Yields upright frames at exactly `rate`, and where decoding failed.

    Args:
        short_side_px: Their shorter side; frames are never enlarged.
    """
    stream = video_stream(container)
    stream.thread_count = 1
    graph: Graph | None = None
    shape = size = None
    count = 0
    for item in _decoded(container, stream, stretch):
        if isinstance(item, Damage):
            yield item
            continue
        found = (item.width, item.height, item.format.name, item.rotation)
        if graph is None or found != shape:
            if graph is not None:
                for frame in _drain(graph):
                    count += 1
                    yield frame
            size = size or _upright_size(stream, item, short_side_px)
            graph = _graph(stream, item, stretch.start + count / rate, rate, size)
            shape = found
        graph.push(item)
        for frame in _pull(graph):
            count += 1
            yield frame
    if graph is not None:
        yield from _drain(graph)


def _decoded(
    container: InputContainer, stream: VideoStream, stretch: Stretch
) -> Iterator[VideoFrame | Damage]:
    """Yields the decoded frames of a stretch; a damaged packet is a value, not an end."""
    base = stream.time_base or Fraction(1, av.time_base)
    origin = stream.start_time or 0
    first, last = stretch.start, stretch.end
    if first:
        container.seek(origin + int(first / base), stream=stream, backward=True)
    now = 0.0
    for packet in _packets(container, stream):
        if isinstance(packet, Damage):
            yield Damage(now, packet.reason)
            return
        frames, trouble = _decode(packet)
        if trouble and now >= first:
            yield Damage(now, trouble)
        for frame in frames:
            beat()
            if frame.pts is None:
                continue
            at = (frame.pts - origin) * base
            if at < first:
                continue
            if last is not None and at >= last:
                return
            if at - max(first, now) > MAX_GAP_SECONDS:
                yield Damage(now, f"time stamps jump by {float(at) - now:.0f} s")
                return
            now = float(at)
            frame.pts -= origin
            yield frame


def _decode(packet: av.Packet) -> tuple[list[VideoFrame], str]:
    """Decodes a packet; returns what came out, and FFmpeg's words if it met damage.

    Decoders hide damage where they can, so their log and their frames' flags are asked too. Lost
    references are normal where a file was cut out of a longer one.
    """
    with av_logging.Capture() as log:
        try:
            frames = [frame for frame in packet.decode() if isinstance(frame, VideoFrame)]
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


def _graph(
    stream: VideoStream, frame: VideoFrame, start: Fraction, rate: Fraction, size: tuple[int, int]
) -> Graph:
    """Builds the filter chain for frames like this one.

    Args:
        start: Time in seconds of the first frame that comes out.
        size: (width, height) that comes out; kept when the source changes size midway.
    """
    graph = Graph()
    chain = [
        graph.add_buffer(
            template=stream,
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=stream.time_base,
        )
    ]
    chain.append(graph.add("fps", f"fps={rate}:start_time={float(start)}"))
    turn = _ROTATIONS.get(_angle(frame))
    if turn:
        chain.append(graph.add(*turn))
    scale = f"{size[0]}:{size[1]}:flags=bicubic:out_color_matrix=bt601:out_range=tv"
    chain += [
        graph.add("scale", scale),
        graph.add("setsar", "1"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    for before, after in itertools.pairwise(chain):
        before.link_to(after)
    graph.configure()
    return graph


def _upright_size(stream: VideoStream, frame: VideoFrame, short_side: int) -> tuple[int, int]:
    """Returns (width, height), both even, of a frame's square pixels with the given shorter side.

    A frame that is smaller keeps its size.
    """
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = round(frame.width * aspect), frame.height
    if _angle(frame) in (90, 270):
        width, height = height, width
    factor = min(1.0, short_side / min(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def _angle(frame: VideoFrame) -> int:
    return round(frame.rotation) % 360


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.pull()  # type: ignore[misc]
        except (av_error.BlockingIOError, av_error.EOFError):
            return


def _drain(graph: Graph) -> Iterator[VideoFrame]:
    graph.push(None)
    yield from _pull(graph)
