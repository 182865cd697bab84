"""What the headers of raw videos say."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.stream import VideoStream

from dynamonet.digest import digest_of_stream
from dynamonet.killable import USUAL, Failed, Limits, call
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, video_stream
from dynamonet.video.files import Source, open_bytes, open_source

# how the reasons of what was left out as a copy begin
SAME_CONTENT, NEAR, EXCLUDED = "same content as", "near duplicate", "in an excluded set"

LEAST_BYTES_PER_SECOND = 1000  # of a source; a header that says less is not believed. Source: ours


@dataclass(frozen=True, slots=True)  # there may be millions
class Facts:
    """What a source's header says."""

    digest: str  # BLAKE2b-128 of the file
    seconds: float  # 0 where the header does not say; no more than its size makes likely
    fps: Fraction
    width: int  # of square pixels, before any rotation
    height: int


@dataclass(frozen=True)
class Rejected:
    """A video, or a stretch of one, that is not taken."""

    source: str
    reason: str
    start_seconds: float | None = None  # None = the whole video
    end_seconds: float | None = None
    score: float | None = None  # of the filter that left it out


def inspect(
    folder: Folder, source: Source, min_side_px: int, limits: Limits = USUAL
) -> Facts | Rejected:
    """Hashes a source and reads its header, this in a child; never raises for what it holds."""
    try:
        if source.size == 0:
            return Rejected(source.path, "empty file (0 bytes)")
        digest = digest_of(folder, source)
        return call(read_header, folder, source, digest, min_side_px, limits=limits)
    except Failed as error:
        return Rejected(source.path, str(error))
    except OSError as error:
        return Rejected(source.path, f"cannot be read: {error.strerror or error}")


def read_header(folder: Folder, source: Source, digest: str, min_side_px: int) -> Facts | Rejected:
    """Reads a source's header, as far as it can be believed."""
    try:
        with open_source(folder, source) as container:
            stream = video_stream(container)
            rate = stream.average_rate or stream.guessed_rate
            context = stream.codec_context
            if context is None:  # whatever PyAV's types say
                return Rejected(source.path, "no decoder for its video stream")
            if not rate or not context.width or not context.height:
                return Rejected(source.path, "no picture size or frame rate in the header")
            if min(context.width, context.height) < min_side_px:
                size = f"{context.width} x {context.height} pixels"
                return Rejected(source.path, f"too small: {size}, min_side_px is {min_side_px}")
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
            seconds = min(max(seconds, 0.0), source.size / LEAST_BYTES_PER_SECOND)
            width, height = _square_pixels(context.width, context.height, stream)
            return Facts(digest, seconds, Fraction(rate), width, height)
    except DecodeError as error:
        return Rejected(source.path, str(error))
    except OSError as error:
        return Rejected(source.path, f"cannot be read: {error.strerror or error}")


def digest_of(folder: Folder, source: Source) -> str:
    """Returns the BLAKE2b-128 of a source file."""
    with open_bytes(folder, source) as stream:
        return digest_of_stream(stream)


def _square_pixels(width: int, height: int, stream: VideoStream) -> tuple[int, int]:
    aspect = stream.sample_aspect_ratio
    return (round(width * aspect), height) if aspect else (width, height)
