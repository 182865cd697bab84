"""Encoded segments -> RGB pixels of just the frames asked for.

data -> packets from the key frame at or before the first -> decode -> RGB -> crop
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import av
import numpy as np
from av import logging as av_logging
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dynamonet.video.packets import PacketTable

Bytes = NDArray[np.uint8]
_BT601: Any = {
    "src_colorspace": Colorspace.ITU601,
    "src_color_range": ColorRange.MPEG,
    "threads": 1,  # else FFmpeg wakes others for each frame, and takes five times as long
}
# Lists of other files, and pictures, are no videos: FFmpeg would open what they name.
_LISTS = {"concat", "dash", "hls", "image2", "image2pipe", "rtp", "rtsp", "sdp"}
_LISTS |= {"webm_dash_manifest"}
_FORMATS = ",".join(sorted(av.formats_available - _LISTS))


# FFmpeg's log lines come with the errors they explain, and go nowhere else.
av_logging.set_level(av_logging.ERROR)
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False


class DecodeError(Exception):
    """A video cannot be decoded; the message is FFmpeg's own or says what is missing."""


@dataclass(frozen=True)
class Box:
    """A rectangle of a frame in luma pixels, half-open; all four sides even."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def centred_square(cls, height: int, width: int, *, offset: float = 0.5) -> Box:
        """Returns the largest even square; `offset` 0..1 places it along the longer side."""
        side = min(height, width) // 2 * 2
        return cls(
            top=round((height - side) * offset) // 2 * 2,
            left=round((width - side) * offset) // 2 * 2,
            height=side,
            width=side,
        )

    def slices(self, scale: int = 1) -> tuple[slice, slice]:
        """Returns the rows and columns of a plane that is smaller by `scale`."""
        top, left = self.top // scale, self.left // scale
        return (
            slice(top, top + self.height // scale),
            slice(left, left + self.width // scale),
        )


def open_video(source: str | bytes | IO[bytes]) -> InputContainer:
    """Opens a path, the bytes of a file, or an open file; tags that are not UTF-8 are ignored.

    Raises:
        DecodeError: FFmpeg cannot open it.
    """
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        container = av.open(file, mode="r", metadata_errors="ignore", container_options=options)
        assert isinstance(container, InputContainer)
        return container
    except (FFmpegError, OSError, ValueError) as error:
        raise DecodeError(reason(error)) from None


def video_stream(container: InputContainer) -> VideoStream:
    """Returns the default moving-picture stream, of several the largest; no cover picture.

    Source: FFmpeg's program, which chooses so.

    Raises:
        DecodeError: there is none.
    """
    moving = [stream for stream in container.streams.video if is_moving(stream)]
    if moving:
        return max(moving, key=lambda s: (bool(s.disposition & Disposition.default), _pixels(s)))
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise DecodeError(f"no video stream (found {', '.join(kinds)})")


def is_moving(stream: VideoStream) -> bool:
    """Tells a video from a cover picture."""
    return not stream.disposition & Disposition.attached_pic


def _pixels(stream: VideoStream) -> int:
    context = stream.codec_context  # None where there is no decoder, whatever PyAV's types say
    return context.width * context.height if context else 0


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """Returns a decoder of a stream's packets; FFmpeg's own leave out the alpha of WebM."""
    codec = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if codec is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return stream.codec_context
    decoder = av.CodecContext.create(codec, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.extradata = stream.codec_context.extradata
    decoder.thread_count = 1
    return decoder


def decode_pixels(
    data: bytes,
    indices: NDArray[np.int64],
    box: Box | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> Bytes:
    """Decodes the frames with the given numbers, in that order, cut to `box`.

    Args:
        data: A segment as stage 1 writes it: constant frame rate, yuv420p, first frame at time 0.
        indices: Frame numbers >= 0, any order, repeats allowed.
        box: Part of the frame to keep; None keeps all.
        size: Height and width that the frames must have; None = any.

    Returns:
        RGB (T, h, w, 3).

    Raises:
        DecodeError: the data is damaged or has fewer frames than asked for.
    """
    wanted = np.unique(indices)
    place = {int(number): row for row, number in enumerate(wanted)}
    pixels: Bytes | None = None
    try:
        for number, frame in _frames_from(data, int(wanted[0])):
            if size is not None and (frame.height, frame.width) != size:
                raise DecodeError(f"frames of {frame.height} x {frame.width}, not {size}")
            row = place.pop(number, None)
            if row is not None:
                cut = rgb(frame, box)
                if pixels is None:
                    pixels = np.empty((len(wanted), *cut.shape), np.uint8)
                pixels[row] = cut
            if not place:
                break
    except (FFmpegError, ValueError) as error:
        raise DecodeError(reason(error)) from None
    if place or pixels is None:
        raise DecodeError(f"frame {min(place)} of {int(wanted[-1]) + 1} asked for is missing")
    if len(wanted) == len(indices) and (wanted == indices).all():
        return pixels
    return pixels[np.searchsorted(wanted, indices)]


def decode_frames(data: bytes, indices: Iterable[int]) -> list[av.VideoFrame]:
    """Decodes the frames with the given numbers, each from the key frame before it.

    Of frames that lie far apart this is a small part of the work of `decode_pixels`.

    Args:
        data: A segment as stage 1 writes it.
        indices: Frame numbers >= 0.

    Raises:
        DecodeError: the data is damaged or has fewer frames than asked for.
    """
    try:
        return [_frame(data, index) for index in indices]
    except (FFmpegError, ValueError) as error:
        raise DecodeError(reason(error)) from None


def reason(error: Exception) -> str:
    """Returns FFmpeg's words for an error: its message, and its log line where that says more."""
    text = getattr(error, "strerror", None) or str(error)
    log = getattr(error, "log", None)  # (level, where, line), kept while av.logging is on
    line = str(log[2]).strip() if log else ""
    if line.startswith("Format not on whitelist"):  # and then all that are
        return "a list of other files, not a video"
    return f"{text}: {line}" if line and line not in text else text


