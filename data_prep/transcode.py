"""One stretch of a source -> encoded segments: decode, upright, fixed frame rate, scale, H.264.

    packets -> frames -> [rotate] -> fps (by time stamps) -> scale, BT.601, yuv420p -> x264 -> mp4

Frames stream through: no more than a few are in memory, however long the source. The result depends
on the source and the settings alone: one thread, no clock, no version strings.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av import error as av_error
from av import logging as av_logging
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_prep.settings import EncodeSettings
from dynamonet.video.decode import DecodeError, reason, video_stream

# x264's lookahead reads memory that nobody wrote (seen with AVX-512 on small frames: up to six
# different results from one input), so what depends on it is off; the bytes grow by a third, the
# encoder is a quarter faster and decoding needs no reordering.
X264_PARAMS = "mbtree=0:bframes=0:rc-lookahead=0"
TOO_SHORT = "too short"  # how the reason of a segment below min_seconds begins
_HARMLESS = ("mmco", "co located POCs", "eference picture missing", "eference frames exceeds")
_ROTATIONS = {90: ("transpose", "cclock"), 180: ("rotate", "PI"), 270: ("transpose", "clock")}


@dataclass(frozen=True)
class Stretch:
    """What part of a source to take, half-open; `end` None = to the end of the file."""

    start: Fraction
    end: Fraction | None


@dataclass(frozen=True)
class Segment:
    """A whole encoded segment."""

    data: bytes  # mp4
    start_seconds: float  # in the source
    end_seconds: float
    frames: int
    fps: Fraction
    width: int
    height: int


@dataclass(frozen=True)
class Broken:
    """A stretch of a source that gave no segment."""

    start_seconds: float
    end_seconds: float
    reason: str


def output_rate(fps: Fraction, settings: EncodeSettings) -> Fraction:
    """Returns the frame rate of a source's segments: its own, capped, as a ratio that mp4 holds."""
    return min(fps, Fraction(settings.max_fps)).limit_denominator(1001)


def transcode(
    container: InputContainer,
    stretch: Stretch,
    rate: Fraction,
    *,
    segment_seconds: float,
    min_seconds: float,
    settings: EncodeSettings,
) -> Iterator[Segment | Broken]:
    """Cuts a stretch into segments of `segment_seconds`; the last one may be shorter.

    A stretch that cannot be decoded costs the segments it touches and no others.

    Args:
        rate: Frames per second of the result.
        min_seconds: A last segment shorter than this is not kept (`Broken` says so).

    Raises:
        DecodeError: nothing at all can be decoded.
    """
    stream = video_stream(container)
    stream.thread_count = 1
    per_segment = max(1, round(segment_seconds * rate))
    encoder: _Encoder | None = None
    damage: list[tuple[float, str]] = []
    count = 0
    for item in _frames(container, stream, stretch, rate, settings):
        if isinstance(item, _Damage):
            damage.append((item.seconds, item.reason))
            continue
        if encoder is None:
            encoder = _Encoder(item, rate, stretch.start + Fraction(count) / rate, settings)
        encoder.add(item)
        count += 1
        if encoder.frames == per_segment:
            yield _finish(encoder, damage, 0.0)
            encoder = None
    if encoder is not None:
        yield _finish(encoder, damage, min_seconds)
    elif not count:
        raise DecodeError(damage[0][1] if damage else "no frame could be decoded")


@dataclass(frozen=True)
class _Damage:
    seconds: float  # time of the last good frame before it
    reason: str


class _Encoder:
    """An mp4 in memory that grows frame by frame."""

    def __init__(
        self, first: VideoFrame, rate: Fraction, start: Fraction, settings: EncodeSettings
    ) -> None:
        self.rate, self.start, self.frames = rate, start, 0
        self.width, self.height = first.width, first.height
        self.file = io.BytesIO()
        options = {"fflags": "+bitexact"}
        self.container: OutputContainer = av.open(self.file, "w", format="mp4", options=options)
        self.stream: VideoStream = self.container.add_stream("libx264", rate=rate)
        self.stream.width, self.stream.height = self.width, self.height
        self.stream.pix_fmt = "yuv420p"
        self.stream.thread_count = 1  # with more, the bytes would depend on the machine
        self.stream.gop_size = max(1, round(settings.keyframe_seconds * rate))
        self.stream.time_base = 1 / rate
        context = self.stream.codec_context
        context.options = {
            "preset": settings.preset,
            "crf": str(settings.crf),
            "tune": "fastdecode",
            "flags": "+bitexact",
            "x264-params": X264_PARAMS,
        }

    def add(self, frame: VideoFrame) -> None:
        frame.pts, frame.time_base = self.frames, 1 / self.rate
        frame.pict_type = 0  # the source's own key frames mean nothing here
        self.container.mux(self.stream.encode(frame))
        self.frames += 1

    def finish(self) -> Segment:
        self.container.mux(self.stream.encode(None))
        self.container.close()
        end = self.start + Fraction(self.frames) / self.rate
        return Segment(
            data=self.file.getvalue(),
            start_seconds=float(self.start),
            end_seconds=float(end),
            frames=self.frames,
            fps=self.rate,
            width=self.width,
            height=self.height,
        )


