"""One time range of a source -> encoded segments.

    source -> upright, scaled frames at a constant rate (video.constant_rate) -> x264 -> mp4
                                                           |----> shots    |----> scores

Frames stream through: no more than a few are in memory, however long the source. The result depends
on the source and the settings alone: one thread, no clock, no version strings.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_prep.reasons import Rejected, RejectReason
from data_prep.segments.quality import Scorer
from data_prep.segments.scenes import mark_shots
from data_prep.settings import EncodeSettings, PrepSettings
from dynamonet.video.constant_rate import Damage, TimeRange, constant_rate_frames
from dynamonet.video.decode import Box, DecodeError

# x264's lookahead reads memory that nobody wrote (seen with AVX-512 on small frames: up to six
# different results from one input), so what depends on it is off; the bytes grow by a third, the
# encoder is a quarter faster and decoding needs no reordering.
X264_PARAMS = "mbtree=0:bframes=0:rc-lookahead=0"


@dataclass(frozen=True)
class Segment:
    """A whole encoded segment."""

    data: bytes  # mp4
    start_seconds: float  # in the source
    end_seconds: float
    frames: int
    fps: float
    width: int
    height: int
    scores: dict[str, float]  # by the names in index.SCORES
    normalised: tuple[str, ...]  # kinds of changes in the frames, from normalise.KINDS


def transcode(
    container: InputContainer,
    time_range: TimeRange,
    rate: Fraction,
    settings: PrepSettings,
    *,
    source: str = "",
    box: Box | None = None,
    most: int | None = None,
) -> Iterator[Segment | Rejected]:
    """Cuts a time range into segments of `segment_seconds`, and at shots; others may be shorter.

    A time range that cannot be decoded costs the segments it touches and no others.

    Args:
        rate: Frames per second of the result.
        source: Its name, for what is rejected.
        box: Part of the stored frames inside black bars; None = all.
        most: Segments after which it ends; what is too short or damaged does not count.

    Raises:
        DecodeError: nothing at all can be decoded.
    """
    per_segment = max(1, round(settings.segment_seconds * rate))
    damage: list[Damage] = []
    changes: set[str] = set()
    side = settings.encode.short_side_px
    items = constant_rate_frames(container, time_range, rate, side, box=box, changes=changes)
    frames = _whole_frames(items, damage)
    marked = mark_shots(frames, rate) if settings.cut == "shots" else ((f, False) for f in frames)
    segment: _OpenSegment | None = None
    count = given = 0
    for frame, begins_shot in marked:
        if segment and (begins_shot or segment.encoder.frames == per_segment):
            yield (item := segment.finish(source, damage, changes, settings))
            given += isinstance(item, Segment)
            segment = None
            if given == most:
                return
        if segment is None:
            start = time_range.start + Fraction(count) / rate
            segment = _OpenSegment(_Encoder(frame, rate, start, settings.encode), Scorer(rate))
        segment.add(frame)
        count += 1
    if segment is not None:
        yield segment.finish(source, damage, changes, settings)
    elif not count:
        raise DecodeError(damage[0].reason if damage else "no frame could be decoded")


def _whole_frames(
    items: Iterable[VideoFrame | Damage], damage: list[Damage]
) -> Iterator[VideoFrame]:
    """Yields the frames, and puts the damage aside."""
    for item in items:
        if isinstance(item, Damage):
            damage.append(item)
        else:
            yield item


@dataclass(frozen=True)
class _OpenSegment:
    """A segment in the making."""

    encoder: _Encoder
    scorer: Scorer

    def add(self, frame: VideoFrame) -> None:
        self.scorer.add(frame)
        self.encoder.add(frame)

    def finish(
        self, source: str, damage: list[Damage], changes: set[str], settings: PrepSettings
    ) -> Segment | Rejected:
        """Ends the segment; it is left out if it is damaged or too short."""
        start, end = self.encoder.start_seconds, self.encoder.end_seconds
        data = self.encoder.finish()
        scores, normalised = self.scorer.scores(), tuple(sorted(changes))
        changes.clear()

        def rejected(kind: RejectReason, text: str) -> Rejected:
            return Rejected(source, kind, text, start, end)

        inside = [item.reason for item in damage if start <= item.seconds < end]
        if inside:
            return rejected(RejectReason.UNREADABLE, inside[0])
        if self.encoder.frames < 2:
            return rejected(RejectReason.UNREADABLE, "one frame only")
        is_full = self.encoder.frames >= round(settings.segment_seconds * self.encoder.rate)
        if end - start < settings.min_seconds and not is_full:
            kind = RejectReason.TOO_SHORT
            least = f"min_seconds is {settings.min_seconds:g}"
            return rejected(kind, f"{kind.value}: {end - start:.2f} s, {least}")
        encoder = self.encoder
        shape = encoder.frames, float(encoder.rate), encoder.width, encoder.height
        return Segment(data, start, end, *shape, scores, normalised)


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

    @property
    def start_seconds(self) -> float:
        return float(self.start)

    @property
    def end_seconds(self) -> float:
        return float(self.start + Fraction(self.frames) / self.rate)

    def finish(self) -> bytes:
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()
