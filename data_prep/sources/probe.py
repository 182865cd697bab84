"""What the headers of raw videos say, and how long they really are."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, cast

from av.video.stream import VideoStream

from data_prep.reasons import Rejected, RejectReason
from data_prep.sources.packets import measure_length
from dynamonet.child_process import DEFAULT_LIMITS, ChildFailed, Limits, call, heartbeat
from dynamonet.digest import digest_of_stream
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, open_video, video_stream
from dynamonet.video.files import BLOCK_BYTES, Source, open_bytes, open_source, printable, why_empty

TOO_SMALL = RejectReason.TOO_SMALL
MIN_BYTES_PER_SECOND = 1000  # of a source; a header that says less is not believed. Source: ours


@dataclass(frozen=True, slots=True)  # there may be millions
class VideoInfo:
    """What a source's header and its packets say."""

    digest: str  # BLAKE2b-128 of the file
    seconds: float  # of its packets, put one after another where their times jump
    fps: Fraction
    width: int  # of square pixels, before any rotation
    height: int
    declared_seconds: float = 0.0  # by the header, where that is more than there is; 0 = it is not
    steady: bool = True  # packets have times that do not jump: any part can be read by itself
    trouble: str = ""  # what FFmpeg said as it read the packets


def inspect(
    folder: Folder, source: Source, min_side_px: int, limits: Limits = DEFAULT_LIMITS
) -> VideoInfo | Rejected:
    """Hashes a source and reads its header, this in a child; never raises for what it holds.

    What is far away is hashed as it is read, so that it is fetched once.
    """
    try:
        if source.size == 0:
            return _unreadable(source, why_empty(folder, source))
        digest = digest_of(folder, source) if folder.is_local else None
        return call(read_header, folder, source, digest, min_side_px, limits=limits)
    except ChildFailed as error:
        return _unreadable(source, str(error))
    except OSError as error:
        return _unreadable(source, f"cannot be read: {error.strerror or error}")


def read_header(
    folder: Folder, source: Source, digest: str | None, min_side_px: int
) -> VideoInfo | Rejected:
    """Reads a source's header, as far as it can be believed.

    Args:
        digest: Of the source; None = hash it, too.
    """
    try:
        file = None if digest else _DigestedReader(open_bytes(folder, source))
        with (
            open_video(cast(IO[bytes], file)) if file else open_source(folder, source) as container
        ):
            stream = video_stream(container)
            rate = stream.average_rate or stream.guessed_rate
            context = stream.codec_context
            if context is None:  # whatever PyAV's types say
                return _unreadable(source, "no decoder for its video stream")
            if not rate or not context.width or not context.height:
                return _unreadable(source, "no picture size or frame rate in the header")
            if min(context.width, context.height) < min_side_px:
                size = f"{context.width} x {context.height} pixels"
                text = f"{TOO_SMALL.value}: {size}, min_side_px is {min_side_px}"
                return Rejected(printable(source.path), TOO_SMALL, text)
            width, height = _square_pixels(context.width, context.height, stream)
            length = measure_length(container, stream, 1 / Fraction(rate))
            if length.edited:  # the average is over what is not shown, too
                rate = stream.guessed_rate or rate
            return VideoInfo(
                digest or (file.digest() if file else ""),
                min(length.seconds, source.size / MIN_BYTES_PER_SECOND),
                Fraction(rate),
                width,
                height,
                length.declared,
                length.steady,
                length.trouble,
            )
    except DecodeError as error:
        return _unreadable(source, str(error))
    except OSError as error:
        return _unreadable(source, f"cannot be read: {error.strerror or error}")


class _DigestedReader(io.BufferedIOBase):
    """A file whose digest is known once it was read, whatever the order of reading.

    What is read in order is hashed as it comes; the rest is read again at the end.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=16)
        self._hashed = 0  # bytes from the start

    def read(self, size: int | None = -1, /) -> bytes:
        heartbeat()
        at = self._file.tell()
        data = self._file.read(-1 if size is None else size)
        if at <= self._hashed < at + len(data):
            self._digest.update(memoryview(data)[self._hashed - at :])
            self._hashed = at + len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def digest(self) -> str:
        """Reads what was not read yet; returns the digest of the whole file."""
        self.seek(self._hashed)
        while self.read(BLOCK_BYTES):
            pass
        return self._digest.hexdigest()


def _unreadable(source: Source, reason: str) -> Rejected:
    return Rejected(printable(source.path), RejectReason.UNREADABLE, reason)


def digest_of(folder: Folder, source: Source) -> str:
    """Returns the BLAKE2b-128 of a source file."""
    with open_bytes(folder, source) as stream:
        return digest_of_stream(stream)


def _square_pixels(width: int, height: int, stream: VideoStream) -> tuple[int, int]:
    aspect = stream.sample_aspect_ratio
    return (round(width * aspect), height) if aspect else (width, height)
