"""One stretch of a source -> encoded segments.

    source -> upright, scaled frames at a steady rate (dynamonet.video.steady) -> x264 -> mp4

Frames stream through: no more than a few are in memory, however long the source. The result depends
on the source and the settings alone: one thread, no clock, no version strings.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_prep.settings import EncodeSettings
from dynamonet.video.decode import DecodeError
from dynamonet.video.steady import Damage, Stretch, steady_frames

# x264's lookahead reads memory that nobody wrote (seen with AVX-512 on small frames: up to six
# different results from one input), so what depends on it is off; the bytes grow by a third, the
# encoder is a quarter faster and decoding needs no reordering.
X264_PARAMS = "mbtree=0:bframes=0:rc-lookahead=0"
TOO_SHORT = "too short"  # how the reason of a segment below min_seconds begins


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
    per_segment = max(1, round(segment_seconds * rate))
    encoder: _Encoder | None = None
    damage: list[tuple[float, str]] = []
    count = 0
    for item in steady_frames(container, stretch, rate, settings.short_side_px):
        if isinstance(item, Damage):
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