def _frame(data: bytes, index: int) -> av.VideoFrame:
    for number, frame in _frames_from(data, index):
        if number == index:
            return frame
    raise DecodeError(f"frame {index} is missing")


def _frames_from(data: bytes, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (frame number, frame) from the key frame at or before `first`."""
    table = PacketTable.of(data)
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = table.extradata
    context.thread_count = 1  # loader processes are the parallelism
    for packet in table.packets_from(data, first):
        for frame in context.decode(packet):
            if frame.pts is not None:
                yield frame.pts, frame


def rgb(frame: av.VideoFrame, box: Box | None = None) -> Bytes:
    """Converts a yuv420p frame, BT.601 limited range, to RGB (h, w, 3), cut to `box`.

    A view of the converted frame. FFmpeg's own conversion, which takes a fifth of the time that
    PyTorch's operations do: it rounds down and gives four pixels one colour.
    """
    box = box or Box(0, 0, frame.height, frame.width)
    _check(frame, box)
    converter = _converter(frame.width, frame.height)
    (plane,) = converter.reformat(frame, format="rgb24", **_BT601).planes
    shape, strides = (frame.height, frame.width, 3), (plane.line_size, 3, 1)
    return np.ndarray(shape, np.uint8, memoryview(plane), strides=strides)[box.slices()]


@lru_cache(maxsize=64)
def _converter(width: int, height: int) -> VideoReformatter:
    """Returns a converter that keeps its tables: making them takes as long as 40 frames."""
    return VideoReformatter()


def cut_planes(frame: av.VideoFrame, box: Box) -> tuple[Bytes, Bytes, Bytes]:
    """Returns views of a yuv420p frame's three planes inside a box; they die with the frame."""
    _check(frame, box)
    cuts = []
    for plane, scale in zip(frame.planes, (1, 2, 2), strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        cuts.append(rows[box.slices(scale)])
    return cuts[0], cuts[1], cuts[2]


def _check(frame: av.VideoFrame, box: Box) -> None:
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        raise ValueError(f"expected yuv420p, found {frame.format.name}")
    if box.top + box.height > frame.height or box.left + box.width > frame.width:
        raise ValueError(f"{box} leaves a frame of {frame.height} x {frame.width}")