def _finish(
    encoder: _Encoder, damage: list[tuple[float, str]], min_seconds: float
) -> Segment | Broken:
    """Ends a segment; it is given up if damage falls inside it or it is too short."""
    segment = encoder.finish()
    seconds = segment.end_seconds - segment.start_seconds
    inside = [why for at, why in damage if segment.start_seconds <= at < segment.end_seconds]
    if inside:
        return Broken(segment.start_seconds, segment.end_seconds, inside[0])
    if segment.frames < 2:
        return Broken(segment.start_seconds, segment.end_seconds, "one frame only")
    if seconds < min_seconds:
        why = f"{TOO_SHORT}: {seconds:.2f} s, min_seconds is {min_seconds:g}"
        return Broken(segment.start_seconds, segment.end_seconds, why)
    return segment


def _frames(
    container: InputContainer,
    stream: VideoStream,
    stretch: Stretch,
    rate: Fraction,
    settings: EncodeSettings,
) -> Iterator[VideoFrame | _Damage]:
    """Yields upright, scaled frames at exactly `rate`, and where decoding failed."""
    graph: Graph | None = None
    shape = size = None
    for item in _decoded(container, stream, stretch):
        if isinstance(item, _Damage):
            yield item
            continue
        found = (item.width, item.height, item.format.name, item.rotation)
        if graph is None or found != shape:
            if graph is not None:
                yield from _drain(graph)
            graph, size = _graph(stream, item, stretch, rate, settings, size)
            shape = found
        graph.push(item)
        yield from _pull(graph)
    if graph is not None:
        yield from _drain(graph)


def _decoded(
    container: InputContainer, stream: VideoStream, stretch: Stretch
) -> Iterator[VideoFrame | _Damage]:
    """Yields the decoded frames of a stretch; a damaged packet is a value, not an end."""
    base = stream.time_base or Fraction(1, av.time_base)
    origin = stream.start_time or 0
    first, last = stretch.start, stretch.end
    if first:
        container.seek(origin + int(first / base), stream=stream, backward=True)
    now = 0.0
    for packet in _packets(container, stream):
        if isinstance(packet, _Damage):
            yield _Damage(now, packet.reason)
            return
        frames, trouble = _decode(packet)
        if trouble and now >= first:
            yield _Damage(now, trouble)
        for frame in frames:
            if frame.pts is None:
                continue
            at = (frame.pts - origin) * base
            if at < first:
                continue
            if last is not None and at >= last:
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
        return frames, lines[0]
    return frames, "corrupt frame" if any(frame.is_corrupt for frame in frames) else ""


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | _Damage]:
    """Yields packets; an error of the container itself ends the file."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError, ValueError) as error:
            yield _Damage(0.0, reason(error))
            return
        yield packet


def _graph(
    stream: VideoStream,
    frame: VideoFrame,
    stretch: Stretch,
    rate: Fraction,
    settings: EncodeSettings,
    size: tuple[int, int] | None,
) -> tuple[Graph, tuple[int, int]]:
    """Builds the filter chain for frames like this one.

    Args:
        size: (width, height) to keep to when the source changes size midway.
    """
    angle = round(frame.rotation) % 360
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = round(frame.width * aspect), frame.height
    if angle in (90, 270):
        width, height = height, width
    size = size or _scaled(width, height, settings.short_side_px)
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
    chain.append(graph.add("fps", f"fps={rate}:start_time={float(stretch.start)}"))
    if angle in _ROTATIONS:
        chain.append(graph.add(*_ROTATIONS[angle]))
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
    return graph, size


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Returns the even size with the given shorter side, or the size itself if it is smaller."""
    factor = min(1.0, short_side / min(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.pull()  # type: ignore[misc]
        except (av_error.BlockingIOError, av_error.EOFError):
            return


def _drain(graph: Graph) -> Iterator[VideoFrame]:
    graph.push(None)
    yield from _pull(graph)
